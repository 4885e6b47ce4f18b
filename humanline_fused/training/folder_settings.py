"""Settings of the folder that a run writes into, beside those of TrainingArguments."""

from dataclasses import dataclass, field


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
