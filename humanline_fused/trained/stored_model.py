"""Finds and loads a trained model: a run's export, one of its checkpoints, or another folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from humanline_fused.places import A_MODEL, did_you_mean, refuse_absent
from humanline_fused.printing import one_line
from humanline_fused.stored_lines import objects
from humanline_fused.training.lora import without_peft_warning
from humanline_fused.training.run.checkpoint import IDENTITY, complete_checkpoint, newest_complete
from humanline_fused.training.run.earlier_run import ADAPTERS, METRICS, WEIGHTS
from humanline_fused.training.run.lock import refuse_writer
from humanline_fused.training.run.settings_file import SETTINGS, read_settings
from humanline_fused.training.start import loading

CONTINUE = "Continue it with --resume_from_checkpoint auto"


@dataclass(frozen=True)
class StoredModel:
    """Where a model's files are.

    Attributes:
        place: the folder, or the name of a model.
        base: folder or name of the base model if ``place`` has a LoRA adapter, else None.
        settings: the settings of the run that wrote it, by field; empty for a model of another origin.
        trust_remote_code: whether code beside the model may run. The run's settings do not say so for its reader.
    """

    place: str
    base: str | None
    settings: Mapping[str, Any]
    trust_remote_code: bool

    @property
    def source(self) -> dict[str, Any]:
        """Arguments of ``from_pretrained`` for the model that the run began with."""
        revision = self.settings.get("revision")
        return self.remote | ({"revision": revision} if revision else {})

    @property
    def remote(self) -> dict[str, bool]:
        """Argument of ``from_pretrained`` for files of the run."""
        return {"trust_remote_code": self.trust_remote_code}

    @property
    def dtype(self) -> str:
        """Data type of the run's weights, or auto."""
        return self.settings.get("model_dtype", "auto") if self.settings.get("model") else "auto"

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer beside the model.

        Raises:
            ValueError, OSError: there is none, or its files are damaged.
        """
        with loading("tokenizer", self.place):
            return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(self.place, **self.remote))

    def load(self, dtype: Any = None) -> Any:
        """Return the model on the CPU, with its adapter if it has one.

        Args:
            dtype: data type of the weights; default that of the run's base model, or of the files.

        Raises:
            ValueError, OSError: files are missing or damaged.
            ModuleNotFoundError: it has an adapter, and peft is not installed.
        """
        if self.base is None:
            with loading("model", self.place):
                return AutoModelForCausalLM.from_pretrained(self.place, dtype=dtype or "auto", **self.remote)
        from peft import PeftModel

        try:
            with loading("model", self.base):
                base = AutoModelForCausalLM.from_pretrained(self.base, dtype=dtype or self.dtype, **self.source)
        except (OSError, ValueError) as error:
            where = f"--model: expected the base model of the adapter in {self.place}, named {self.base}"
            raise ValueError(f"{where}: {one_line(error)}") from error
        with loading("LoRA adapter", self.place), without_peft_warning():
            return PeftModel.from_pretrained(base, self.place)


def find_model(
    place: str, *, checkpoint: int | None = None, base: str | None = None, trust_remote_code: bool = False
) -> StoredModel:
    """Return where the model's files are.

    Args:
        place: a run's folder, a folder written by ``save_pretrained``, or a model name.
        checkpoint: the step of a run's checkpoint; default the run's exported model.
        base: folder or name of the base model of an adapter; default the one that the adapter names.
        trust_remote_code: whether code beside the model may run.

    Raises:
        ValueError: the run has not ended, or there is no model; the message says what to do.
        BlockingIOError: the run is being trained.
    """
    folder = Path(place)
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{place}: expected {A_MODEL}, got a file")
        refuse_absent(place, A_MODEL)
        _refuse(checkpoint is not None, "--checkpoint", f"a run's folder, got {place}, which is no folder")
        _refuse(base is not None, "--model", f"a LoRA adapter beside it, got {place}, which is no folder")
        return StoredModel(place, None, {}, trust_remote_code)
    settings: Mapping[str, Any] = {}
    if (folder / SETTINGS).is_file():
        settings = read_settings(folder)
        folder = _exported(folder) if checkpoint is None else complete_checkpoint(folder, checkpoint, model_alone=True)
    else:
        _refuse(checkpoint is not None, "--checkpoint", f"a run's folder with {SETTINGS}, found none in {folder}")
        if (folder / IDENTITY).is_file() and (folder.parent / SETTINGS).is_file():
            settings = read_settings(folder.parent)
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        return StoredModel(str(folder), _base_of(folder, settings, base), settings, trust_remote_code)
    _refuse(base is not None, "--model", f"a LoRA adapter, but {folder} has no {ADAPTER_CONFIG_NAME}")
    if not (folder / CONFIG_NAME).is_file():
        found = f"found neither{did_you_mean(folder)}"
        raise ValueError(f"{folder}: expected {CONFIG_NAME} of a model or {ADAPTER_CONFIG_NAME}, {found}")
    return StoredModel(str(folder), None, settings, trust_remote_code)


def _refuse(holds: bool, option: str, expected: str) -> None:
    if holds:
        raise ValueError(f"{option}: expected {expected}")


def _exported(folder: Path) -> Path:
    """Return the folder of a run that has ended and has an exported model."""
    refuse_writer(folder)
    lines = list(objects(folder / METRICS))
    ended = not lines or any("train_runtime" in line for line in lines)
    exported = any((folder / name).is_file() for name in WEIGHTS + ADAPTERS)
    if ended and exported:
        return folder
    newest = newest_complete(folder, model_alone=True)
    kept = f", or take --checkpoint {newest.name.split('-')[1]}" if newest else ""
    if not ended:
        raise ValueError(f"{folder}: expected a run that has ended, this one has not. {CONTINUE}{kept}")
    again = "It has no checkpoint either: train again with --overwrite_output_dir true"
    advice = f"{CONTINUE}{kept}" if newest else again
    raise ValueError(f"{folder}: expected an exported model (trainer.save_model()), found none. {advice}")


def _base_of(folder: Path, settings: Mapping[str, Any], given: str | None) -> str:
    """Return the base model of the adapter in ``folder``."""
    file = folder / ADAPTER_CONFIG_NAME
    try:
        named = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected the settings of an adapter, got {error!r}") from None
    base = given or settings.get("model") or named
    if not base:
        raise ValueError(f"--model: expected the base model of the adapter in {folder}, which names none")
    return str(base)
