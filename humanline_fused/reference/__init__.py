"""Synced references: look-ahead scores, a second model, or a second adapter overwritten in place."""

from humanline_fused.reference.adapter import AdapterReference
from humanline_fused.reference.lookahead import LookaheadReference
from humanline_fused.reference.sync import CopyReference, sync_reference_

__all__ = ["AdapterReference", "CopyReference", "LookaheadReference", "sync_reference_"]
