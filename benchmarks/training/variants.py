"""The trainers that are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import Trainer

from benchmarks.objectives import OBJECTIVES
from benchmarks.peers import trainers
from benchmarks.peers.installed import TRL_VERSION, installed_obstacle
from benchmarks.peers.trainers import Task
from humanline_fused import __version__
from humanline_fused.training import HumanlineConfig, HumanlineTrainer

Build = Callable[[Task], Trainer]


@dataclass(frozen=True)
class Variant:
    """One trainer."""

    key: str  # for --variants
    name: str  # in the tables
    source: str  # whose code runs, with which settings
    build: Build
    obstacle: Callable[[], str | None] = lambda: None  # why it cannot run here, or None
    preload: Callable[[], object] = lambda: None  # imports modules that are no part of its memory
    same_gradients: int | None = None  # first steps in which they are humanline's by definition; None: all
    same_bits: bool = False  # on a CPU they are so to the last bit
    objectives: Sequence[str] = tuple(OBJECTIVES)


def _ours(**settings: Any) -> tuple[str, Build]:
    """Source and build of HumanlineTrainer with these settings."""

    def build(task: Task) -> Trainer:
        beta = OBJECTIVES[task.objective].settings["beta"]
        common = {"objective": task.objective, "beta": beta, "max_length": task.max_length, "eval_fraction": 0}
        config = HumanlineConfig(**task.arguments, **common, **settings)
        return HumanlineTrainer(task.model, config, train_dataset=task.records, processing_class=task.tokenizer)

    shown = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return f"humanline_fused {__version__}: HumanlineTrainer, {shown}", build


def _layout(name: str) -> tuple[str, Build]:
    return _ours(reference="lookahead", sync_every=1, layout=name)


def _no_trl() -> str | None:
    return installed_obstacle("trl", TRL_VERSION, "accelerate", "datasets")


PLAIN, COPY, LOOKAHEAD = "plain loss, frozen model", "humanline, copy", "humanline, look-ahead"
SYNCED_TRL, HALOS = f"TRL {TRL_VERSION}, synced reference", "as HALOs"

REFERENCES = (
    # The policy at the start is humanline's reference in the second step too.
    Variant("plain", PLAIN, *_ours(clamp=False, reference="frozen"), same_gradients=2),
    Variant("copy", COPY, *_ours(reference="copy", sync_every=1), same_bits=True),
    Variant("lookahead", LOOKAHEAD, *_ours(reference="lookahead", sync_every=1), same_bits=True),
    Variant(
        "trl-synced",
        SYNCED_TRL,
        trainers.TRL,
        trainers.synced_trl_trainer,
        _no_trl,
        trainers.import_trl,
        same_gradients=1,  # it syncs after the update, so from the second step on every log-ratio is 0
        objectives=["dpo"],
    ),
    Variant("halos", HALOS, trainers.HALOS, trainers.halos_trainer, objectives=["dpo"]),
)
"""Ways to have a reference, which are compared on short sequences of about the same length."""

PADDED, SORTED, SHARED = "humanline, padded", "humanline, sorted", "humanline, shared prompts"
TRL, IN_TRL = f"TRL {TRL_VERSION}", "humanline in TRL's trainer"

LAYOUTS = (
    Variant("padded", PADDED, *_layout("padded")),
    Variant("sorted", SORTED, *_layout("sorted"), objectives=["dpo", "grpo"]),
    Variant("shared_prompt", SHARED, *_layout("shared_prompt")),
    Variant(
        "trl",
        TRL,
        trainers.TRL_OWN.format("DPOTrainer or KTOTrainer"),
        trainers.trl_trainer,
        _no_trl,
        trainers.import_trl,
        same_gradients=2,  # as the plain loss
        objectives=["dpo", "kto"],
    ),
    Variant(
        "trl-packed", f"{TRL}, padding_free", "", trainers.trl_trainer, lambda: trainers.NO_PACKING, objectives=["dpo"]
    ),
    Variant("trl-grpo", TRL, "", trainers.trl_trainer, lambda: trainers.NO_GROUPS, objectives=["grpo"]),
    Variant(
        "in-trl",
        IN_TRL,
        trainers.IN_TRL.format("HumanlineDPOTrainer or HumanlineKTOTrainer"),
        trainers.humanline_in_trl,
        _no_trl,
        trainers.import_humanline_in_trl,
        objectives=["dpo", "kto"],
    ),
)
"""Ways to lay a step's sequences out, which are compared on sequences of realistic lengths."""

VARIANTS = (*REFERENCES, *LAYOUTS)
KEYS = tuple(variant.key for variant in VARIANTS)
REFERENCE_KEYS = tuple(variant.key for variant in REFERENCES)
LENGTHS_KEYS = (*(variant.key for variant in LAYOUTS), "halos")


def available(keys: Sequence[str], objective: str) -> list[Variant]:
    """The variants of these keys that can run here; a line is printed on each that cannot."""
    here = []
    for variant in (variant for variant in VARIANTS if variant.key in keys and objective in variant.objectives):
        if obstacle := variant.obstacle():
            print(f"Left out: {variant.name}: {obstacle}")
        else:
            here.append(variant)
    return here
