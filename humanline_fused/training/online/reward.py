"""Reward functions: import, call with a time limit, and check of the result."""

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from humanline_fused.training.named import import_named
from humanline_fused.training.online.time_limit import TimeLimitExceeded, time_limit


class RolloutError(RuntimeError):
    """Samples of a round or of an evaluation could not be drawn or scored. The text is shown to the user."""


def load_reward(path: str) -> Callable[..., Any]:
    """Import ``module:function``; the current directory is searched last.

    Raises:
        ValueError: the path has another format, or there is no callable object.

    >>> load_reward("math:sqrt")(4.0)
    2.0
    """
    found = import_named("reward", path, "function")
    if not callable(found):
        raise ValueError(f"reward: expected {path!r} to be a function, got {type(found).__name__}")
    return found


def the_reward(
    path: str | None, function: Callable[..., Any] | None, *, rounds: bool, held_out: bool
) -> Callable[..., Any] | None:
    """Return the one reward function of a run, imported or given; None for a run without one.

    Args:
        path, function: ``module:function``, and the function itself.
        rounds: the run has rounds, which need a reward.
        held_out: an evaluation answers the prompts of an ``eval_dataset``.

    Raises:
        ValueError: there are two functions, or none for the rounds, or one that nothing calls.
        TypeError: what was given is no function.
    """
    if function is not None and (not callable(function) or isinstance(function, PreTrainedModel)):
        raise TypeError(
            f"reward_function: expected one function, got {type(function).__name__}: several are added up in one, and "
            "a model is called in a function of texts (docs/rounds.md)"
        )
    given = [name for name, value in (("reward", path), ("reward_function", function)) if value is not None]
    if len(given) == 2 or (rounds and not given):
        raise ValueError(
            f"{'rollout_every' if rounds else 'reward'}: expected one reward function, reward='module:function' or "
            f"HumanlineTrainer(reward_function=...), got {'both' if given else 'none'}"
        )
    if given and not rounds and not held_out:
        raise ValueError(
            f"{given[0]}: expected None without rollout_every and without an eval_dataset whose prompts an evaluation "
            f"answers (eval_answers), got {path if function is None else 'a function'!r}"
        )
    return load_reward(path) if path is not None else function


class RewardFunction:
    """Calls a reward function and checks its result.

    Args:
        function: called by keyword as ``function(prompts=[...], completions=[...], **columns)``, each a list with one
            entry per sample, ``columns`` the other columns of the dataset; returns one number per sample, as TRL's
            reward functions do.
        timeout: maximal duration of a call, in seconds.

    Raises:
        RolloutError: on a call, if the function raises, takes too long, or does not return one finite number per
            sample.

    >>> shortest = RewardFunction(lambda prompts, completions: [-len(c) for c in completions], timeout=60)
    >>> shortest(["say"] * 2, ["yes", "no"], {})
    [-3.0, -2.0]
    """

    def __init__(self, function: Callable[..., Any], timeout: float) -> None:
        self.function = function
        self.timeout = timeout
        named = function if hasattr(function, "__qualname__") else type(function)
        self.name = f"{named.__module__}:{named.__qualname__}"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> list[float]:
        try:
            with time_limit(self.timeout):
                given = self.function(prompts=list(prompts), completions=list(completions), **columns)
        except TimeLimitExceeded as error:
            raise RolloutError(f"reward function {self.name}: {error} (reward_timeout)") from error
        except (Exception, SystemExit) as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
            where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
            raise RolloutError(f"reward function {self.name} raised {type(error).__name__}: {error}{where}") from error
        return self._checked(given, completions)

    def _checked(self, given: Any, completions: Sequence[Any]) -> list[float]:
        given = given.tolist() if hasattr(given, "tolist") else given
        if not isinstance(given, list | tuple) or len(given) != len(completions):
            what = f"{len(given)}" if isinstance(given, list | tuple) else f"{given!r:.80}"
            raise RolloutError(f"reward function {self.name}: expected {len(completions)} numbers, got {what}")
        numbers = [value.item() if hasattr(value, "item") else value for value in given]
        for completion, value in zip(completions, numbers, strict=True):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise RolloutError(
                    f"reward function {self.name}: expected a finite number, got {value!r} for {completion!r:.200}"
                )
        return [float(value) for value in numbers]
