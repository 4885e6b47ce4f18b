"""Settings of a run with random values."""

import math
import random
import warnings
from pathlib import Path
from typing import Any, get_type_hints

from humanline_fused.training import HumanlineConfig
from humanline_fused.training.setting_types import own_settings
from tests.faults.outcome import Fault, Outcome

OWN = own_settings(HumanlineConfig, "humanline_fused")

GIVEN: dict[str, Any] = {"output_dir": "run", "use_cpu": True, "report_to": "none"}

JUNK: tuple[Any, ...] = (
    None, "", "x", "none", "true", "1", 0, 1, -1, 2, 7, 10**400, 0.0, 0.5, -0.5, 1e-300, 1e300, math.nan, math.inf,
    -math.inf, True, False, [], ["x"], [1], {}, {"x": 1}, (1, 2), object(), b"x", 1j, Path("x"),
)  # fmt: skip


def call(seed: int) -> Fault:
    """Make settings with one or two random values."""
    draw = random.Random(seed)
    names = draw.sample(OWN, draw.choice((1, 1, 2)))
    given = {name: draw.choice(JUNK) for name in names}
    outcome, said = judged(given)
    return Fault("call", seed, "settings", outcome, f"{given!r:.200}: {said}")


def judged(given: dict[str, Any]) -> tuple[Outcome, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = HumanlineConfig(**GIVEN | given)
    except (ValueError, TypeError) as error:
        named = any(name in str(error) for name in given)
        return (Outcome.REFUSED, str(error)) if named else (Outcome.TRACEBACK, f"names no setting: {error}")
    except Exception as error:
        return Outcome.TRACEBACK, f"{type(error).__name__}: {error}"
    hints = {name: str(hint) for name, hint in get_type_hints(HumanlineConfig).items()}
    for name, value in given.items():
        if not _fits(name, value, hints[name]):
            return Outcome.SILENT, f"{name}: {hints[name]} accepted {value!r}"
        if value and getattr(config, name) != value and not isinstance(value, bool | str | dict):
            return Outcome.SILENT, f"{name}: {value!r} became {getattr(config, name)!r}"
    return Outcome.HARMLESS, ""


def _fits(name: str, value: Any, hint: str) -> bool:
    """Return whether a value is of a setting's type, which is written as in its annotation."""
    if value is None:
        return "None" in hint
    if isinstance(value, bool):
        return "bool" in hint or name == "scale_rewards"
    if isinstance(value, float) and not math.isfinite(value):
        return not math.isnan(value) and "float" in hint
    if isinstance(value, int):
        return "int" in hint or "float" in hint
    if isinstance(value, float):
        return "float" in hint
    if isinstance(value, str | Path):
        return "str" in hint or "Literal" in hint
    if isinstance(value, dict):
        return "dict" in hint
    return isinstance(value, list) and "list" in hint
