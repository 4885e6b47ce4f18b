"""Refuses versions of TRL other than 1.16.

The overridden methods are private to TRL: another minor version may compute its loss elsewhere, without an error.
"""

from packaging.version import Version

NEEDED = "expected trl>=1.16,<1.17"
INSTALL = "pip install 'humanline-fused[trl]'"

try:
    import trl
    import trl.trainer.dpo_trainer
    import trl.trainer.kto_trainer
except ImportError as error:
    raise ImportError(f"{NEEDED}, got an error ({error}): {INSTALL}") from error

if Version(trl.__version__).release[:2] != (1, 16):
    raise ImportError(f"{NEEDED}, got {trl.__version__}: {INSTALL}")
