"""Settings of the model that a run loads, and of its LoRA adapter."""

from dataclasses import dataclass, field
from typing import Any

import torch

from humanline_fused.training.model_dtype import model_dtype_of
from humanline_fused.training.objectives.settings import expect

ALL_LINEAR = "all-linear"
"""peft's name of every linear layer but the head."""

LORA = ("lora_alpha", "lora_target_modules")
"""Settings that apply only with ``lora_r``."""


@dataclass
class ModelSettings:
    """Part of :class:`humanline_fused.training.HumanlineConfig`."""

    model: str | None = field(
        default=None,
        metadata={"help": "The initial policy: a folder written by save_pretrained, or a model name."},
    )
    model_dtype: str = field(
        default="float32",
        metadata={
            "help": "Data type of the weights: float32 (fp32), bfloat16 (bf16), float16 (fp16), or auto for the one in "
            "the model's folder. Updates with a small learning rate are lost in bfloat16 weights; bf16=true computes "
            "in bfloat16 with weights of any type."
        },
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a model with a name, and of its tokenizer."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the Python code in the model's folder or repository."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention, by a name of transformers: sdpa, eager, flash_attention_2 ... Default: transformers'."
        },
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "Keep the base weights in 4 bits (NF4, by bitsandbytes); needs a GPU and lora_r."},
    )
    lora_r: int | None = field(
        default=None,
        metadata={"help": "Train a LoRA adapter of this rank and not the base weights. Default: all weights."},
    )
    lora_alpha: float | None = field(
        default=None,
        metadata={"help": "lora_r: the adapter's product is scaled by lora_alpha / lora_r. Default 2 lora_r."},
    )
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": f"lora_r: names of the layers with an adapter. Default {ALL_LINEAR}: all but the head."},
    )

    def check_model(self) -> None:
        """Raise ValueError for settings that no model can have on this machine."""
        self.model_dtype = model_dtype_of(self.model_dtype)
        if isinstance(self.lora_target_modules, str):
            self.lora_target_modules = [self.lora_target_modules]
        if self.lora_r is None:
            for name in LORA:
                expect(self, name, getattr(self, name) is None, "None without lora_r")
            expect(
                self, "load_in_4bit", not self.load_in_4bit, "false without lora_r (4-bit weights cannot be trained)"
            )
            return
        rank, alpha = self.lora_r, self.lora_alpha
        expect(self, "lora_r", isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1, "an integer >= 1")
        expect(self, "lora_alpha", alpha is None or 0 < alpha < float("inf"), "a finite number > 0")
        expect(self, "lora_target_modules", self.lora_target_modules != [], "a name")
        expect(self, "load_in_4bit", not self.load_in_4bit or torch.cuda.is_available(), "false without a GPU")

    def source(self) -> dict[str, Any]:
        """Return the arguments of ``from_pretrained`` for the model and its tokenizer alike."""
        return {"trust_remote_code": self.trust_remote_code} | ({"revision": self.revision} if self.revision else {})

    def loading(self) -> dict[str, Any]:
        """Return the arguments of the model's ``from_pretrained``."""
        arguments = self.source() | {"dtype": self.model_dtype}
        if self.attn_implementation:
            arguments["attn_implementation"] = self.attn_implementation
        if self.load_in_4bit:
            arguments["quantization_config"] = four_bit(self.model_dtype)
        return arguments

    def refuse_loaded(self) -> None:
        """Raise ValueError for settings that a model which is loaded already cannot follow."""
        for name in ("revision", "attn_implementation", "load_in_4bit"):
            expect(self, name, not getattr(self, name), "its default with a model that is loaded already")


def four_bit(dtype: str) -> Any:
    """Return the settings of QLoRA (arXiv 2305.14314): NF4, doubly quantised, computed in bfloat16 or as ``dtype``.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    computed = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    try:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=computed,
        )
    except ImportError as missing:
        raise ValueError(
            "load_in_4bit: expected bitsandbytes, which is not installed: pip install bitsandbytes"
        ) from missing
