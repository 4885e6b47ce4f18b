"""TRL's DPO and KTO trainers with humanline's clamp and synced reference (docs/trl.md).

The loss stays TRL's: it receives clamped log-ratios as the policy's log-probs, and zeros as the reference's.
"""

from humanline_fused.integrations.trl import version as version  # first: it says what to install
from humanline_fused.integrations.trl.argument import Humanline
from humanline_fused.integrations.trl.humanline_trainers import HumanlineDPOTrainer, HumanlineKTOTrainer
from humanline_fused.integrations.trl.log_ratios import LogRatios

__all__ = ["Humanline", "HumanlineDPOTrainer", "HumanlineKTOTrainer", "LogRatios"]
