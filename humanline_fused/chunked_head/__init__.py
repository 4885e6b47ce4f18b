"""Hidden states to log-probs and losses, a chunk of logits at a time. The caller passes the epilogue for a chunk."""

from humanline_fused.chunked_head.chunks import in_blocks, rows_of
from humanline_fused.chunked_head.head_logp import head_logp
from humanline_fused.chunked_head.head_loss import Call, head_loss
from humanline_fused.chunked_head.work import needs_of, work_of

__all__ = ["Call", "head_logp", "head_loss", "in_blocks", "needs_of", "rows_of", "work_of"]
