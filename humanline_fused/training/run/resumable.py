"""Trainer with atomic, complete checkpoints that are verified before use."""

import json
import os
import socket
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer_utils import SaveStrategy, TrainOutput, rotate_checkpoints

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.run import checkpoint, earlier_run
from humanline_fused.training.run.checkpoint import IDENTITY
from humanline_fused.training.run.lock import LOCK, locked
from humanline_fused.training.run.manifest import faults
from humanline_fused.training.run.process_group import limit_waiting
from humanline_fused.training.run.sharding import whole_state_dict

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

    A subclass adds its own state: :meth:`identity`, :meth:`run_state`, :meth:`restore`.
    """

    args: HumanlineConfig
    _staging = False

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
        """Train as Trainer does, after verifying the checkpoint before anything is loaded.

        Args:
            resume_from_checkpoint: a folder; ``"auto"``: the newest usable checkpoint of ``output_dir``, or a fresh
                start; True: the newest, which must exist; default ``args.resume_from_checkpoint``.

        Raises:
            ValueError: the checkpoint is damaged, or belongs to a run with another model, other data or settings; or
                the folder has an earlier run, which only ``args.overwrite_output_dir`` lets this one replace.
            BlockingIOError: another run writes into the folder.
        """
        limit_waiting(self.args)
        asked = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        with ExitStack() as held:
            resume = self._chosen(asked, held)
            if resume:
                self._check(resume)
            if self.args.process_index == 0 and not self.args.dry_run:
                self._clear(resume)
            self.before_training(resume)
            if resume and self.args.process_index == 0:
                print(checkpoint.describe_resume(Path(resume)), flush=True)
            return super().train(resume, *args, **kwargs)

    def before_training(self, resume: str | None) -> None:
        """Hook before training, called with the verified checkpoint to resume from, or None."""

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
        state = self.run_state()
        if self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)
            identity = self.identity() | {checkpoint.PROCESSES: self.args.world_size}
            Path(output_dir, IDENTITY).write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
            torch.save(state, Path(output_dir, RUN_STATE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            # Memory-mapped: a rank reads only its part, so a copied reference is not in memory once per rank.
            self.restore(load_run_state(Path(checkpoint)))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as Trainer does, and a whole model folder under FSDP2 too. Collective there: call on every rank.

        Raises:
            FloatingPointError: the weights are not finite.
        """
        if not self._staging:
            self._refuse_broken_weights(str(output_dir or self.args.output_dir))
        with nullcontext() if self._staging else whole_state_dict(self.accelerator):
            super().save_model(output_dir, _internal_call)

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
            newest = checkpoint.newest_complete(str(self.args.output_dir))
            raise FloatingPointError(
                f"{name} is not written: the weights are not finite. Lower learning_rate (0.1x to 0.5x) or "
                f"max_grad_norm (0.5), and {f'resume from {newest}' if newest else 'start a new run'}"
            )

    def keep_run(self) -> str:
        """Save a checkpoint before the coming step, unless there is one, for a run that must stop. Collective.

        Returns:
            A sentence that names the checkpoint to resume from; empty before the first step.
        """
        step, run_dir = self.state.global_step, str(self.args.output_dir)
        if not step:
            return ""
        newest = checkpoint.newest_complete(run_dir)
        if newest is None or checkpoint.step_of(newest) < step:
            assert self.model is not None
            self._save_checkpoint(self.model, trial=None)
        return f". The run up to step {step} is kept: resume from {checkpoint.newest_complete(run_dir)}"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as Trainer does, with another name until the checkpoint is complete."""
        run_dir, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        self._refuse_broken_weights(name)
        staged = run_dir / checkpoint.STAGING / name
        if self.args.should_save:
            checkpoint.remove_staging(run_dir)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:  # torch and safetensors raise their own errors for a full disk
            raise checkpoint.unsaved(error, run_dir, name) from error
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()
        best = self.state.best_model_checkpoint == str(staged)
        if best:
            self.state.best_model_checkpoint = str(run_dir / name)
        if self.args.should_save:
            if best:
                self.state.save_to_json(str(staged / "trainer_state.json"))
            checkpoint.publish(staged, run_dir / name)
            rotate_checkpoints(str(run_dir), self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
