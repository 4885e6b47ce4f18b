"""The table of objectives, and how a setting names one."""

import inspect
from collections.abc import Mapping
from typing import Any

from humanline_fused.training.data.forms import Form
from humanline_fused.training.data.records import PROMPTS, DataType
from humanline_fused.training.named import import_named
from humanline_fused.training.objectives.dpo import DPO, DPOSettings
from humanline_fused.training.objectives.grpo import GRPO, GRPOSettings
from humanline_fused.training.objectives.kto import KTO, KTOSettings
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.validation.values import nearest

OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in (DPO, KTO, GRPO)}
"""By name; the first is the default."""

DEFAULT = next(iter(OBJECTIVES))


class ObjectiveSettings(DPOSettings, KTOSettings, GRPOSettings):
    """The settings of every objective of the table."""


def names_taking(kind: DataType) -> list[str]:
    """The objectives of the table that take a type of data."""
    return [name for name, objective in OBJECTIVES.items() if kind in objective.form.types]


def find_objective(name: str, arguments: Mapping[str, Any] | None = None) -> Objective:
    """The objective that a setting names.

    Args:
        name: of the table, or ``module:Class`` of a subclass of :class:`Objective`.
        arguments: of the class.

    Raises:
        ValueError: there is no such objective; the message lists the table and the nearest name.
        TypeError: it is no objective, lacks a part, or does not take the arguments.

    >>> find_objective("kto").mismatched
    True
    """
    if not isinstance(name, str) or (name not in OBJECTIVES and ":" not in name):
        raise ValueError(
            f"objective: expected {', '.join(map(repr, OBJECTIVES))} or 'module:Class' of your own, got {name!r}"
            + nearest(name, OBJECTIVES)
        )
    kind = OBJECTIVES.get(name) or import_named("objective", name, "class")
    if not (inspect.isclass(kind) and issubclass(kind, Objective)):
        raise TypeError(f"objective: expected {name!r} to be a subclass of humanline_fused.training.Objective")
    try:
        objective = kind(**(arguments or {}))
    except TypeError as error:
        raise TypeError(f"objective_kwargs: {name} does not take {dict(arguments or {})}: {error}") from error
    check_parts(objective)
    return objective


def check_parts(objective: object) -> None:
    """Raise TypeError, with the name of the part, unless the object has all that an objective needs."""
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective: expected an instance of humanline_fused.training.Objective, got {type(objective).__name__}"
        )
    kind = type(objective).__name__
    name, form = (getattr(objective, part, None) for part in ("name", "form"))
    if not isinstance(name, str):
        raise TypeError(f"objective: {kind}.name: expected a string, got {name!r}")
    if not isinstance(form, Form):
        raise TypeError(f"objective: {kind}.form: expected PAIRS, LABELS or GROUPS, got {form!r}")
    if type(objective).loss is Objective.loss and type(objective).compute is Objective.compute:
        raise TypeError(f"objective: {kind}.loss: expected a method loss(tokens, config), got none")


def path_of(objective: Objective) -> str:
    """The setting that names an objective: its name in the table, or ``module:Class``."""
    kind = type(objective)
    return kind.name if is_in_table(objective) else f"{kind.__module__}:{kind.__qualname__}"


def is_in_table(objective: Objective) -> bool:
    """Whether the package itself has this objective."""
    return OBJECTIVES.get(objective.name) is type(objective)


def foreign_settings(objective: Objective) -> dict[str, str]:
    """The settings that this objective does not have, each with the name of one that has it."""
    mine = set(objective.own_settings())
    return {
        setting: other.name for other in OBJECTIVES.values() for setting in other.own_settings() if setting not in mine
    }


class Round:
    """Takes the prompts of a dataset, to sample completions for any objective."""

    name = "a round"
    types = (PROMPTS,)

    def takers(self, kind: DataType) -> list[str]:
        """The objectives that take this type of data without rounds."""
        return names_taking(kind)


ROUND = Round()
