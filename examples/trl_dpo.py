"""DPO with TRL, with clamped log-ratios; with ``--sync_every`` the reference follows the policy too.

Three lines differ from plain TRL: the import, the trainer's name, and one more argument::

    from humanline_fused.integrations.trl import Humanline, HumanlineDPOTrainer
    trainer = HumanlineDPOTrainer(
        humanline=Humanline(log_epsilon_P=-1.5, log_epsilon_R=1.5, sync_every=None),

docs/choosing.md says why it begins without syncs. With the paper's bounds and TRL's learning rate of 1e-6 no token
leaves the bounds in a run of a few steps.

It takes the folder or name of a model and a file of pairs with the columns prompt, chosen, rejected; all other options
are those of DPOConfig::

    pip install 'humanline-fused[trl]'
    python examples/trl_dpo.py --model DIR --dataset FILE.jsonl --output_dir DIR --max_steps 3
"""

from dataclasses import dataclass, field

import torch
from datasets import load_dataset
from trl import DPOConfig, TrlParser

from humanline_fused.integrations.trl import Humanline, HumanlineDPOTrainer


@dataclass
class ScriptArguments:
    """Options that DPOConfig does not have."""

    model: str = field(metadata={"help": "Folder or name of the model to start from, with its tokenizer."})
    dataset: str = field(metadata={"help": "JSONL file of pairs: prompt, chosen, rejected."})
    sync_every: int | None = field(
        default=None, metadata={"help": "k: optimizer steps between two syncs of the reference. Default: no sync."}
    )


def main() -> None:
    parser = TrlParser((ScriptArguments, DPOConfig))
    parser.set_defaults(use_cpu=not torch.accelerator.is_available(), report_to="none")
    script, args = parser.parse_args_and_config()
    trainer = HumanlineDPOTrainer(
        script.model,
        args=args,
        train_dataset=load_dataset("json", data_files=script.dataset, split="train"),
        humanline=Humanline(log_epsilon_P=-1.5, log_epsilon_R=1.5, sync_every=script.sync_every),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
