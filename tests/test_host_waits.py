"""Between two log lines a step reads nothing from the device, because the host would wait for all queued work."""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from humanline_fused.validation import values
from tests.test_masked_tokens import rows
from tests.tiny_model import tiny_trainer

WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2")


def is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


class Waits(TorchDispatchMode, TrainerCallback):
    """Records which files read a number or a shape from the device in the third step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.__enter__()
        elif state.global_step == 3:
            self.__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        masked = name in ("aten::index", "aten::index_put_") and any(map(is_mask, args[1]))
        if name in WAITING or masked:
            files = (Path(frame.filename) for frame in reversed(traceback.extract_stack()[:-1]))
            self.seen.append(next(f"{file.parent.name}/{file.name}" for file in files if "torch" not in file.parts))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable checks of values, which only run on a CPU."""
    monkeypatch.setattr(values, "may_look_at", lambda tensor: False)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_masked_tokens_add_no_read(tmp_path: Path, objective: str):
    waits = Waits()
    settings: dict[str, Any] = {"objective": objective, "train_dataset": rows(objective, 8), "max_length": 64}
    settings["layout"] = "padded"
    trainer = tiny_trainer(tmp_path, optim="sgd", logging_steps=100, max_steps=3, callbacks=[waits], **settings)
    assert any(example.masks for example in trainer.train_examples)
    trainer.train()
    assert set(waits.seen) == {"transformers/masking_utils.py"}


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("layout", ["padded", "shared_prompt"])
@pytest.mark.parametrize(("impl", "accumulation"), [("eager", 2), ("triton", 1)])
def test_only_the_models_mask_reads_the_device_at_most_once_per_forward(
    tmp_path: Path, objective: str, impl: str, accumulation: int, layout: str
):
    waits = Waits()
    # One epoch and no AdamW: a loader's seed and a step counter are host numbers on any device.
    settings: dict[str, Any] = {"num_examples": 24, "optim": "sgd", "logging_steps": 100, "max_steps": 3}
    settings |= {"objective": objective, "impl": impl, "gradient_accumulation_steps": accumulation, "layout": layout}
    trainer = tiny_trainer(tmp_path, callbacks=[waits], **settings)
    trainer.train()
    forwards = accumulation * (2 if objective != "kto" else 4 if layout == "padded" else 3)
    assert set(waits.seen) == {"transformers/masking_utils.py"}  # transformers' check for packed sequences
    assert len(waits.seen) <= forwards


def test_a_read_of_the_device_is_detected(tmp_path: Path):
    class Reading(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            float(kwargs["model"].lm_head.weight.grad.norm())

    waits = Waits()
    trainer = tiny_trainer(tmp_path, optim="sgd", logging_steps=100, max_steps=3, callbacks=[waits, Reading()])
    trainer.train()
    assert waits.seen.count("tests/test_host_waits.py") == 1
