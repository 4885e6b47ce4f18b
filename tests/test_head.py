"""The fused head in a model's forward: correct scores for every architecture, or an error that names head='logits'."""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from humanline_fused.functional import token_logp
from humanline_fused.model.fused_head import restore_forward_, score_in_forward_
from humanline_fused.model.probe import probe
from humanline_fused.model.recorder import LogitsRecorder
from humanline_fused.scores import LMHead, Logits
from humanline_fused.targets import shift_targets
from tests.error_budget import assert_within_budget
from tests.tiny_model import tiny_model

VOCABULARY = 61
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = SIZES | {"num_key_value_heads": 1}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}

# Architectures with a scale or a softcap get one that has an effect.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "llama, tied": GROUPED | {"tie_word_embeddings": True},
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "gemma": GROUPED | {"head_dim": 8},
    "gemma2": GROUPED | {"head_dim": 8, "final_logit_softcapping": 0.5},
    "gemma3_text": GROUPED | {"head_dim": 8, "final_logit_softcapping": 0.5},
    "recurrent_gemma": GROUPED | {"logits_soft_cap": 0.5, "lru_width": 16, "attention_window_size": 8},
    "cohere": GROUPED | {"logit_scale": 3.0},
    "granite": GROUPED | {"logits_scaling": 3.0},
    "mixtral": GROUPED | {"num_local_experts": 4},
    "qwen3_moe": GROUPED | {"head_dim": 8, "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": GROUPED | {"head_dim": 8, "num_local_experts": 4},
    "gpt2": GPT2,
    "gptj": GPT2 | {"rotary_dim": 4},  # its head and Phi's have a bias
    "phi": SIZES,
    "gpt_neox": SIZES,
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "opt": SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 8},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}


def random_model(name: str) -> PreTrainedModel:
    """Return a model with random weights and logits of a few nats."""
    architecture: Any = CONFIG_MAPPING[name.split(",")[0]]
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = architecture(vocab_size=VOCABULARY, **special, **ARCHITECTURES[name])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")  # supports float64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    attention_mask = (torch.arange(7) < torch.tensor([[7], [5]])).long()
    return {"input_ids": ids, "attention_mask": attention_mask}


def targets() -> tuple[Tensor, Tensor]:
    return shift_targets(tokens()["input_ids"], tokens()["attention_mask"].bool())


def scored(model: Any, score: Callable[[LMHead], Any] | None = None) -> Any:
    """Return log-probs [B, T] computed inside forward."""
    score = score or (lambda head: token_logp(head, *targets()))
    return model(**tokens(), use_cache=False, score=score)


def from_logits(model: Any) -> Tensor:
    return token_logp(Logits(model(**tokens(), use_cache=False).logits), *targets())


def gradients(model: nn.Module, logp: Tensor) -> Tensor:
    """Return the gradient of a weighted sum of log-probs for all parameters."""
    weights = torch.linspace(-1, 1, logp.numel(), dtype=logp.dtype).view_as(logp)
    parameters = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad((logp * weights).sum(), parameters, allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


# Architectures


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probs_and_gradients_are_those_of_the_models_own_logits(name: str):
    model, exact = random_model(name), random_model(name).double()
    eager, oracle = from_logits(model), from_logits(exact)
    score_in_forward_(model)
    logp = scored(model)
    nats = oracle.abs().max().item()
    assert_within_budget(logp, eager, oracle.detach(), "logp", log_probs=nats)
    grads = gradients(model, logp), gradients(model, eager), gradients(exact, oracle)
    assert_within_budget(*grads, "gradient", log_probs=nats * logp.numel())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_right_padding_without_a_mask_changes_no_bit_of_the_tokens(name: str):
    model, inputs = random_model(name), tokens()
    with torch.no_grad():
        masked, bare = (
            model(**given, use_cache=False).logits for given in (inputs, {"input_ids": inputs["input_ids"]})
        )
    counted = inputs["attention_mask"].bool()
    assert torch.equal(bare[counted], masked[counted])


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_a_head_without_the_scale_or_cap_would_be_far_off(name: str):
    model = random_model(name)
    score_in_forward_(model)
    bare = scored(model, lambda head: token_logp(LMHead(head.hidden, head.weight, head.bias), *targets()))
    assert (bare - from_logits(model)).abs().max() > 0.1


def test_the_model_gives_the_loss_only_hidden_states_weight_and_bias():
    model = random_model("phi")
    score_in_forward_(model)
    head = scored(model, lambda head: head)
    assert head.hidden.shape == (2, 7, 16)
    assert head.weight is model.lm_head.weight
    assert head.bias is model.lm_head.bias


# Recorded operations


def recorder(dtype: torch.dtype = torch.float32) -> LogitsRecorder:
    return LogitsRecorder(LMHead(torch.zeros(2, 3, 4, dtype=dtype), torch.zeros(9, 4, dtype=dtype)), dtype)


def test_dividing_and_multiplying_by_the_same_number_cancel():
    assert 49.0 * (1 / 49.0) != 1
    divided: Any = recorder() / 49.0
    capped: Any = torch.tanh(divided)
    scores = (capped * 49.0).scores()
    assert (scores.scale, scores.softcap) == (1.0, 49.0)


def test_scales_before_and_after_a_cap_are_recorded_separately():
    scores = (2 * (recorder() * 3 / 4).tanh()).scores()
    x = torch.linspace(-5, 5, 11)
    assert scores.softcap is not None
    capped = scores.softcap * torch.tanh(scores.scale * x / scores.softcap)
    torch.testing.assert_close(capped, 2 * torch.tanh(x * 3 / 4))


def test_operations_that_keep_every_logit_change_nothing():
    kept = recorder().float().contiguous().to(torch.float32).to("cpu")[:, :, :9][..., :][:, 0:]
    assert (kept.scores().scale, kept.scores().softcap, kept.shape) == (1.0, None, (2, 3, 9))
    assert recorder(torch.bfloat16).float().dtype == torch.float32


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (lambda logits: logits + 1, "add"),
        (lambda logits: 1 - logits, "rsub"),
        (lambda logits: logits + torch.zeros(9), "add"),
        (lambda logits: torch.zeros(9) + logits, "add"),
        (lambda logits: logits * torch.ones(9), "a product of Tensor"),
        (lambda logits: torch.ones(9) * logits, "a product of Tensor"),
        (lambda logits: logits * -1.0, "a product of -1.0"),
        (lambda logits: logits / 0, "a quotient of 0"),
        (lambda logits: logits.tanh().tanh(), "two tanh"),
        (lambda logits: logits[:, 1:], "a selection"),
        (lambda logits: logits[..., :5], "a selection"),
        (lambda logits: logits[torch.tensor([0, 1])], "a selection"),
        (lambda logits: logits.__setitem__((0, 0, 0), 0.0), "setitem"),
        (lambda logits: logits.to(torch.bfloat16), "a cast from torch.float32 to torch.bfloat16"),
        (lambda logits: logits.to("meta"), "a move to meta"),
        (lambda logits: logits.log_softmax(-1), "log_softmax"),
        (lambda logits: torch.nn.functional.softmax(logits, -1), "softmax"),
        (lambda logits: logits.masked_fill(torch.ones(9).bool(), 0), "masked_fill"),
    ],
)
def test_an_unsupported_operation_is_an_error_with_its_name_and_the_remedy(
    done: Callable[[LogitsRecorder], Any], said: str
):
    with pytest.raises(ValueError, match=rf"does .*{said}.* with them\. Use the logits path: head='logits'"):
        done(recorder())


def test_logits_not_computed_by_the_head_are_an_error(monkeypatch: pytest.MonkeyPatch):
    model = tiny_model()
    own: Any = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda *args, **kw: SimpleNamespace(logits=own(*args, **kw).logits.scores().hidden)
    )
    score_in_forward_(model)
    with pytest.raises(ValueError, match=r"expected logits that get_output_embeddings.* got Tensor from Llama"):
        scored(model)
    assert "forward" not in vars(model.lm_head)


# Restoring the model


def test_without_score_the_model_is_unchanged(tmp_path: Path):
    model: Any = tiny_model().eval()
    plain: Any = tiny_model().eval()
    score_in_forward_(model)
    scored(model)
    assert torch.equal(model(**tokens()).logits, plain(**tokens()).logits)
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    prompt = tokens()["input_ids"][:1]
    generated = [m.generate(prompt, max_new_tokens=3, do_sample=False) for m in (model, plain)]
    assert torch.equal(*generated)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**tokens()).logits, plain(**tokens()).logits)
    assert loaded.config.architectures == ["LlamaForCausalLM"]


def test_a_deep_copy_scores_with_its_own_weights():
    model = tiny_model()
    score_in_forward_(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.lm_head.weight.mul_(2)
    assert scored(copied, lambda head: head.weight) is copied.lm_head.weight
    assert not torch.equal(scored(copied), scored(model))


def test_the_forward_is_replaced_once_and_can_be_restored():
    model = tiny_model()
    score_in_forward_(model)
    forward = model.forward
    score_in_forward_(model)
    assert model.forward == forward
    restore_forward_(model)
    restore_forward_(model)
    assert "forward" not in vars(model)
    assert isinstance(scored(model).logits, Tensor)


def test_after_an_error_in_the_loss_the_head_multiplies_again():
    model = tiny_model()
    score_in_forward_(model)
    with pytest.raises(ZeroDivisionError):
        scored(model, lambda head: 1 // 0)
    assert isinstance(model(**tokens()).logits, Tensor)


def test_gradient_checkpointing_changes_no_bit():
    plain, checkpointed = tiny_model().train(), tiny_model().train()
    checkpointed.gradient_checkpointing_enable()
    grads = []
    for model in (plain, checkpointed):
        score_in_forward_(model)
        grads.append(gradients(model, scored(model)))
    assert torch.equal(*grads)


def test_under_autocast_the_head_is_cast_as_a_linear_layer_is():
    model, exact = random_model("gemma2"), random_model("gemma2").double()
    score_in_forward_(model)
    with torch.autocast("cpu", torch.bfloat16):
        eager, logp = from_logits(model), scored(model)
    assert_within_budget(logp, eager, from_logits(exact), "logp", log_probs=eager.abs().max().item())


# PEFT


def lora(model: PreTrainedModel, **settings: Any) -> peft.PeftModel:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False, **settings)
    return peft.get_peft_model(model, config)


def test_lora_on_the_body_scores_and_has_the_gradients_of_its_logits():
    torch.manual_seed(0)
    model = lora(tiny_model(), target_modules=["q_proj", "down_proj"])
    exact = copy.deepcopy(model).double()
    eager, oracle = from_logits(model), from_logits(exact)
    expected, exact_gradients = gradients(model, eager), gradients(exact, oracle)
    score_in_forward_(model)
    logp = scored(model)
    nats = oracle.abs().max().item()
    assert_within_budget(logp, eager, oracle.detach(), "logp", log_probs=nats)
    budget = {"log_probs": nats * logp.numel(), "unit": exact_gradients.abs().max().item()}
    assert_within_budget(gradients(model, logp), expected, exact_gradients, "gradient", **budget)
    with model.disable_adapter():
        base, exact_base = from_logits(tiny_model()), from_logits(tiny_model().double())
        assert_within_budget(scored(model), base, exact_base.detach(), "logp of the base", log_probs=nats)


@pytest.mark.parametrize("settings", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_on_the_head_is_refused(settings: dict[str, Any]):
    model = lora(tiny_model(), **{"target_modules": ["q_proj"]} | settings)
    with pytest.raises(
        ValueError, match=r"expected a head that is a plain nn.Linear, got peft.*adapter.*head='logits'"
    ):
        score_in_forward_(model)


# Refused heads


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_head_that_does_more_than_multiply_is_refused():
    model = tiny_model()
    model.lm_head = Scaled(32, 100)
    with pytest.raises(ValueError, match=r"expected a head that is a plain nn.Linear, got .*Scaled.*head='logits'"):
        score_in_forward_(model)


def test_a_head_with_an_overridden_forward_is_refused():
    model: Any = tiny_model()
    model.lm_head.forward = model.lm_head.forward
    with pytest.raises(ValueError, match=r"expected a head that is a plain nn\.Linear"):
        score_in_forward_(model)


def test_a_model_split_over_devices_is_refused():
    model: Any = tiny_model()
    model.forward = lambda *args, **kwargs: None
    with pytest.raises(ValueError, match=r"expected a model whose forward is a method.*device_map.*head='logits'"):
        score_in_forward_(model)


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("placements", r"got a DTensor.*fully_shard\(\[norm, lm_head\], reshard_after_forward=False\)"),
        ("ds_id", "got one that DeepSpeed's ZeRO-3"),
    ],
)
def test_a_weight_that_is_not_whole_inside_forward_is_refused(attribute: str, said: str):
    model = tiny_model()
    score_in_forward_(model)
    setattr(model.lm_head.weight, attribute, 0)
    with pytest.raises(ValueError, match=rf"expected the head's whole weight inside forward, {said}"):
        scored(model)


# The probe


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "gptj", "mixtral"])
def test_the_probe_accepts_what_rounding_explains(name: str, autocast: bool):
    model = random_model(name)
    score_in_forward_(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        probe(model, model, **tokens(), impl="auto")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["gemma2", "cohere"])
def test_the_probe_refuses_another_softmax_and_names_the_logits_path(
    name: str, autocast: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(LogitsRecorder, "scores", lambda recorder: recorder.head)
    model = random_model(name)
    score_in_forward_(model)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        pytest.raises(ValueError, match=r"expected the log-probs of the model's own logits within .*head='logits'"),
    ):
        probe(model, model, **tokens(), impl="auto")
