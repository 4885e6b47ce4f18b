"""Tiny policies, many trained at once on a CPU: how losses, clamp and sync behave, over many seeds, in seconds.

Every setting is a vector over policies; the losses are the package's own. The task has an exact reward, and the
held-out reward is a probability, so there is no noise of sampling in it.
"""

from humanline_fused.tiny.bootstrap import Interval, bootstrap
from humanline_fused.tiny.loop import train
from humanline_fused.tiny.policies import Parameters, Policies
from humanline_fused.tiny.sorting import Sorting
from humanline_fused.tiny.supervised import Demonstrations, fine_tune, held_out_prompts
from humanline_fused.tiny.trainings import Curves, Loss, Setting, Trainings

__all__ = [
    "Curves",
    "Demonstrations",
    "Interval",
    "Loss",
    "Parameters",
    "Policies",
    "Setting",
    "Sorting",
    "Trainings",
    "bootstrap",
    "fine_tune",
    "held_out_prompts",
    "train",
]
