"""Hidden states to log-probs and losses: chunks, products, order of work. Who scores a chunk's rows is handed in."""

from humanline_fused.chunked_head.chunks import in_blocks, rows_of
from humanline_fused.chunked_head.epilogue import Epilogue
from humanline_fused.chunked_head.head_logp import head_logp
from humanline_fused.chunked_head.head_loss import head_loss
from humanline_fused.chunked_head.work import needs_of, work_of

__all__ = ["Epilogue", "head_logp", "head_loss", "in_blocks", "needs_of", "rows_of", "work_of"]
