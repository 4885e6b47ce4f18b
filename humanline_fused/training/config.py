"""Settings of a training run: transformers' TrainingArguments, humanline's own fields, and defaults for both."""

import copy
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from humanline_fused.training.conflicts import refuse_conflicts
from humanline_fused.training.data.rows.columns import read_columns
from humanline_fused.training.data_settings import DataSettings, TrainOn
from humanline_fused.training.folder_settings import FolderSettings
from humanline_fused.training.foreign_arguments import OF_SETTINGS, refuse_foreign
from humanline_fused.training.model_settings import ModelSettings
from humanline_fused.training.objectives.metrics import less_is_better
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.objectives.settings import CLAMP, SAMPLING, PerceptionSetting, expect, json_mapping
from humanline_fused.training.objectives.table import (
    DEFAULT,
    OBJECTIVES,
    ObjectiveSettings,
    check_parts,
    find_objective,
    foreign_settings,
)
from humanline_fused.training.setting_types import check_types, own_settings
from humanline_fused.training.trainer_settings import check_trainer_settings
from humanline_fused.types import HumanlineClamp, Impl

if TYPE_CHECKING:
    ObjectiveSetting = str | Objective
else:
    ObjectiveSetting = str  # an option has one type

Reference = Literal["lookahead", "copy", "adapter", "frozen"]
Head = Literal["fused", "logits"]
LayoutSetting = Literal["auto", "shared_prompt", "sorted", "padded"]
ScaleRewards = Literal["group", "batch", "none"]

ROLLOUT = ("num_generations", "temperature", "top_p")
"""Settings that apply only to online rounds."""

SAMPLED = ("max_completion_length", "rollout_batch_size", "reward_timeout", "eval_answers")
"""Settings that apply only where a reward function scores samples: in rounds, and in an evaluation."""

PATHS = ("model", "dataset", "eval_dataset", "resume_from_checkpoint")
"""Settings that may be a path, beside ``output_dir``."""


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class HumanlineConfig(ObjectiveSettings, FolderSettings, DataSettings, ModelSettings, TrainingArguments):
    """Settings of a :class:`HumanlineTrainer`; every field is also a command-line option and a YAML key.

    ``clamp=False`` turns the clamp off and ``reference="frozen"`` turns the sync off. The four combinations are the
    paper's ablation; with both off the loss is the plain one. ``per_device_train_batch_size`` counts examples: pairs,
    or completions (KTO, GRPO). The losses' own fields are inherited from ``training/objectives``.

    Raises:
        ValueError: a setting is invalid; the message gives the expected and the actual value.

    Source: arXiv 2509.24207, sections 4 and 5.

    >>> HumanlineConfig(output_dir="run", objective="kto", sync_every=4, report_to="none", use_cpu=True).beta
    0.1
    """

    objective: ObjectiveSetting = field(
        default=DEFAULT,
        metadata=_help(f"The loss: {', '.join(OBJECTIVES)}, or your own as module:Class (docs/losses.md)."),
    )
    objective_kwargs: dict | str | None = field(
        default=None, metadata=_help("Arguments of your own objective, as JSON or as a YAML mapping.")
    )
    reference: Reference = field(
        default="lookahead",
        metadata=_help(
            "The reference. lookahead: the policy of up to sync_every updates ago, which scores the coming batches "
            "ahead; no second model. copy: a second model that is overwritten in place; the same numbers. adapter: "
            "the same for a LoRA policy, as a second adapter on its base weights. frozen: the initial policy, no sync."
        ),
    )
    sync_every: int | None = field(
        default=None,
        metadata=_help(
            "k: optimizer steps between two syncs of the reference. Default 1, the paper's for 8B models; "
            "docs/choosing.md begins without syncs. Unset if reference=frozen."
        ),
    )
    scale_rewards: ScaleRewards = field(
        default="group",
        metadata=_help(
            "Divisor of the advantages of data with rewards. group: the standard deviation of the group's rewards. "
            "batch: that of all rewards of the optimizer step. none: no divisor."
        ),
    )
    rollout_every: int | None = field(
        default=None,
        metadata=_help(
            "Online rounds: optimizer steps per round. A round begins with completions that the policy samples for new "
            "prompts, and trains on them. 1 is online training, 64 the paper's stale setting. Default: no rounds; the "
            "run trains on the dataset's completions (offline). With rounds the dataset needs only a prompt column."
        ),
    )
    reward: str | None = field(
        default=None,
        metadata=_help(
            "The reward function of the policy's samples as module:function, called as "
            "function(prompts=[...], completions=[...], **columns) -> list of float. Rounds train on the samples; an "
            "evaluation answers the prompts of an eval_dataset (eval_answers)."
        ),
    )
    eval_answers: bool = field(
        default=True,
        metadata=_help(
            "reward: with an eval_dataset an evaluation draws an answer to each of its prompts, and logs the mean "
            "reward as eval_reward."
        ),
    )
    num_generations: int = field(default=8, metadata=_help("rounds: samples per prompt, >= 2."))
    max_completion_length: int = field(default=256, metadata=_help("reward: maximum tokens of a sample."))
    temperature: float = field(
        default=1.0,
        metadata=_help(
            "rounds: sampling temperature, also of an evaluation's answers; 1 (with top_p 1) is the policy itself."
        ),
    )
    top_p: float = field(default=1.0, metadata=_help("rounds: probability mass of nucleus sampling."))
    rollout_batch_size: int = field(
        default=64, metadata=_help("reward: samples generated at once on each process; in rounds >= num_generations.")
    )
    reward_timeout: float = field(default=600.0, metadata=_help("reward: time limit of the function, seconds."))
    head: Head = field(
        default="fused",
        metadata=_help(
            "Computation of the logits. fused: the loss multiplies hidden states by the model's head, in chunks of the "
            "rows that count. logits: the model computes all logits; for a head that is more than a linear layer "
            "(with an adapter, quantised, sharded by itself)."
        ),
    )
    layout: LayoutSetting = field(
        default="auto",
        metadata=_help(
            "How the sequences of a batch stand in the model's input. shared_prompt: each shared prompt once, its "
            "completions behind it. sorted: padded rows; the examples of a step are sorted by length before they are "
            "cut into batches. padded: padded rows. auto: shared_prompt if a test finds the model exact with it, else "
            "sorted."
        ),
    )
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata=_help(
            "Token budget: maximum tokens of one forward pass through the model's body, on one process, with padding. "
            "A micro-batch with more is computed in several passes, of whole pairs, completions, or prompts with all "
            "of their completions; loss, gradient and metrics are those of the whole. Default: no maximum."
        ),
    )
    disable_dropout: bool = field(
        default=True, metadata=_help("Turn dropout off, so that policy and reference differ only by the updates.")
    )

    learning_rate: float = field(
        default=1e-6, metadata=_help("Initial learning rate. Retune by 0.1x to 4x when clamp or sync changes.")
    )
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata=_help("Learning-rate schedule."))
    warmup_steps: float = field(default=0.1, metadata=_help("Warm-up steps; a value below 1 is a share of all steps."))
    weight_decay: float = field(default=0.01, metadata=_help("Weight decay of AdamW."))
    logging_steps: float = field(default=10, metadata=_help("Steps between two log lines."))
    logging_first_step: bool = field(default=True, metadata=_help("Log the first step."))
    logging_nan_inf_filter: bool = field(default=False, metadata=_help("Hide NaN and infinite losses from the log."))
    remove_unused_columns: bool = field(default=False, metadata=_help("No effect: columns are read by name."))
    report_to: None | str | list[str] = field(  # noqa: RUF036 (HfArgumentParser wants None first)
        default="none", metadata=_help("tensorboard, wandb, trackio ... metrics.jsonl is always written.")
    )
    bf16: bool | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, metadata=_help("Compute in bfloat16. Default: on if the GPU supports it and fp16 is off.")
    )

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        known = [field.name for field in fields(cls) if field.init]
        refuse_foreign("HumanlineConfig", (name for name in settings if name not in known), OF_SETTINGS, known)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if isinstance(self.scale_rewards, bool):  # TRL accepts booleans
            self.scale_rewards = "group" if self.scale_rewards else "none"
        check_types(self, OWN - {"objective", "columns"})  # which have checks of their own
        schedules = [kind.value for kind in SchedulerType]
        self._expect("lr_scheduler_type", self.lr_scheduler_type in schedules, " or ".join(map(repr, schedules)))
        for name in ("learning_rate", "weight_decay", "warmup_steps", "logging_steps"):
            self._expect(name, 0 <= getattr(self, name) < float("inf"), "a finite number >= 0")
        check_trainer_settings(self)
        if isinstance(self.report_to, str) and "," in self.report_to:
            self.report_to = self.report_to.split(",")
        if self.bf16 is None:
            gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            self.bf16 = gpu and not (self.fp16 or self.use_cpu)  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not less_is_better(self.metric_for_best_model)
        super().__post_init__()  # which expands the ~ of output_dir
        for name in PATHS:
            if isinstance(given := getattr(self, name), str):
                setattr(self, name, os.path.expanduser(given))
        self._evaluates = self.eval_strategy != IntervalStrategy.NO
        evaluated = self._evaluates or self.save_strategy != SaveStrategy.BEST
        self._expect("eval_strategy", evaluated, "'steps' or 'epoch' with save_strategy='best'")
        if self.dry_run:
            self.save_strategy, self.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
            self.eval_on_start = self.load_best_model_at_end = False
        self.check_model()
        choices = {
            "train_on": TrainOn,
            "perception": PerceptionSetting,
            "reference": Reference,
            "impl": Impl,
            "head": Head,
            "layout": LayoutSetting,
            "scale_rewards": ScaleRewards,
        }
        for name, kind in choices.items():
            self._expect(name, getattr(self, name) in get_args(kind), " or ".join(map(repr, get_args(kind))))
        if isinstance(self.objective_kwargs, str):
            self.objective_kwargs = json_mapping("objective_kwargs", self.objective_kwargs)
        self.columns = read_columns(self.columns)
        self._beta_given = self.beta is not None
        self._take(self.make_objective())
        synced = self.reference != "frozen"
        if synced and self.sync_every is None:
            self.sync_every = 1
        never = "None with reference='frozen' (never synced; as an option, null takes a file's value back)"
        self._expect("sync_every", synced or self.sync_every is None, never)
        for name in ("sync_every", "max_length") if synced else ("max_length",):
            self._expect_integer(name, 1)
        for name in ("dataset_num_proc", "max_tokens_per_micro_batch"):
            if getattr(self, name) is not None:
                self._expect_integer(name, 1)
        HumanlineClamp(self.log_epsilon_P, self.log_epsilon_R)
        self.check_options()
        self._check_perception()
        self._check_rounds()
        self.check_fraction(rounds=self.rollout_every is not None)
        refuse_conflicts(self)
        if self.dry_run:
            self.push_to_hub, self.report_to = False, []

    def make_objective(self) -> Objective:
        """Return the objective: the given one, or the one named, constructed with ``objective_kwargs``.

        Raises:
            ValueError, TypeError: no objective has this name, or it is incomplete.
        """
        given = self.objective
        if self.objective_kwargs and (given in OBJECTIVES or isinstance(given, Objective)):
            raise ValueError(
                f"objective_kwargs: expected None with objective={self.objective_name!r}, which takes no arguments "
                f"here, got {self.objective_kwargs!r}"
            )
        if isinstance(given, Objective):
            check_parts(given)
            return given
        assert not isinstance(self.objective_kwargs, str)
        return find_objective(given, self.objective_kwargs)

    def with_objective(self, objective: Objective) -> "HumanlineConfig":
        """Return a copy with this objective.

        Raises:
            ValueError: ``objective`` already names another one, or a setting does not belong to it.
        """
        if self.objective not in (DEFAULT, objective):
            raise ValueError(
                f"objective: expected one, got {self.objective_name!r} in args and {objective.name!r} as an argument"
            )
        config = copy.copy(self)
        config.objective = objective
        config._take(config.make_objective())
        return config

    @property
    def objective_name(self) -> str:
        """The objective's name, or ``module:Class``."""
        return self.objective.name if isinstance(self.objective, Objective) else self.objective

    def to_dict(self) -> dict[str, Any]:
        """As TrainingArguments', with an objective by its name."""
        return super().to_dict() | {"objective": self.objective_name}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"objective": self.objective_name}  # a class of a script cannot be pickled

    def _take(self, objective: Objective) -> None:
        if not self._beta_given:
            self.beta = objective.default_beta
        beta = self.beta
        self._expect("beta", beta is not None and 0 <= beta < float("inf"), "a finite number >= 0")
        defaults = {field.name: field.default for field in fields(self)}
        for name, owner in foreign_settings(objective).items():
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}: expected {defaults[name]!r} (a setting of {owner}, not of {objective.name}), "
                    f"got {getattr(self, name)!r}"
                )
        objective.check(self)
        self._drop_no_signal = objective.drops_ties(self)

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        expect(self, name, holds, expected)

    def _expect_integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        holds = isinstance(value, int) and not isinstance(value, bool) and value >= least
        self._expect(name, holds, f"an integer >= {least}")

    def _expect_defaults(self, names: Iterable[str], where: str) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for name in names:
            self._expect(name, getattr(self, name) == defaults[name], f"{defaults[name]!r} {where}")

    def _check_perception(self) -> None:
        """Refuse settings of the clamp beside sampling, and the reverse."""
        others = SAMPLING if self.perception == "clamp" else CLAMP
        self._expect_defaults(others, f"with perception={self.perception!r}")
        _ = self.humanline_sampling  # checks its settings

    def check_sampling(self, *, rewarded: bool) -> None:
        """Raise ValueError for a setting of samples in a run without a reward function, or one that cannot be."""
        if not rewarded:
            self._expect_defaults(SAMPLED, "without a reward function (reward)")
        elif self.world_size > 1:
            limit = f"less than ddp_timeout ({self.ddp_timeout} s)"
            self._expect("reward_timeout", self.reward_timeout < self.ddp_timeout, limit)

    def _check_rounds(self) -> None:
        for name in ("max_completion_length", "rollout_batch_size"):
            self._expect_integer(name, 1)
        for name in ("temperature", "reward_timeout"):
            self._expect(name, 0 < getattr(self, name) < float("inf"), "a finite number > 0")
        if self.rollout_every is None:
            self._expect_defaults(ROLLOUT, "without rollout_every")
            return
        for name, least in (("rollout_every", 1), ("num_generations", 2)):
            self._expect_integer(name, least)
        self._expect_integer("rollout_batch_size", self.num_generations)
        self._expect("top_p", 0 < self.top_p <= 1, "a number in (0, 1]")
        self._expect(
            "reference",
            self.reference != "lookahead",
            "'copy', 'adapter' or 'frozen' with rollout_every (the samples of the coming steps do not exist yet, so "
            "they cannot be scored ahead)",
        )

    @property
    def evaluates(self) -> bool:
        """True if the run evaluates during training, or would without ``dry_run``."""
        return self._evaluates

    @property
    def drop_no_signal(self) -> bool:
        """True if groups of equal rewards are left out of the data, because their gradient is 0."""
        return self._drop_no_signal

    @property
    def device(self) -> torch.device:
        """The device of this process. A CPU has no index: torch and transformers 5.17 cannot resume with one."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


OWN = frozenset(own_settings(HumanlineConfig, "humanline_fused"))
"""Settings of this package, and those of transformers that have another default here."""
