"""A row that holds each shared prefix once gives the log-probs and gradients of padded rows."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Llama4TextConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from humanline_fused.model.prefix_tree import prefix_tree
from humanline_fused.model.tree_attention import Attending, TreeMask, attending_by
from tests.error_budget import assert_within_budget
from tests.test_head import ARCHITECTURES, VOCABULARY, gradients, random_model, tokens
from tests.tiny_model import tiny_model
from tests.tree_rows import padded_logp, row_logp, sequences

REFUSED = {"recurrent_gemma", "bloom", "mamba"}
ACCEPTED = [name for name in ARCHITECTURES if name not in REFUSED]
WINDOW = 5  # shorter than every sequence
WINDOWED = ["mistral", "gemma2", "gemma3_text", "phi3", "gpt_oss"]


def model_of(name: str, attention: str | None = None, window: int | None = None) -> PreTrainedModel:
    model = random_model(name)
    if name == "gemma2":  # older versions of transformers choose sdpa, which leaves out its softcap
        model.set_attn_implementation("eager")
    if window is not None:
        model.config.sliding_window = window
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


def assert_same(model: PreTrainedModel) -> None:
    """Assert that log-probs and gradients in one row are those of padded rows within the error budget."""
    exact = copy.deepcopy(model).double()
    logp, eager, oracle = row_logp(model), padded_logp(model), padded_logp(exact)
    nats = oracle.abs().max().item()
    assert_within_budget(logp, eager, oracle, "logp", log_probs=nats)
    grads = gradients(model, logp), gradients(model, eager), gradients(exact, oracle)
    assert_within_budget(*grads, "gradient", log_probs=nats * logp.numel())


# Architectures


@pytest.mark.parametrize("name", ACCEPTED)
def test_log_probs_and_gradients_are_those_of_padded_rows(name: str):
    assert_same(model_of(name))


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_are_counted_in_positions(name: str):
    model = model_of(name, window=WINDOW)
    assert_same(model)
    assert not torch.allclose(row_logp(model), row_logp(model_of(name)), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2", "mixtral"])
def test_eager_attention_gets_a_tensor_mask(name: str):
    window = WINDOW if name in WINDOWED else None
    assert_same(model_of(name, "eager", window))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision_differs_from_padded_rows_by_rounding(attention: str):
    model, exact = model_of("qwen3", attention).bfloat16(), model_of("qwen3").double()
    exact.load_state_dict(model.state_dict())
    logp, eager, oracle = row_logp(model), padded_logp(model), padded_logp(exact)
    # Both round as often, at other places: their errors have one distribution, and about one norm.
    assert (logp - oracle).norm() <= 2 * (eager - oracle).norm()


# Gradient checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_checkpointing_changes_no_bit(reentrant: bool, attention: str):
    plain, checkpointed = (model_of("mistral", attention, WINDOW).train() for _ in range(2))
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    results = []
    for model in (plain, checkpointed):
        logp = row_logp(model)
        logp.square().sum().backward()
        results.append([logp, *(p.grad for p in model.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


# Everything else is unchanged


@torch.no_grad()
def test_a_compiled_model_computes_any_row_and_any_batch():
    model = tiny_model(num_hidden_layers=1).eval()
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(row_logp(compiled), row_logp(model))
    assert torch.equal(padded_logp(compiled), padded_logp(model))
    assert torch.equal(row_logp(compiled), row_logp(model))


def tables() -> tuple[Any, ...]:
    return ALL_ATTENTION_FUNCTIONS["sdpa"], ALL_MASK_ATTENTION_FUNCTIONS["sdpa"], ALL_MASK_ATTENTION_FUNCTIONS["eager"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_forward_pass_outside_is_that_of_transformers(attention: str, monkeypatch: pytest.MonkeyPatch):
    model, inputs = model_of("mistral", attention, WINDOW), tokens()
    row_logp(model)
    after = model(**inputs).logits
    for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        monkeypatch.setattr(table, "_local_mapping", {})
    assert not any(hasattr(function, "replaces") for function in tables())
    assert torch.equal(after, model(**inputs).logits)


def test_the_tables_are_changed_once():
    row_logp(model_of("llama"))
    first = tables()
    row_logp(model_of("qwen3"))
    assert tables() == first
    assert not any(hasattr(function.replaces, "replaces") for function in first)


def test_generation_is_that_of_a_model_that_never_ran_on_a_row():
    models: list[Any] = [tiny_model().eval(), tiny_model().eval()]
    model, plain = models
    row_logp(model)
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**prompt), plain.generate(**prompt))


def test_an_error_inside_ends_attention_by_the_tree():
    model = tiny_model().eval()
    with pytest.raises(ZeroDivisionError), attending_by(prefix_tree(sequences())):
        raise ZeroDivisionError
    assert model(**tokens()).logits.shape == (2, 7, 100)


def test_a_forward_pass_in_another_thread_attends_as_ever():
    model, tree = tiny_model().eval(), prefix_tree([torch.tensor([5, 6, 7, 8]), torch.tensor([5, 6, 9, 9])])
    ids = tree.input_ids.flip(1)  # as many tokens as the row has
    before = model(input_ids=ids).logits
    with ThreadPoolExecutor(1) as pool, attending_by(tree):
        meanwhile = pool.submit(lambda: model(input_ids=ids).logits).result()
    assert torch.equal(meanwhile, before)


# Bad input


def attend(**arguments: Any) -> Tensor:
    mask = TreeMask(Attending(prefix_tree([torch.tensor([7, 1]), torch.tensor([7, 2])])), None)
    heads = torch.zeros(1, 2, 3, 4)
    return ALL_ATTENTION_FUNCTIONS["sdpa"](nn.Module(), heads, heads, heads, mask, **arguments)[0]


def test_attention_with_dropout_or_a_softcap_is_an_error():
    row_logp(tiny_model())
    assert attend(dropout=0.0, scaling=0.5, softcap=None).shape == (1, 3, 2, 4)
    with pytest.raises(ValueError, match=r"attention by segments has no dropout$"):
        attend(dropout=0.1)
    with pytest.raises(ValueError, match=r"attention by segments has no softcap$"):
        attend(softcap=30.0)


def test_another_number_of_tokens_than_the_trees_is_an_error():
    model = tiny_model()
    tree = prefix_tree(sequences())
    with attending_by(tree), pytest.raises(ValueError, match=r"expected the \d+ tokens .* got 2 x 7 and 7 keys"):
        model(**tokens())


def test_attention_in_chunks_is_an_error():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "intermediate_size_mlp": 24, "num_hidden_layers": 2}
    config = Llama4TextConfig(
        vocab_size=VOCABULARY, num_attention_heads=2, num_key_value_heads=1, head_dim=8, attention_chunk_size=4, **sizes
    )
    with pytest.raises(ValueError, match=r"attends in chunks"):
        row_logp(AutoModelForCausalLM.from_config(config))
