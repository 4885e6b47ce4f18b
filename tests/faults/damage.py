"""Files of a run that are damaged, and what then continues, shows, plots or starts from them."""

import json
import random
import re
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.faults.folders import LOGS, contents, difference, lines_of
from tests.faults.forked_runs import FORMS, HUNG, Ended, arguments, forked
from tests.faults.kills import TRACEBACK
from tests.faults.outcome import Fault, Outcome

KEPT = {"save_total_limit": 3}
RUN = "run"


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _zeroed_part(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    length = min(draw.choice((16, 512, 4096)), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


WAYS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "one bit flipped": _flip,
    "cut off": lambda content, draw: content[: draw.randrange(len(content))],
    "zeroed": lambda content, draw: bytes(len(content)),
    "a part zeroed": _zeroed_part,
    "garbage behind it": lambda content, draw: content + draw.randbytes(draw.randint(1, 64)),
    "JSON that is no object": lambda content, draw: draw.choice((b"[]", b"3", b"null", b'"text"', b"{", b"{}")),
}
"""Damage to what is in a file. The others are :data:`REMOVED` and :data:`SWAPPED`."""

REMOVED, SWAPPED = "removed", "another run's"
SEEN_BY_A_LOADER = {"cut off", "zeroed", "JSON that is no object", REMOVED}
"""Damage to a model's weights that does not depend on numbers: a changed number is another model."""


class Damages:
    """Damage to finished runs, and to runs that were stopped after step 5 of 6.

    Args:
        here: folder with the runs' inputs.
    """

    def __init__(self, here: Path) -> None:
        self.here = here

    def _finished(self, name: str, form: str, **settings: Any) -> Path:
        """Return the folder that a run of this form leaves in a folder of its own."""
        folder = self.here / name
        folder.mkdir()
        self._link_inputs(folder)
        ended = forked(folder, arguments(form, RUN, **KEPT, **settings))
        assert ended.status == 0, ended.said
        return folder / RUN

    def _link_inputs(self, folder: Path) -> None:
        for given in (self.here / "start", *self.here.glob("*.jsonl"), *self.here.glob("*.yaml")):
            (folder / given.name).symlink_to(given)

    @cached_property
    def finished(self) -> dict[str, Path]:
        return {form: self._finished(f"finished-{number}", form) for number, form in enumerate(FORMS)}

    @cached_property
    def others(self) -> dict[str, Path]:
        """Runs of the same forms with another seed."""
        return {form: self._finished(f"other-{number}", form, seed=7) for number, form in enumerate(FORMS)}

    @cached_property
    def expected(self) -> dict[str, dict[str, Any]]:
        """By form: the contents of a run that ended without damage."""
        return {form: contents(folder) for form, folder in self.finished.items()}

    @cached_property
    def pages(self) -> dict[str, str]:
        """By form: the page that ``show`` makes of step 4."""
        made = {}
        for form, folder in self.finished.items():
            ended = forked(folder.parent, ["show", RUN, "--step=4"])
            assert ended.status == 0, ended.said
            made[form] = _page(folder)
        return made

    def __call__(self, seed: int) -> Fault:
        """Damage one file of a copy of a run, and use the run."""
        draw = random.Random(seed)
        form, use = draw.choice(list(FORMS)), *draw.choices(list(USES), (55, 25, 4, 16))
        folder = self.here / f"damaged-{seed}"
        folder.mkdir()
        try:
            self._link_inputs(folder)
            run = Path(shutil.copytree(self.finished[form], folder / RUN))
            if use == "resumed":
                stop_after_five(run)
            name, way = self._damage(run, form, use, draw)
            before = {log: (run / log).read_bytes() for log in LOGS if (run / log).is_file()}
            outcome, said = getattr(self, USES[use])(form, run, name, before)
        finally:
            shutil.rmtree(folder)
        what = f"{kind_of(name)}, {use}"
        return Fault("damage", seed, what, outcome, f"{name}, {way}, {form}: {said}")

    def _damage(self, run: Path, form: str, use: str, draw: random.Random) -> tuple[str, str]:
        """Damage a file; return its name and the way."""
        names = sorted(str(file.relative_to(run)) for file in run.rglob("*") if file.is_file())
        if use == "plotted":
            names = ["metrics.jsonl"]
        if use == "shown":  # what the page of step 4 is made of
            names = [name for name in names if READ_BY_SHOW.match(name)]
        if use == "started from":
            names = [name for name in names if "/" not in name and READ_BY_LOADERS.match(name)]
        kinds = sorted({kind_of(name) for name in names})
        kind = draw.choice(kinds)
        name = draw.choice([name for name in names if kind_of(name) == kind])
        file, ways = run / name, [*WAYS, REMOVED, SWAPPED]
        if use == "started from":
            ways = [way for way in ways if way in SEEN_BY_A_LOADER]
        while True:
            way, content = draw.choice(ways), file.read_bytes()
            if way == REMOVED:
                file.unlink()
                return name, way
            other = self.others[form] / name
            changed = other.read_bytes() if way == SWAPPED and other.is_file() else content
            if way in WAYS and content:
                changed = WAYS[way](content, draw)
            if changed != content:
                file.write_bytes(changed)
                return name, way
            if not content:
                file.write_bytes(b"\0")
                return name, "garbage behind it"

    def _resumed(self, form: str, run: Path, name: str, before: dict[str, bytes]) -> tuple[Outcome, str]:
        ended = forked(run.parent, arguments(form, RUN, **KEPT))
        if wrong := _wrong(ended, name):
            return wrong
        found, expected = contents(run), self.expected[form]
        # The run goes on, and what it did not write again is left as it is: a page of docs says which files.
        left = {name} if name in LOGS or name in LEFT or name.startswith("checkpoint-") else set()
        differs = difference(
            {n: c for n, c in found.items() if n not in left}, {n: c for n, c in expected.items() if n not in left}
        )
        if name in LOGS and not differs:
            differs = self._log_differs(run / name, before.get(name), self.finished[form] / name, ended)
        return (Outcome.SILENT if differs else Outcome.HARMLESS), differs

    def _log_differs(self, log: Path, damaged: bytes | None, whole: Path, ended: Ended) -> str:
        """Return what is wrong in a log with a damaged part: a new line that is another, or an unreported loss."""
        expected, found = lines_of(whole), lines_of(log)
        new = [line for line in expected if not isinstance(line, dict) or line.get("step", 0) > 4]
        if found[len(found) - len(new) :] != new:
            return f"the new lines of {log.name}"
        broken = [line for line in (damaged or b"").split(b"\n")[:-1] if not _is_object(line)]
        if broken and str(log.name) not in ended.said:
            return f"{len(broken)} damaged lines of {log.name}, of which nothing is said"
        return ""

    def _shown(self, form: str, run: Path, name: str, before: dict[str, bytes]) -> tuple[Outcome, str]:
        ended = forked(run.parent, ["show", RUN, "--step=4"])
        if wrong := _wrong(ended, name):
            return wrong
        same = _page(run) == self.pages[form]
        return (Outcome.HARMLESS, "") if same else (Outcome.SILENT, "another page")

    def _plotted(self, form: str, run: Path, name: str, before: dict[str, bytes]) -> tuple[Outcome, str]:
        ended = forked(run.parent, ["plot", RUN])
        if wrong := _wrong(ended, name):
            return wrong
        broken = [line for line in before.get(name, b"").split(b"\n")[:-1] if not _is_object(line)]
        if broken and name not in ended.said:
            return Outcome.SILENT, f"{len(broken)} damaged lines, of which nothing is said"
        return Outcome.HARMLESS, ""

    def _started(self, form: str, run: Path, name: str, before: dict[str, bytes]) -> tuple[Outcome, str]:
        """Start another run from the exported model."""
        once = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        for folder in (run, self.finished[form]):
            output = f"from-{folder.parent.name}"
            ended = forked(run.parent, arguments(form, output, model=folder, **once))
            if folder == run and (wrong := _wrong(ended, name)):
                return wrong
        made = [
            (run.parent / f"from-{f.parent.name}" / "model.safetensors").read_bytes()
            for f in (run, self.finished[form])
        ]
        return (Outcome.HARMLESS, "") if made[0] == made[1] else (Outcome.SILENT, "another model")


USES = {"resumed": "_resumed", "shown": "_shown", "plotted": "_plotted", "started from": "_started"}
READ_BY_SHOW = re.compile(r"checkpoint-4/(?!.*(training_args|scheduler|rng_state))|settings\.json|tokens/|completions")
READ_BY_LOADERS = re.compile(r"model\.safetensors|config\.json|tokenizer")
LEFT = {"initial_eval_logp.pt"}
"""Files that a resumed run reads or leaves, and does not write again."""


def stop_after_five(run: Path) -> None:
    """Leave of a finished run what a run that is killed after step 5 leaves."""
    shutil.rmtree(run / "checkpoint-6")
    for file in run.iterdir():
        if file.is_file() and file.name not in (*LOGS, *LEFT, "settings.json"):
            file.unlink()
    for log in LOGS:
        if (run / log).is_file():
            lines = (run / log).read_text().splitlines(keepends=True)
            (run / log).write_text("".join(line for line in lines if json.loads(line)["step"] <= 5))


def kind_of(name: str) -> str:
    """Return the kind of a file by its name in the run's folder.

    >>> kind_of("checkpoint-4/optimizer.pt"), kind_of("tokens/1f/ids.npy"), kind_of("config.json")
    ('checkpoint: optimizer.pt', 'tokens', 'export')
    """
    place, _, file = name.partition("/")
    if place.startswith("checkpoint-"):
        return f"checkpoint: {file}"
    if file:
        return place
    return name if name in (*LOGS, *LEFT, "settings.json") else "export"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), dict)
    except ValueError:
        return False


def _page(run: Path) -> str:
    return (run / "show-step-4.html").read_text().replace(str(run.resolve()), RUN)


def _wrong(ended: Ended, name: str) -> tuple[Outcome, str] | None:
    """Return the outcome of a command that did not succeed."""
    if ended.status == HUNG:
        return Outcome.LOST, "it hangs"
    if TRACEBACK in ended.said:
        return Outcome.TRACEBACK, ended.err[-1500:]
    if not ended.status:
        return None
    (*_, line) = ended.err.strip().splitlines() or [""]
    place, _, file = name.rpartition("/")
    if ": error: " not in line or not any(part in line for part in (file, place.split("/")[0] or RUN)):
        return Outcome.TRACEBACK, f"status {ended.status}, and the last line names neither file nor folder: {line}"
    if name.startswith("checkpoint-") and name not in line and " --step" not in line and "show" not in line:
        return Outcome.LOST, line
    return Outcome.REFUSED, line
