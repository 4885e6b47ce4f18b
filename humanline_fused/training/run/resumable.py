"""Trainer with atomic, complete checkpoints that are verified before use."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer_utils import SaveStrategy, TrainOutput

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.run import checkpoint, earlier_run, retention
from humanline_fused.training.run.checkpoint import IDENTITY
from humanline_fused.training.run.lock import LOCK, locked
from humanline_fused.training.run.loop_state import LoopState
from humanline_fused.training.run.manifest import faults
from humanline_fused.training.run.optimizer_state import check_kind
from humanline_fused.training.run.process_group import limit_waiting, waited_in_vain
from humanline_fused.training.run.settings_file import describe_changes
from humanline_fused.training.run.sharding import whole_state_dict
from humanline_fused.training.run.termination import Termination
from humanline_fused.training.run.untrue_warnings import without_untrue_warnings
from humanline_fused.training.run.writing import ERRORS, unwritten, writing

RUN_STATE = "run_state.pt"
"""File with the result of :meth:`ResumableTrainer.run_state`."""

EARLIER_RUN_STATE = "reference.pt"
"""Former name of the run state's file; checkpoints that have it stay readable."""


def load_run_state(checkpoint: Path) -> Any:
    """Read what :meth:`ResumableTrainer.run_state` returned when the checkpoint was written, memory-mapped."""
    file = checkpoint / RUN_STATE
    if not file.is_file():
        file = checkpoint / EARLIER_RUN_STATE
    return torch.load(file, map_location="cpu", mmap=True, weights_only=True)


class ResumableTrainer(Trainer):
    """Trainer with atomic checkpoints that any number of processes can resume.

    A subclass sets :attr:`termination` and :attr:`loop`, and adds its own state: :meth:`identity`, :meth:`run_state`,
    :meth:`restore`.
    """

    args: HumanlineConfig
    termination: Termination
    loop: LoopState
    _staging = False
    _kept: int | None = None
    """Step of the newest checkpoint in the run's folder that this run wrote or was resumed from."""
    _extra = False
    """Whether the checkpoint being written is one that the run does not plan, for an early end."""

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(str(self.args.output_dir))

    def identity(self) -> dict[str, Any]:
        """Return the properties that a resumed run must share with this one, as JSON."""
        return {}

    def check_identity(self, saved: dict[str, Any], folder: str) -> None:
        """Raise ValueError unless this run can resume the run that wrote ``saved`` into ``folder``."""

    def run_state(self) -> Any:
        """Return the state that the first rank writes for all ranks. Collective: called on every rank."""

    def restore(self, state: Any) -> None:
        """Restore the result of :meth:`run_state`, on every rank, before the first batch."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does, to the end or a signal, after verifying the checkpoint before anything is loaded.

        Args:
            resume_from_checkpoint: a folder; ``"auto"``: the newest usable checkpoint of ``output_dir``, or a fresh
                start; True: the newest, which must exist; default ``args.resume_from_checkpoint``.

        Raises:
            ValueError: the checkpoint is damaged, or belongs to a run with another model, other data or settings; or
                the folder has an earlier run, which only ``args.overwrite_output_dir`` lets this one replace.
            BlockingIOError: another run writes into the folder.
            OSError: a file could not be written; the message names it and the checkpoint to resume from.
            KeyboardInterrupt: SIGINT ended the run, which is kept up to its step.
        """
        limit_waiting(self.args)
        asked = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        with self.termination, without_untrue_warnings(), ExitStack() as held:
            resume = self._chosen(asked, held)
            if resume:
                self._check(resume)
            with writing(self.run_dir, self.run_dir):
                if self.args.process_index == 0 and not self.args.dry_run:
                    self._clear(resume)
            inside = resume is not None and Path(resume).resolve().parent == self.run_dir.resolve()
            self._kept = checkpoint.step_of(Path(resume)) if resume and inside else None
            said = self._describe_resume(Path(resume)) if resume and self.args.process_index == 0 else []
            self.before_training(resume)
            for line in said:
                print(line, flush=True)
            output = super().train(resume, *args, **kwargs)
            if self.termination.stopped == signal.SIGINT:
                raise KeyboardInterrupt(self.how_to_continue())
            return output._replace(training_loss=self.loop.mean_loss())

    def before_training(self, resume: str | None) -> None:
        """Hook before training, called with the verified checkpoint to resume from, or None."""

    def _describe_resume(self, folder: Path) -> list[str]:
        """Return the lines on the checkpoint to resume from, and on settings that have changed."""
        changes = [] if self.args.dry_run else describe_changes(self.args, folder.parent)  # a dry run changes some
        return [checkpoint.describe_resume(folder), *changes]

    def _chosen(self, asked: str | bool | None, held: ExitStack) -> str | None:
        """Return the checkpoint that the first rank chose and verified, with the folder locked, or None.

        Every rank raises the first one's error, and ValueError if they do not share one folder.
        """
        run_dir, chosen = str(self.args.output_dir), None
        if self.args.process_index == 0:
            try:
                if writes := not self.args.dry_run:
                    held.enter_context(locked(Path(run_dir)))
                overwrite = self.args.overwrite_output_dir
                chosen = checkpoint.resolve_resume(run_dir, asked, overwrite=overwrite, contents=writes)
                if chosen and self.args.load_best_model_at_end:
                    recorded = checkpoint.best_model_of(Path(chosen))
                    retention.refuse_damaged_best(retention.best_model(recorded, Path(chosen).parent))
            except (ValueError, OSError) as error:
                chosen = error
        chosen = gather_object([chosen])[0]
        if isinstance(chosen, Exception):
            raise chosen
        there = Path(chosen) if chosen else checkpoint.newest_complete(run_dir)
        found = gather_object([str(there) if there and there.is_dir() else None])
        if len(set(found)) > 1:
            raise ValueError(f"expected an output_dir that all processes see, but they would continue from {found}")
        unseen = gather_object([self._unseen(chosen)])
        if reason := next(filter(None, unseen), None):
            raise ValueError(reason)
        return chosen

    def _unseen(self, chosen: str | None) -> str | None:
        """Return why this process cannot use the run's folder, which may be another on its own disk, or None."""
        args, lock = self.args, Path(str(self.args.output_dir), LOCK)
        who = f"process {args.process_index} on {socket.gethostname()}"
        if chosen:
            folder = Path(chosen)
            lacking = faults(folder) or checkpoint.missing_rng(folder, args.process_index, args.world_size)
            whole = f"{chosen}: expected a checkpoint that all processes see whole"
            return f"{whole}; for {who}, {', '.join(lacking)}" if lacking else None
        writes = not args.dry_run and args.save_strategy != SaveStrategy.NO
        if not writes or args.save_on_each_node or lock.exists():
            return None
        return (
            f"expected an output_dir that all processes see, or save_on_each_node=True; {who} does not see {lock} of "
            "the first one, so that checkpoints would lack its part"
        )

    def _clear(self, resume: str | None) -> None:
        """Make room for this run: nothing of an earlier run is lost unless ``overwrite_output_dir`` says so."""
        run_dir = Path(str(self.args.output_dir))
        checkpoint.remove_staging(run_dir)
        if resume and Path(resume).resolve().parent == run_dir.resolve():
            if Path(resume) == checkpoint.checkpoints(run_dir)[0]:  # what a killed run did not come to
                best = checkpoint.best_model_of(Path(resume))
                retention.tidy(Path(resume), self.args.save_total_limit, best)
            return
        if self.args.overwrite_output_dir:
            earlier_run.remove(run_dir, checkpoint.checkpoints(run_dir))
        for line in earlier_run.set_aside(run_dir):
            print(line, flush=True)

    def _check(self, folder: str) -> None:
        file = Path(folder, IDENTITY)
        if not file.is_file():
            raise ValueError(f"expected {file}: the checkpoint was not written by this trainer")
        self.check_identity(json.loads(file.read_text(encoding="utf-8")), folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)
            identity = self.identity() | {checkpoint.PROCESSES: self.args.world_size}
            if self._extra:
                identity[retention.UNPLANNED] = True
            Path(output_dir, IDENTITY).write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
            torch.save(self._run_state, Path(output_dir, RUN_STATE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            check_kind(self.optimizer, checkpoint)
            # Memory-mapped: a rank reads only its part, so a copied reference is not in memory once per rank.
            self.restore(load_run_state(Path(checkpoint)))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn as Trainer does, but not of a weight that is tied to one that was loaded: a checkpoint has it once."""
        assert self.model is not None
        weights = {name: id(weight) for name, weight in self.model.named_parameters(remove_duplicate=False)}
        absent = load_result.missing_keys
        loaded = {weight for name, weight in weights.items() if name not in absent}
        missing = [name for name in absent if weights.get(name) not in loaded]
        super()._issue_warnings_after_load(
            SimpleNamespace(missing_keys=missing, unexpected_keys=load_result.unexpected_keys)
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as Trainer does, and a whole model folder under FSDP2 too. Collective there: call on every rank.

        Raises:
            FloatingPointError: the weights are not finite.
            OSError: the folder could not be written; the message names the checkpoint to resume from.
        """
        if self._staging:
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(str(output_dir or self.args.output_dir))
        self._refuse_broken_weights(str(folder))
        try:
            with whole_state_dict(self.accelerator):
                super().save_model(output_dir, _internal_call)
        except ERRORS as error:
            raise error if waited_in_vain(error) else unwritten(error, folder, self.run_dir) from error

    def _get_output_dir(self, trial: Any) -> str:
        run_dir = super()._get_output_dir(trial)
        return os.path.join(run_dir, checkpoint.STAGING) if self._staging else run_dir

    def _refuse_broken_weights(self, name: str) -> None:
        """Raise FloatingPointError if a weight is not finite: the loss is checked only at log lines.

        Otherwise rotation could delete the last finite checkpoint.
        """
        assert self.model is not None
        trained = [p for p in self.model.parameters() if p.requires_grad]
        local = [p.to_local() if isinstance(p, DTensor) else p for p in trained]
        broken = torch.zeros((), device=self.args.device)
        for part in local:
            broken += part.isfinite().logical_not().any()
        if self.is_fsdp_enabled:  # without FSDP every rank has all weights, and one rank may save alone
            broken = cast(torch.Tensor, self.accelerator.reduce(broken, "sum"))
        if broken:
            newest = checkpoint.newest_complete(self.run_dir)
            raise FloatingPointError(
                f"{name} is not written: the weights are not finite. Lower learning_rate (0.1x to 0.5x) or "
                f"max_grad_norm (0.5), and {f'resume from {newest}' if newest else 'start a new run'}"
            )

    def keep_run(self) -> str:
        """Save a checkpoint before the coming step, unless there is one, for a run that must stop. Collective.

        Returns:
            A sentence that names the checkpoint to resume from; empty before the first step.
        """
        step = self.state.global_step
        if not step:
            return ""
        if self._kept != step or self.args.save_only_model:
            saved = Path(self.run_dir, f"checkpoint-{step}")
            planned = saved.is_dir() and not retention.unplanned(saved)
            assert self.model is not None
            self._extra = not planned
            try:
                with changed(self.args, save_only_model=False):
                    self._save_checkpoint(self.model, trial=None)
            finally:
                self._extra = False
        return f". The run up to step {step} is kept: resume from {checkpoint.newest_complete(self.run_dir)}"

    def stops_early(self) -> bool:
        """Return whether a signal ends the run before the coming step, after saving a checkpoint. Collective."""
        if self.termination.requested() and not self.args.dry_run:
            self.keep_run()
        return bool(self.termination.stopped)

    def how_to_continue(self) -> str:
        """Return one line on a run that a signal has stopped."""
        assert self.termination.stopped is not None
        stopped = f"{self.termination.stopped.name}: stopped at step {self.state.global_step}"
        saved = checkpoint.newest_complete(self.run_dir)
        return f"{stopped}, {f'saved {saved}' if saved else 'nothing to save yet'}: --resume_from_checkpoint auto"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as Trainer does, with another name until the checkpoint is complete.

        What is collective comes before and between the writes, so that an error of one rank reaches the others.
        """
        run_dir, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        self._refuse_broken_weights(name)
        self._find_best_model()
        self._run_state = self.run_state()
        staged, final = run_dir / checkpoint.STAGING / name, run_dir / name
        try:
            self._write_checkpoint(model, trial, staged, final)
        except OSError:
            if self.args.should_save and checkpoint.faults(staged):  # make room on a full disk
                checkpoint.remove_staging(run_dir)
            raise
        self._kept = self.state.global_step

    def _write_checkpoint(self, model: nn.Module, trial: Any, staged: Path, final: Path) -> None:
        run_dir = final.parent
        with writing(final, run_dir):
            if self.args.should_save:
                checkpoint.remove_staging(run_dir)
        best, self.state.best_global_step = self.state.best_global_step, None  # else Trainer looks for its folder
        self._staging = True
        try:
            with writing(final, run_dir):
                super()._save_checkpoint(model, trial)
        finally:
            self._staging, self.state.best_global_step = False, best
        if best == self.state.global_step and not self._extra:  # an unplanned checkpoint must not become the best one
            self.state.best_model_checkpoint = str(final)
        with writing(final, run_dir):
            if self.args.should_save:
                self.state.save_to_json(str(staged / "trainer_state.json"))
                checkpoint.publish(staged, final)
                retention.tidy(final, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        self.loop.took(grad_norm, kwargs.get("learning_rate"))
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _evaluate(self, *args: Any, skip_scheduler: bool = False, **kwargs: Any) -> dict[str, float]:
        if skip_scheduler and self.state.global_step:  # eval_on_start of a run that is resumed
            return {}
        return super()._evaluate(*args, skip_scheduler=skip_scheduler, **kwargs)

    def _find_best_model(self) -> None:
        """Find the best model in this folder if Trainer, which looks where it was written, did not."""
        here = self.run_dir / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_model_checkpoint is None and here.is_dir() and not retention.unplanned(here):
            self.state.best_model_checkpoint = str(here)

    def _load_best_model(self) -> None:
        """Load the best model as Trainer does, after verifying its checkpoint. Collective.

        Raises:
            ValueError: on every process, if the checkpoint is damaged; the run is kept up to its last step.
        """
        damaged, best = None, retention.best_model(self.state.best_model_checkpoint, self.run_dir)
        if self.args.process_index == 0:
            try:
                retention.refuse_damaged_best(best)
            except ValueError as error:
                damaged = str(error)
        if damaged := gather_object([damaged])[0]:
            raise ValueError(f"{damaged}{self.keep_run()}")
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """End the loop as Trainer does; a run that a signal stops keeps its policy and all its checkpoints."""
        if not self.termination.stopped:
            self.stops_early()
        # Since the last log line it is this rank's own loss.
        self._tr_loss = cast(torch.Tensor, self.accelerator.reduce(self._tr_loss, "mean"))
        self._find_best_model()
        if not self.termination.stopped:
            return super()._finalize_training(*args, **kwargs)
        with changed(self.args, load_best_model_at_end=False, save_total_limit=None):
            return super()._finalize_training(*args, **kwargs)


@contextmanager
def changed(settings: Any, **values: Any) -> Iterator[None]:
    """Change attributes until exit."""
    before = {name: getattr(settings, name) for name in values}
    try:
        for name, value in values.items():
            setattr(settings, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)
