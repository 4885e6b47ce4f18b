"""A conversation with a model through its chat template, or texts that it continues without one."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from humanline_fused.model.fused_head import causal_lm
from humanline_fused.printing import escaped
from humanline_fused.training.online.generation import end_tokens
from humanline_fused.training.positions import position_limit_of
from humanline_fused.training.start import pad_token_id_of


class EscapedStreamer(TextStreamer):
    """Prints an answer while it is generated, with Python's escapes for control characters."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(escaped(text), stream_end)


@dataclass
class Dialogue:
    """The turns so far, and the model that answers.

    Attributes:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer.
        max_new_tokens: maximum tokens of an answer.
        temperature: of the samples; 0 takes the most probable token, None leaves the model's own generation config.
        system: the system message, or None.
        messages: the turns so far.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int = 256
    temperature: float | None = None
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.system is not None and not self.has_template:
            raise ValueError("--system: expected a tokenizer with a chat template, this one has none")
        self.begin_anew()

    @property
    def has_template(self) -> bool:
        """Whether the turns go through a chat template."""
        return bool(self.tokenizer.chat_template)

    def begin_anew(self) -> None:
        """Forget all turns but the system message."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def answer(self, text: str) -> str:
        """Print and return the answer to ``text``; without a chat template the continuation of it alone.

        Raises:
            ValueError: the text is empty, the template refuses the turns, or the model has no positions left.
        """
        turns = [*self.messages, {"role": "user", "content": text}]
        ids = self._ids(turns).to(self.model.device)
        room = self._room(ids.shape[1])
        with torch.inference_mode():
            whole = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self._generation(room),
                streamer=EscapedStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True),  # pyright: ignore[reportArgumentType]
            )
        said = str(self.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
        if self.has_template:
            self.messages = [*turns, {"role": "assistant", "content": said}]
        return said

    def _ids(self, turns: list[dict[str, str]]) -> Tensor:
        """Return the ids that the model continues, [1, T]."""
        if self.has_template:
            try:
                text: Any = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            except TemplateError as error:
                raise ValueError(f"the chat template refuses these turns: {error}") from error
            ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        else:
            ids = self.tokenizer(turns[-1]["content"], return_tensors="pt").input_ids
        if not ids.shape[1]:
            raise ValueError("expected a text of at least one token, got none")
        return ids

    def _room(self, tokens: int) -> int:
        """Return the maximum number of new tokens behind ``tokens``."""
        limit = position_limit_of(self.model)
        if limit is None or not limit.is_table:
            return self.max_new_tokens
        if tokens >= limit.positions:
            raise ValueError(f"expected fewer than {limit.positions} tokens, the model's positions, got {tokens}")
        return min(self.max_new_tokens, limit.positions - tokens)

    def _generation(self, room: int) -> GenerationConfig:
        inside: Any = causal_lm(self.model)
        config = copy.deepcopy(inside.generation_config)
        config.max_new_tokens, config.max_length = room, None
        config.eos_token_id = sorted(end_tokens(config, self.tokenizer)) or None
        config.pad_token_id = pad_token_id_of(self.tokenizer, self.model)
        if self.temperature is not None:
            config.do_sample = self.temperature > 0
            config.temperature = self.temperature or None
            config.top_p = config.top_k = None
        return config
