"""The ways to have a reference that follows the policy: scored ahead, a model, or an adapter, copied into in place."""

from humanline_fused.reference.adapter import AdapterReference
from humanline_fused.reference.lookahead import LookaheadReference
from humanline_fused.reference.sync import CopyReference, sync_reference_

__all__ = ["AdapterReference", "CopyReference", "LookaheadReference", "sync_reference_"]
