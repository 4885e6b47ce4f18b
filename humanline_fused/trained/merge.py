"""The command ``humanline merge``: a whole model from a LoRA run."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig

from humanline_fused import durable
from humanline_fused.extras import need
from humanline_fused.places import did_you_mean
from humanline_fused.printing import Parser
from humanline_fused.trained.stored_model import StoredModel, find_model
from humanline_fused.training.run.model_card import CARD, merged_card
from humanline_fused.training.start import loading

DTYPES = ("float32", "bfloat16", "float16")


def merge(argv: Sequence[str], description: str | None) -> None:
    """Run the command.

    Args:
        argv: its arguments.
        description: of the command, for ``--help``.

    Raises:
        ValueError, OSError: an argument or a file cannot be used, or the run has not ended.
        ModuleNotFoundError: peft is not installed.
    """
    parser = Parser(prog="humanline merge", description=description, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="The folder of a LoRA run, or of an adapter.")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="A new or empty folder.")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="checkpoint-N of the run. Default: its export")
    parser.add_argument("--model", help="The base model, if the adapter names none.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run code that is beside the model.")
    parser.add_argument("--dtype", choices=DTYPES, help="Of the weights. Default: that of the base model in the run")
    options = parser.parse_args(argv)
    refuse_output(options.output)
    if not Path(options.run).is_dir():
        raise ValueError(f"{options.run}: expected a run's folder, found none{did_you_mean(Path(options.run))}")
    stored = find_model(
        options.run, checkpoint=options.checkpoint, base=options.model, trust_remote_code=options.trust_remote_code
    )
    if stored.base is None:
        raise ValueError(f"{options.run}: expected a LoRA adapter to merge, {stored.place} is a whole model already")
    need("peft")
    merged = merge_into(stored, options.output, options.dtype)
    print(f"wrote {options.output}: {stored.base} with the adapter of {stored.place}, {merged} weights")
    if stored.settings.get("load_in_4bit"):
        print("the run had the base weights in 4 bits; the adapter was merged into the whole ones, which differ")


def refuse_output(output: Path) -> None:
    """Raise ValueError for a folder with something in it."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output: expected a new or empty folder, {output} has something in it")


def merge_into(stored: StoredModel, output: Path, dtype: str | None = None) -> str:
    """Write base model and adapter as one model, with tokenizer, generation config and card; all of it or nothing.

    The sum is computed in float32 (float64 if asked for) and rounded once.

    Args:
        stored: a model with an adapter.
        output: a new or empty folder, or a link to one.
        dtype: data type of the weights; default that of the base model in the run.

    Returns:
        The data type of the written weights.
    """
    tokenizer = stored.load_tokenizer()
    assert stored.base is not None
    named = dtype or stored.dtype
    if named == "auto":
        with loading("config", stored.base):
            named = str(AutoConfig.from_pretrained(stored.base, **stored.source).dtype or "float32")
    weights: torch.dtype = getattr(torch, named.removeprefix("torch."))
    adapted = stored.load(torch.promote_types(weights, torch.float32))
    merged = adapted.merge_and_unload(safe_merge=True).to(weights)
    output = output.resolve()  # a link to a folder cannot be replaced by one
    unfinished = output.with_name(f"{output.name}{durable.UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        merged.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        _write_card(Path(stored.place, CARD), unfinished / CARD)
        durable.sync_tree(unfinished)
        os.replace(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    durable.sync(output.parent)
    return named.removeprefix("torch.")


def _write_card(of_adapter: Path, of_merged: Path) -> None:
    """Write the card of the merged model, if the adapter has one of this package."""
    if not of_adapter.is_file():
        return
    if card := merged_card(of_adapter.read_text(encoding="utf-8", errors="replace")):
        of_merged.write_text(card, encoding="utf-8")
