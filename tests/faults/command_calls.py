"""The command line with random arguments."""

import random
from pathlib import Path

from tests.faults.forked_runs import HUNG, Ended, arguments, forked
from tests.faults.kills import TRACEBACK
from tests.faults.outcome import Fault, Outcome

WORDS = (
    "", "-", "--", "x", "-1", "0", "1", "2.5", "1e400", "nan", "inf", "true", "null", "[]", "{}", '{"a": 1}', "a=b",
    "start", "pairs.jsonl", "labels.jsonl", "rounds.jsonl", "pairs.yaml", "/", ".", "absent", "a\nb", "ü", "math:sqrt",
    "\udcff",
)  # fmt: skip
OPTIONS = {
    "train": ("--config", "--model", "--dataset", "--objective", "--max_steps", "--sync_every", "--reference", "--beta",
              "--log_epsilon_P", "--head", "--layout", "--columns", "--reward", "--resume_from_checkpoint",
              "--max_length", "--learning_rate", "--dataset_split", "--impl", "--objective_kwargs", "--perception",
              "--absent", "--modl"),
    "data": ("--objective", "--model", "--max_length", "--split", "--columns", "--train_on", "--strict", "--absent"),
    "diagnose": ("--model", "--objective", "--max_length", "--columns", "--absent"),
    "plot": ("--output", "--absent"),
    "show": ("--step", "--example", "--checkpoint", "--model", "--dataset", "--output", "--absent"),
    "info": ("--absent",),
    "chat": ("--prompt", "--system", "--checkpoint", "--model", "--temperature", "--max_new_tokens", "--seed",
             "--absent"),
    "merge": ("--output", "--dtype", "--absent"),
    "fit": ("--model", "--tokens", "--dtype", "--bf16", "--reference", "--lora_r", "--absent"),
}  # fmt: skip
RIGHT = {
    "train": arguments("pairs, look-ahead, best model", "run"),
    "chat": ["chat", "start", "--prompt=w1", "--max_new_tokens=4"],
    "fit": ["fit", "--model=start", "--tokens=16"],
}
"""Commands that succeed if nothing is added."""


class Commands:
    """Calls of the command line, in a folder with inputs for runs.

    Args:
        here: the folder.
    """

    def __init__(self, here: Path) -> None:
        self.here = here

    def __call__(self, seed: int) -> Fault:
        draw = random.Random(seed)
        command = draw.choice((*OPTIONS, "train", "train", "absent"))
        argv = [command] if draw.random() < 0.97 else []
        if command in RIGHT and draw.random() < 0.5:
            argv = [*RIGHT[command]]
        for _ in range(draw.choice((0, 1, 1, 2, 3))):
            if options := OPTIONS.get(command):
                argv.append(draw.choice(options))
            if draw.random() < 0.9:
                argv.append(draw.choice(WORDS))
        if command == "train":
            argv += ["--use_cpu=true", "--report_to=none", "--dry_run=true"]
            argv += [f"--output_dir=run-{seed}"]
        if command == "plot" and "--output" not in argv:
            argv += ["--output", f"plot-{seed}.png"]
        argv = [word.replace("\0", "") for word in argv]
        ended = forked(self.here, argv)
        outcome, said = judged(ended)
        return Fault("call", seed, f"command line, {command}", outcome, f"{argv!r}: {said}")


def judged(ended: Ended) -> tuple[Outcome, str]:
    if ended.status == HUNG:
        return Outcome.LOST, "it hangs"
    if TRACEBACK in ended.said:
        return Outcome.TRACEBACK, ended.err[-700:]
    if ended.status == 0:
        return Outcome.HARMLESS, ""
    (*_, line) = ended.err.strip().splitlines() or [""]
    if ended.status == 2 and "error: " in line:
        return Outcome.REFUSED, line
    return Outcome.TRACEBACK, f"status {ended.status}, {line}"
