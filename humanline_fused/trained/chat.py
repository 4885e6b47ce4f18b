"""The command ``humanline chat``: a conversation with a trained model, by transformers' generation."""

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence

from humanline_fused.places import A_MODEL, refuse_absent
from humanline_fused.printing import Parser, escaped, one_line

ANEW = "/new"
"""The line that begins a new conversation."""


def chat(argv: Sequence[str], description: str | None) -> None:
    """Run the command.

    Args:
        argv: its arguments.
        description: of the command, for ``--help``.

    Raises:
        ValueError, OSError: an argument or a file cannot be used, or the run has not ended.
    """
    parser = Parser(prog="humanline chat", description=description, allow_abbrev=False)
    parser.add_argument("place", metavar="RUN_OR_MODEL", help="A run's folder, a model's folder, or a model name.")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="checkpoint-N of the run. Default: its export")
    parser.add_argument("--model", help="The base model of a LoRA adapter, if the adapter names none.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run code that is beside the model.")
    parser.add_argument("--prompt", metavar="TEXT", help="Print the answer to one text, and end.")
    parser.add_argument("--system", metavar="TEXT", help="The system message.")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="Of an answer. Default: %(default)s")
    parser.add_argument(
        "--temperature", type=float, help="0: always the most probable token. Default: the model's generation config"
    )
    parser.add_argument("--seed", type=int, default=0, help="Of the samples. Default: %(default)s")
    options = parser.parse_args(argv)
    if options.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens: expected an integer >= 1, got {options.max_new_tokens}")
    if options.temperature is not None and not 0 <= options.temperature < math.inf:
        raise ValueError(f"--temperature: expected a finite number >= 0, got {options.temperature}")

    refuse_absent(options.place, A_MODEL)

    import torch
    from transformers import set_seed

    from humanline_fused.trained.dialogue import Dialogue
    from humanline_fused.trained.stored_model import find_model

    stored = find_model(
        options.place, checkpoint=options.checkpoint, base=options.model, trust_remote_code=options.trust_remote_code
    )
    tokenizer = stored.load_tokenizer()
    model = stored.load().eval()
    if torch.cuda.is_available() and not stored.settings.get("use_cpu"):
        model = model.to("cuda")
    set_seed(options.seed)
    talk = Dialogue(model, tokenizer, options.max_new_tokens, options.temperature, options.system)
    if not talk.has_template:
        print("no chat template: every text is continued as it is, without the ones before", file=sys.stderr)
    if options.prompt is not None:
        talk.answer(options.prompt)
        return
    for line in _lines():
        if line == ANEW:
            talk.begin_anew()
            continue
        try:
            talk.answer(line)
        except ValueError as error:
            print(f"humanline chat: {escaped(one_line(error))}; {ANEW} begins anew", file=sys.stderr)


def _lines() -> Iterator[str]:
    """Yield the lines of stdin that have a text, with its spaces; on a terminal behind a prompt."""
    if not sys.stdin.isatty():
        yield from (text for line in sys.stdin if (text := line.rstrip("\n")).strip())
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (edits the lines of input)
    print(f"{ANEW} begins a new conversation, Ctrl-D ends", file=sys.stderr)
    with contextlib.suppress(EOFError):
        while True:
            if (text := input("> ")).strip():
                yield text
