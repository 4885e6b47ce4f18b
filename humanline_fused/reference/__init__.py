"""The ways to have a reference that follows the policy: scored ahead, or a model that is copied into in place."""

from humanline_fused.reference.lookahead import LookaheadReference
from humanline_fused.reference.sync import CopyReference, sync_reference_

__all__ = ["CopyReference", "LookaheadReference", "sync_reference_"]
