"""Settings of the folder that a run writes into, beside those of TrainingArguments."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class FolderSettings:
    """Part of :class:`humanline_fused.training.HumanlineConfig`."""

    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Start over in a folder with an earlier run: its checkpoints and logs are removed. With "
            "resume_from_checkpoint=auto only where no checkpoint can be resumed from."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Load everything, check the head, print a summary of the run, and stop before step 0; nothing is "
            "trained or written. With rounds: sample and score one round."
        },
    )

    @property
    def should_save(self) -> bool:
        """As TrainingArguments'; False in a dry run, which makes no file and no folder."""
        arguments: Any = super()
        return not self.dry_run and arguments.should_save
