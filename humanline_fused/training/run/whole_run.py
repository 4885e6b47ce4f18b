"""A run from its first step to its exported model, and how a run that was interrupted is continued."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from humanline_fused.interruption import interruptible
from humanline_fused.printing import one_line
from humanline_fused.training.online.reward import RolloutError
from humanline_fused.training.run.checkpoint import newest_complete
from humanline_fused.training.run.process_group import waited_in_vain
from humanline_fused.training.run.writing import on_all_ranks


def train_and_export(trainer: Any) -> str:
    """Train, then evaluate and save the model; a signal after the last step does not stop these.

    Args:
        trainer: a :class:`~humanline_fused.training.HumanlineTrainer`.

    Returns:
        One line on how the run ended; empty after a dry run.

    Raises:
        ConnectionError: another process ended, or did not answer.
        RolloutError: the reward function failed; if it did so after the last step, once the model is saved.
    """
    try:
        return _train_and_export(trainer)
    except RuntimeError as error:
        if not waited_in_vain(error):
            raise
        newest = newest_complete(trainer.args.output_dir)
        cause, limit = one_line(error), trainer.args.ddp_timeout
        raise ConnectionError(
            f"another process ended, or did not answer for ddp_timeout={limit} s ({cause}). "
            + (f"Resume from {newest}" if newest else "There is no checkpoint")
        ) from error


def _train_and_export(trainer: Any) -> str:
    with trainer.termination:
        trainer.train()
        if trainer.termination.stopped:
            return trainer.how_to_continue()
        if trainer.args.dry_run:
            return ""
        failed: RolloutError | None = None
        with on_all_ranks():
            try:
                if trainer.eval_examples:
                    trainer.evaluate()
            except RolloutError as error:  # of a user's function, on every rank
                failed = error
        with on_all_ranks():
            trainer.save_model()
        if failed:
            raise RolloutError(f"{failed}. The model is saved to {trainer.args.output_dir}") from failed
    return f"saved to {trainer.args.output_dir}"


@contextmanager
def saying_how_to_continue(config: Any) -> Iterator[None]:
    """Give a KeyboardInterrupt without a text one that names the checkpoint to continue from."""
    try:
        with interruptible():
            yield
    except KeyboardInterrupt as interrupt:
        if interrupt.args or config.dry_run:
            raise
        newest = newest_complete(config.output_dir)
        kept = f"{newest} is complete" if newest else "there is no checkpoint yet"
        raise KeyboardInterrupt(f"interrupted; {kept}: --resume_from_checkpoint auto") from interrupt
