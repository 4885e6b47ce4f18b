"""The command ``humanline fit``: a table of the memory of a training step, and the GPUs that it fits on."""

from collections.abc import Sequence
from typing import get_args

from humanline_fused.memory.estimate import Estimate, estimate
from humanline_fused.printing import Parser
from humanline_fused.training.config import Reference
from humanline_fused.training.model_settings import ModelSettings

GPUS = (16, 24, 40, 48, 80, 141, 192)
"""Memory of GPUs that there are, in units of 10^9 bytes."""

USABLE = 0.9
"""Share of a GPU's memory for the step; the rest is the driver's, and what the allocator cannot use."""


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
        f"{'GB (10^9 bytes)':<18}{'':>10}{'gradient_checkpointing':>24}",
    ]
    said += [f"{name:<18}{whole[name] / 1e9:>10.2f}{layered[name] / 1e9:>24.2f}" for name in whole]
    said += [f"{'sum, at most':<18}{sum(whole.values()) / 1e9:>10.2f}{sum(layered.values()) / 1e9:>24.2f}", ""]
    said.append(f"most tokens in {USABLE:.0%} of a GPU:")
    said.append(f"{'GPU':<18}{'':>10}{'gradient_checkpointing':>24}")
    for memory in GPUS:
        most = [
            found.most_tokens(USABLE * memory * 1e9, checkpointing=checkpointing) for checkpointing in (False, True)
        ]
        texts = [f"{number:,}" if number else "does not fit" for number in most]
        said.append(f"{f'{memory} GB':<16}{texts[0]:>12}{texts[1]:>24}")
    return said
