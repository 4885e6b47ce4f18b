"""The probe accepts a model whose rows with shared prefixes are exact, and says in one line why another is not."""

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from humanline_fused.model.layout_probe import refusal
from tests.test_head import ARCHITECTURES, VOCABULARY, random_model
from tests.test_tree_attention import model_of
from tests.tiny_model import tiny_model

LEAK = "a completion changes the hidden states of others in its row"
REASONS = {
    # Its attention is transformers' own in older versions only; its recurrent layers leak in all.
    "recurrent_gemma": "its attention is not transformers' own 'sdpa'",
    "bloom": "it does not follow position_ids",
    "mamba": "it does not ask transformers for its attention masks",
}


def reason(model: Any, wrapped: nn.Module | None = None, longest: int = 32) -> str | None:
    ids = torch.arange(3, min(VOCABULARY, model.config.vocab_size))
    return refusal(wrapped or model, model, ids, longest)


def reason_of(model: Any) -> str:
    """Return the reason, which must be there."""
    given = reason(model)
    assert given is not None
    return given


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in vars(module):
            if name.endswith("dropout") and isinstance(getattr(module, name), float):
                setattr(module, name, 0.0)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_three_of_the_architectures_are_refused(name: str, dtype: torch.dtype):
    given = reason(without_dropout(model_of(name)).to(dtype))
    assert given in ((REASONS[name], LEAK) if name == "recurrent_gemma" else (REASONS.get(name),))


def test_under_autocast_the_products_round_the_hidden_states():
    model = tiny_model()
    with torch.autocast("cpu", torch.bfloat16):
        assert reason(model) is None


# Faults that a model may have


class Leaking(nn.Module):
    """Adds to each token the mean of the tokens before it in the row, as a recurrent layer may."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        count = torch.arange(1, hidden.shape[1] + 1)[:, None]
        return self.layer(hidden + hidden.cumsum(1) / count, *args, **kwargs)


def test_a_state_that_runs_along_the_row_is_refused():
    model = tiny_model()
    model.model.layers[-1] = Leaking(model.model.layers[-1])
    assert reason(model) == LEAK


def test_positions_that_the_model_makes_itself_are_refused():
    model: Any = tiny_model()
    rotary = model.model.rotary_emb
    own = rotary.forward
    rotary.forward = lambda hidden, position_ids, *args: own(hidden, torch.arange(hidden.shape[1])[None], *args)
    assert reason(model) == "it does not follow position_ids"


def test_an_argument_that_the_model_does_not_have_is_the_reason():
    model: Any = tiny_model()
    own = model.forward
    model.forward = lambda input_ids, use_cache: own(input_ids=input_ids, use_cache=use_cache)
    assert "TypeError" in reason_of(model)
    assert "position_ids" in reason_of(model)


def test_a_window_counted_in_rows_would_be_found(monkeypatch: pytest.MonkeyPatch):
    from humanline_fused.model import tree_attention

    model = random_model("mistral")
    assert model.config.sliding_window == 4096
    assert reason(model) is None
    own = tree_attention.TreeMask.__init__
    monkeypatch.setattr(tree_attention.TreeMask, "__init__", lambda mask, call, window: own(mask, call, None))
    assert "differ from those of padded rows" in reason_of(model)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_rope_that_depends_on_the_longest_sequence_is_refused_where_it_does(kind: str):
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
    model = tiny_model(rope_parameters=rope)
    assert reason(model, longest=64) is None
    assert reason(model, longest=65) == (
        f"its RoPE, '{kind}', depends on the longest sequence of a batch beyond 64 tokens"
    )


def test_yarn_is_accepted():
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32}
    assert reason(tiny_model(rope_parameters=rope), longest=64) is None


def test_dropout_is_refused():
    assert reason(tiny_model(attention_dropout=0.1)).startswith("dropout 0.1 is on")
    adapted = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"], lora_dropout=0.2))
    assert reason(adapted).startswith("dropout 0.2 is on")


def test_another_attention_implementation_is_refused_by_name():
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    assert reason(model) == "attn_implementation='flash_attention_2' has no masks of this kind: use 'sdpa'"


def test_data_of_a_single_token_cannot_be_tested():
    model = tiny_model()
    assert refusal(model, model, torch.full((2, 3), 5), 32) == "its data has one token, so that nothing can be tested"


# The model is left as it was


def test_modes_windows_weights_and_random_numbers_are_unchanged():
    model = random_model("gemma3_text").train()
    model.model.layers[0].eval()
    before = copy.deepcopy(model.state_dict())
    modes, window = [part.training for part in model.modules()], model.config.sliding_window
    random = torch.get_rng_state()
    assert reason(model) is None
    assert [part.training for part in model.modules()] == modes
    assert model.config.sliding_window == window
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())


class Wrapper(nn.Module):
    """Passes calls on, as DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("change", [lambda model: model, lambda model: model.bfloat16()])
def test_adapters_and_wrappers_are_called_as_in_training(change: Callable[[Any], Any]):
    adapted = change(peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj", "v_proj"])))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    calls = []
    wrapped = Wrapper(adapted)
    wrapped.register_forward_pre_hook(lambda *_: calls.append(1))
    assert reason(adapted, wrapped) is None
    assert calls


def test_a_virtual_prompt_in_front_of_the_row_is_refused():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert reason(peft.get_peft_model(tiny_model(), config)).startswith("it fails on such a row")
