"""What transformers' loop keeps between two log lines and does at the end of an epoch, for checkpoints in between."""

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

from humanline_fused.training.run.metrics_log import Meter


class LoopState(TrainerCallback):
    """State of Trainer's loop that its own checkpoints lack.

    A log line averages the steps since the last one, and the last line those of the whole run. A checkpoint between two
    lines holds their sums, so that a resumed run writes the lines of the uninterrupted one.

    The last step of an epoch may save a checkpoint before the epoch's own log line, evaluation and checkpoint. A run
    that is resumed from it does these first.

    Args:
        trainer: the trainer whose loop it is.
        meter: the metrics of the coming log line.
    """

    def __init__(self, trainer: Trainer, meter: Meter) -> None:
        self.trainer: Any = trainer  # the loop's state is private there
        self.meter = meter
        self.grad_norm: Any = None
        self.learning_rate: float | None = None
        self.epoch_ended = False
        self.first = 0
        self._given: dict[str, Any] | None = None
        self._resumed: str | None = None

    def state_dict(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return the state over all ranks, by ``reduce``. Collective."""
        trainer = self.trainer
        return {
            "loss": reduce(trainer._tr_loss.detach().clone()).cpu() / trainer.args.world_size,
            "logged_step": trainer._globalstep_last_logged,
            "total_loss": trainer._total_loss_scalar,
            "first_step": self.first,
            "metrics": self.meter.state_dict(reduce),
            "grad_norm": self.grad_norm.item() if isinstance(self.grad_norm, Tensor) else self.grad_norm,
            "learning_rate": self.learning_rate,
            "epoch_ended": self.epoch_ended,
        }

    def resume(self, checkpoint: str | None) -> None:
        """Begin anew, or from a checkpoint whose state :meth:`load_state_dict` gets."""
        self._resumed, self._given = checkpoint, None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from :meth:`state_dict` when the loop begins; None of a checkpoint of an earlier version."""
        self._given = state

    def took(self, grad_norm: Any, learning_rate: float | None) -> None:
        """Keep what a log line says of the last step."""
        if learning_rate is not None:
            self.grad_norm, self.learning_rate = grad_norm, learning_rate

    def mean_loss(self) -> float:
        """Return the mean loss of all steps of the run; of those since the checkpoint, if that is an earlier version's.

        Trainer's own is the mean of the steps since the run was resumed.
        """
        return self.trainer._total_loss_scalar / max(self.trainer.state.global_step - self.first, 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, given = self.trainer, self._given
        self.first, self.epoch_ended = state.global_step, True
        self.meter.load_state_dict({}, args.device, args.world_size)
        if given is None:
            return
        trainer._tr_loss = given["loss"].to(args.device).clone()
        trainer._globalstep_last_logged, trainer._total_loss_scalar = given["logged_step"], given["total_loss"]
        self.first, self.epoch_ended = given["first_step"], given["epoch_ended"]
        self.grad_norm, self.learning_rate = given["grad_norm"], given["learning_rate"]
        self.meter.load_state_dict(given["metrics"], args.device, args.world_size)
        if not self.epoch_ended and (float(state.epoch).is_integer() or state.global_step >= state.max_steps):
            self._end_epoch()

    def _end_epoch(self) -> None:
        trainer = self.trainer
        trainer._load_rng_state(self._resumed)  # a checkpoint may be written
        trainer.control = trainer.callback_handler.on_epoch_end(trainer.args, trainer.state, trainer.control)
        loop = trainer._tr_loss, self.grad_norm, trainer.model_wrapped, None, trainer.state.epoch, None, time.time()
        trainer._maybe_log_save_evaluate(*loop, learning_rate=self.learning_rate)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch_ended = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch_ended = True
