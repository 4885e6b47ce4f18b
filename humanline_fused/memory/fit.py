"""The command ``humanline fit``: a table of the memory of a training step, and the GPUs that it fits on."""

from collections.abc import Sequence
from typing import get_args

from humanline_fused.memory.estimate import MOST_TOKENS, Estimate, estimate
from humanline_fused.printing import Parser
from humanline_fused.training.config import Reference
from humanline_fused.training.model_settings import ModelSettings

GPUS = (16, 24, 40, 48, 80, 141, 192)
"""Memory of GPUs that there are, in units of 10^9 bytes."""

USABLE = 0.9
"""Share of a GPU's memory for the step; the rest is the driver's, and what the allocator cannot use."""

SMALL = 1e8
"""Bytes of a step below which they are printed in MB."""

HEADER = f"{{:<18}}{'plain':>12}{'gradient_checkpointing=true':>30}"


def fit(argv: Sequence[str], description: str | None) -> None:
    """Run the command.

    Args:
        argv: its arguments.
        description: of the command, for ``--help``.

    Raises:
        ValueError, OSError: an argument cannot be used, or the model has no config.
    """
    parser = Parser(prog="humanline fit", description=description, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="A folder with a config.json, or a model name.")
    parser.add_argument(
        "--tokens",
        type=int,
        required=True,
        metavar="N",
        help="Tokens of a forward pass: of a micro-batch with its padding, or max_tokens_per_micro_batch.",
    )
    parser.add_argument("--model_dtype", "--dtype", default="float32", help="As of train. Default: %(default)s")
    parser.add_argument("--bf16", choices=("true", "false"), default="true", help="As of train. Default: %(default)s")
    parser.add_argument("--reference", choices=get_args(Reference), default="lookahead", help="As of train.")
    parser.add_argument("--lora_r", type=int, help="As of train.")
    parser.add_argument("--lora_target_modules", nargs="+", help="As of train.")
    parser.add_argument("--load_in_4bit", choices=("true", "false"), default="false", help="As of train.")
    parser.add_argument("--revision", help="As of train.")
    options = parser.parse_args(argv)
    if options.tokens < 1:
        raise ValueError(f"--tokens: expected an integer >= 1, got {options.tokens}")
    if options.load_in_4bit == "true" and options.lora_r is None:
        raise ValueError("--load_in_4bit: expected false without --lora_r (4-bit weights cannot be trained)")
    if options.reference == "adapter" and options.lora_r is None:
        raise ValueError("--reference adapter: expected --lora_r beside it, got none")
    settings = ModelSettings(
        model=options.model,
        model_dtype=options.model_dtype,
        revision=options.revision,
        lora_r=options.lora_r,
        lora_target_modules=options.lora_target_modules,
    )
    settings.check_model()
    settings.load_in_4bit = options.load_in_4bit == "true"  # no GPU is needed to compute with it
    found = estimate(options.model, settings, reference=options.reference, bf16=options.bf16 == "true")
    print("\n".join(lines(found, options.model, options.tokens)))


def lines(found: Estimate, model: str, tokens: int) -> list[str]:
    """Return the tables: the parts of a step, and the GPUs."""
    trained = "all trained" if found.trained == found.parameters else f"{found.trained:,} trained"
    whole, layered = (found.parts(tokens, checkpointing=checkpointing) for checkpointing in (False, True))
    said = [
        f"{model}: {found.parameters:,} parameters, {trained}; AdamW; {tokens} tokens a forward pass, all counting",
        "",
        "memory of a step on one GPU",
    ]
    unit, size = ("GB (10^9 bytes)", 1e9) if sum(layered.values()) >= SMALL else ("MB (10^6 bytes)", 1e6)
    said.append(HEADER.format(unit))
    said += [f"{name:<18}{whole[name] / size:>12.2f}{layered[name] / size:>30.2f}" for name in whole]
    said += [f"{'sum, at most':<18}{sum(whole.values()) / size:>12.2f}{sum(layered.values()) / size:>30.2f}", ""]
    said.append(f"largest number of tokens of a forward pass (--tokens) in {USABLE:.0%} of a GPU")
    said.append(HEADER.format("GPU"))
    for memory in GPUS:
        most = [
            found.most_tokens(USABLE * memory * 1e9, checkpointing=checkpointing) for checkpointing in (False, True)
        ]
        texts = [_number(number) for number in most]
        said.append(f"{f'{memory} GB':<16}{texts[0]:>14}{texts[1]:>30}")
    return said


def _number(tokens: int) -> str:
    return f">= {tokens:,}" if tokens == MOST_TOKENS else f"{tokens:,}" if tokens else "does not fit"
