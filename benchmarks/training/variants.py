"""The trainers that are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import Trainer

from benchmarks.objectives import OBJECTIVES
from benchmarks.peers import trainers
from benchmarks.peers.installed import TRL_VERSION
from benchmarks.peers.trainers import Record
from benchmarks.training.setting import Setting
from humanline_fused import __version__
from humanline_fused.training import HumanlineConfig, HumanlineTrainer

Build = Callable[[Setting, Any, Any, list[Record], dict[str, Any]], Trainer]
"""Of a setting, its model, its tokenizer, its records and the arguments that all have in common."""


@dataclass(frozen=True)
class Variant:
    """One trainer.

    Attributes:
        key: its name for ``--variants``.
        name: its name in the tables.
        source: whose code runs, with which settings.
        obstacle: why it cannot run here, or None.
        preload: imports modules that are no part of its memory.
        same_gradients: in how many steps, from the first, its gradients are humanline's by definition; None: in all.
        same_bits: whether on a CPU they are so to the last bit.
    """

    key: str
    name: str
    source: str
    build: Build
    obstacle: Callable[[], str | None] = lambda: None
    preload: Callable[[], object] = lambda: None
    same_gradients: int | None = None
    same_bits: bool = False


def _ours(
    setting: Setting, model: Any, tokenizer: Any, records: list[Record], arguments: dict[str, Any], **settings: Any
) -> Trainer:
    common = {"objective": "dpo", "beta": OBJECTIVES["dpo"].settings["beta"], "max_length": setting.T}
    config = HumanlineConfig(**arguments, **common, **settings)
    return HumanlineTrainer(model, config, train_dataset=records, processing_class=tokenizer)


def _peers(build: Callable[..., Trainer]) -> Build:
    """Of one that takes the records in their order."""

    def build_in_order(setting: Setting, model: Any, tokenizer: Any, records: list[Record], arguments: Any) -> Trainer:
        in_order = [record for step in setting.steps_of(records) for record in step]
        return build(model, tokenizer, in_order, setting.T, arguments)

    return build_in_order


PLAIN, COPY, LOOKAHEAD, TRL, HALOS = (
    "plain loss, frozen model",
    "humanline, copy",
    "humanline, look-ahead",
    f"TRL {TRL_VERSION}, synced reference",
    "as HALOs",
)
OURS = f"humanline_fused {__version__}: HumanlineTrainer"

VARIANTS = (
    Variant(
        "plain",
        PLAIN,
        f"{OURS}, clamp=False, reference='frozen'",
        partial(_ours, clamp=False, reference="frozen"),
        same_gradients=2,  # the policy at the start is humanline's reference in the second step too
    ),
    Variant(
        "copy",
        COPY,
        f"{OURS}, reference='copy', sync_every=1",
        partial(_ours, reference="copy", sync_every=1),
        same_bits=True,
    ),
    Variant(
        "lookahead",
        LOOKAHEAD,
        f"{OURS}, reference='lookahead', sync_every=1",
        partial(_ours, reference="lookahead", sync_every=1),
        same_bits=True,
    ),
    Variant(
        "trl",
        TRL,
        trainers.TRL,
        _peers(trainers.trl_trainer),
        trainers.trl_obstacle,
        trainers.import_trl,
        same_gradients=1,  # it syncs after the update, so from the second step on every log-ratio is 0
    ),
    Variant("halos", HALOS, trainers.HALOS, _peers(trainers.halos_trainer)),
)

KEYS = tuple(variant.key for variant in VARIANTS)


def available(keys: Sequence[str]) -> tuple[list[Variant], list[str]]:
    """The variants of these keys that can run here, and a line on each that cannot."""
    obstacles = [(variant, variant.obstacle()) for variant in VARIANTS if variant.key in keys]
    return (
        [variant for variant, obstacle in obstacles if obstacle is None],
        [f"Left out: {variant.name}: {obstacle}" for variant, obstacle in obstacles if obstacle],
    )
