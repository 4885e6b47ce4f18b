"""The table of built-in objectives, and lookup of an objective by its setting."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from humanline_fused.training.data.forms import FORMS, Form
from humanline_fused.training.data.rows.records import PROMPTS, DataType
from humanline_fused.training.named import import_named
from humanline_fused.training.objectives.dpo import DPO, DPOSettings
from humanline_fused.training.objectives.grpo import GRPO, GRPOSettings
from humanline_fused.training.objectives.kto import KTO, KTOSettings
from humanline_fused.training.objectives.objective import Objective, ScoredTokens
from humanline_fused.validation.values import nearest

OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in (DPO, KTO, GRPO)}
"""Built-in objectives by name; the first is the default."""

DEFAULT = next(iter(OBJECTIVES))


@dataclass
class ObjectiveSettings(DPOSettings, KTOSettings, GRPOSettings):
    """Settings of all built-in objectives."""


def names_taking(kind: DataType) -> list[str]:
    """Return the names of the built-in objectives that accept a type of data, those first that need no conversion."""
    types = {name: objective.form.types for name, objective in OBJECTIVES.items()}
    return sorted((name for name in types if kind in types[name]), key=lambda name: types[name].index(kind))


def find_objective(name: str, arguments: Mapping[str, Any] | None = None) -> Objective:
    """Return the objective with the given name.

    Args:
        name: a name of the table, or ``module:Class`` of a subclass of :class:`Objective`.
        arguments: keyword arguments of the class.

    Raises:
        ValueError: no objective has this name; the message lists the table and the nearest name.
        TypeError: the class is not an objective, is incomplete, or does not accept the arguments.

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
    """Raise TypeError unless the object is an objective with all its parts; the message names the missing part."""
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


def is_in_table(objective: Objective) -> bool:
    """Return True for a built-in objective."""
    return OBJECTIVES.get(objective.name) is type(objective)


def foreign_settings(objective: Objective) -> dict[str, str]:
    """Return the settings that belong only to other objectives, each with the name of its objective."""
    mine = set(objective.own_settings())
    others = [kind() for kind in OBJECTIVES.values()]
    return {setting: other.name for other in others for setting in other.own_settings() if setting not in mine}


@dataclass(frozen=True)
class Sampled:
    """Consumer of the prompts of a dataset, whose completions the policy samples, for any objective.

    Attributes:
        name: what is sampled, for error messages.
    """

    name: str
    types = (PROMPTS,)

    def takers(self, kind: DataType) -> list[str]:
        """Return the names of the objectives that accept this type of data with its completions."""
        return names_taking(kind)


ROUND = Sampled("a round")
ANSWER = Sampled("an evaluation's answer (eval_answers=True)")


class Recorded(Objective):
    """An objective known from a checkpoint alone, whose class cannot be imported: enough to score and show its tokens.

    Args:
        identity: ``objective``, ``form`` and ``mismatched``, as in a run's identity.
    """

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self.name, self.form, self.mismatched = identity["objective"], FORMS[identity["form"]], identity["mismatched"]

    def loss(self, tokens: ScoredTokens, config: Any) -> Any:
        raise RuntimeError(f"{self.name}: expected the class of this objective, which cannot be imported")


def recorded_identity(objective: Objective) -> dict[str, Any]:
    """The name of an objective; of one outside the table also what :class:`Recorded` needs."""
    if is_in_table(objective):
        return {"objective": objective.name}
    form = type(objective.form).__name__.lower()
    return {"objective": objective.name, "form": form, "mismatched": objective.mismatched}


def recorded_objective(identity: Mapping[str, Any], name: str, arguments: Mapping[str, Any] | None) -> Objective:
    """The objective of a run, from its identity and from ``objective`` and ``objective_kwargs`` in its settings.

    Raises:
        ValueError, TypeError: its class cannot be imported, and neither can the form of its data.
    """
    if identity["objective"] in OBJECTIVES and "form" not in identity:
        return find_objective(identity["objective"])
    try:
        return find_objective(name, arguments)
    except (ValueError, TypeError):
        if identity.get("form") not in FORMS:
            raise
        return Recorded(identity)
