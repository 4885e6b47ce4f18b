"""A second LoRA adapter as reference equals look-ahead, and the exported model does not contain it."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._C._distributed_c10d import GradBucket, HashStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, TrainerCallback

from humanline_fused.reference import AdapterReference
from humanline_fused.reference.adapter import ADAPTER, adapter_tensors
from humanline_fused.training import HumanlineTrainer
from tests.tiny_model import losses, records, tiny_model, tiny_trainer, trained

# Bounds that clamp tokens at the learning rate of the tiny runs.
TIGHT: dict[str, Any] = {"log_epsilon_P": -0.15, "log_epsilon_R": 0.1, "learning_rate": 3e-2}
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}


def adapted(name: str = "default", base: Any = None, **settings: Any) -> Any:
    """A tiny model with a LoRA adapter that is not zero."""
    base = tiny_model() if base is None else base
    torch.manual_seed(1)
    settings = {"r": 2, "target_modules": ["v_proj", "down_proj"], "lora_dropout": 0.1} | settings
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"init_lora_weights": False} | settings)
    return peft.get_peft_model(base, config, adapter_name=name)


def reference_of(model: Any) -> AdapterReference:
    return AdapterReference(lambda step: [], model, sync_every=1)


def tensors(model: Any, adapter: str = "default") -> dict[str, torch.Tensor]:
    return {path: tensor.detach().clone() for path, tensor in adapter_tensors(model, adapter).items()}


def base_weights(model: Any) -> dict[str, torch.Tensor]:
    return {path: p.detach().clone() for path, p in model.named_parameters() if "lora" not in path}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[path], second[path]) for path in first)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(20)[None]).logits


# Equality with the other references


@pytest.mark.parametrize(
    ("objective", "sync_every", "others"),
    [("dpo", 1, ["adapter"]), ("dpo", 2, ["copy", "adapter"]), ("kto", 2, ["adapter"]), ("grpo", 1, ["adapter"])],
)
def test_look_ahead_copy_and_adapter_are_bitwise_equal_with_dropout(
    tmp_path: Path, objective: str, sync_every: int, others: list[str]
):
    settings = {"objective": objective, "sync_every": sync_every, "gradient_accumulation_steps": 2, "max_steps": 4}
    settings |= TIGHT
    ahead, *runs = (
        trained(tmp_path / kind, model=adapted(), reference=kind, disable_dropout=False, clamp=False, **settings)
        for kind in ("lookahead", *others)
    )
    dropout = [module.p for module in ahead.model.modules() if isinstance(module, nn.Dropout)]
    assert set(dropout) == {0.1}
    assert len(set(losses(ahead))) == 4
    for run in runs:
        assert losses(run) == losses(ahead)
        assert same(tensors(run.model), tensors(ahead.model))
        assert same(base_weights(run.model), base_weights(adapted()))


KINDS: dict[str, dict[str, Any]] = {
    "magnitudes and an embedding": {"use_dora": True, "target_modules": ["v_proj", "embed_tokens"]},
    "a whole module and single tokens": {"modules_to_save": ["norm"], "trainable_token_indices": [7, 8, 9]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sync_copies_every_tensor_that_peft_keeps_per_adapter(tmp_path: Path, kind: str):
    ahead, beside = (
        trained(tmp_path / reference, model=adapted(**KINDS[kind]), reference=reference, max_steps=3, **TIGHT)
        for reference in ("lookahead", "adapter")
    )
    assert losses(beside) == losses(ahead)
    assert same(tensors(beside.model), tensors(ahead.model))
    start = tensors(adapted(**KINDS[kind]))
    trainable = {path for path, t in adapter_tensors(beside.model, "default").items() if t.requires_grad}
    assert not any(torch.equal(tensors(beside.model, ADAPTER)[path], start[path]) for path in trainable)


class Witness(TrainerCallback):
    """Records the adapters before every update."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before.append(tensors(kwargs["model"]))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for tensor in adapter_tensors(kwargs["model"], ADAPTER).values():
            assert not tensor.requires_grad
            assert tensor.grad is None
        assert all(tensor.grad is not None for tensor in adapter_tensors(kwargs["model"], "default").values())


def test_a_sync_copies_the_adapter_into_frozen_storage_that_no_optimizer_updates(tmp_path: Path):
    witness = Witness()
    settings = {"reference": "adapter", "sync_every": 2, "max_steps": 4}
    trainer = trained(tmp_path, model=adapted(), callbacks=[witness], **settings)
    reference = adapter_tensors(trainer.model, ADAPTER)
    assert same(tensors(trainer.model, ADAPTER), witness.before[2])
    assert not same(witness.before[2], witness.before[3])
    assert not {t.data_ptr() for t in reference.values()} & {t.data_ptr() for t in tensors(trainer.model).values()}
    optimizer: Any = trainer.optimizer
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimised == {id(tensor) for tensor in adapter_tensors(trainer.model, "default").values()}


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ddp_reduces_only_the_trained_adapter_also_after_a_scoring_pass(tmp_path: Path, process_group: None):
    trainer = tiny_trainer(tmp_path, model=adapted(), reference="adapter")
    model = nn.parallel.DistributedDataParallel(trainer.model)
    trainer.model_wrapped = model
    reduced: set[int] = set()

    def hook(state: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        reduced.update(map(id, bucket.parameters()))
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model.register_comm_hook(None, hook)
    (scores,) = trainer.reference.scores(0, 5)
    batch = trainer._window(0)[0].with_scores(scores)
    trainer.scorer.loss(model.train(), batch)[0].backward()
    assert reduced == {id(tensor) for tensor in adapter_tensors(trainer.model, "default").values()}


class HeadProducts(TorchDispatchMode):
    """Records the shapes of the products with the head."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            factors = [t for t in args if isinstance(t, torch.Tensor)][-2:]
            if {100, 32} <= {size for factor in factors for size in factor.shape}:
                self.shapes.append(tuple(out.shape))
        return out


def test_a_frozen_head_takes_two_products_per_step_and_gets_no_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    products = HeadProducts()
    step = HumanlineTrainer.training_step

    def counted(*args: Any) -> torch.Tensor:
        with products:
            return step(*args)

    monkeypatch.setattr(HumanlineTrainer, "training_step", counted)
    trained(tmp_path / "whole", max_steps=1)
    assert len(products.shapes) == 3
    assert (100, 32) in products.shapes
    products.shapes.clear()
    trained(tmp_path / "adapter", model=adapted(), reference="adapter", max_steps=1)
    assert len(products.shapes) == 2
    assert (100, 32) not in products.shapes


# State of the caller's model


def test_scoring_restores_active_adapter_requires_grad_and_modes_even_if_it_fails():
    model = adapted("mine")
    reference = reference_of(model)
    model.train()
    model.base_model.model.model.norm.eval()
    next(iter(adapter_tensors(model, "mine").values())).requires_grad_(False)

    def look() -> tuple[Any, ...]:
        flags = {path: p.requires_grad for path, p in model.named_parameters()}
        modes = {path: module.training for path, module in model.named_modules()}
        layers = {path: m.active_adapters for path, m in model.named_modules() if hasattr(m, "lora_A")}
        return flags, modes, layers, model.active_adapters, model.active_adapter

    before = look()

    def fails(step: int) -> Any:
        model.eval()
        assert model.active_adapters == [ADAPTER]
        assert not any(p.requires_grad for p in model.parameters())
        raise RuntimeError("out of memory")

    reference.score = fails
    with pytest.raises(RuntimeError, match="out of memory"):
        reference.scores(0, 5)
    assert look() == before
    reference.score = lambda step: [{"ref_logp": logits(model)}]
    reference.scores(0, 5)
    assert look() == before


def test_the_second_adapter_leaves_base_weights_policy_and_random_state_unchanged():
    model = adapted(init_lora_weights="pissa")
    base, before, state = base_weights(model), logits(model), torch.get_rng_state()
    settings = model.peft_config["default"].to_dict()
    reference_of(model)
    assert model.peft_config["default"].to_dict() == settings
    assert torch.equal(torch.get_rng_state(), state)
    assert same(base_weights(model), base)
    assert torch.equal(logits(model), before)


def test_without_a_cadence_the_second_adapter_stays_as_it_was():
    model = adapted()
    reference, first = AdapterReference(lambda step: [], model, sync_every=None), tensors(model)
    for tensor in adapter_tensors(model, "default").values():
        tensor.detach().zero_()
    reference.before_optimizer_step(0, model)
    assert same(tensors(model, ADAPTER), first)


def test_the_summary_compares_the_bytes_of_a_second_adapter_and_a_second_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trained(tmp_path, model=adapted(), reference="adapter", dry_run=True)
    # float32: r=2 of v_proj [32, 32] and down_proj [32, 48]; the model has 59.9 KiB with v_proj's alone.
    assert "reference: adapter k=1, 1.1 KiB more instead of 60.6 KiB of weights" in capsys.readouterr().out


# Checkpoints and export


def saved_adapters(folder: Path) -> list[str]:
    return [str(file.parent.relative_to(folder)) for file in sorted(folder.rglob("adapter_model.safetensors"))]


@pytest.mark.parametrize("name", ["default", "tuned"])
def test_resumed_between_two_syncs_a_run_ends_bitwise_as_the_uninterrupted_one(tmp_path: Path, name: str):
    settings: dict[str, Any] = {
        "reference": "adapter",
        "sync_every": 2,
        "max_steps": 4,
        "disable_dropout": False,
        "clamp": False,
        **SAVING | {"save_steps": 3},  # after the second sync: the reference is no longer the first policy
        **TIGHT,
    }
    whole = trained(tmp_path / "whole", model=adapted(name), **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    resumed = tiny_trainer(tmp_path / "cut", model=adapted(name), resume_from_checkpoint="auto", **settings)
    resumed.train()
    assert losses(resumed) == losses(whole)
    for adapter in (name, ADAPTER):
        assert same(tensors(resumed.model, adapter), tensors(whole.model, adapter))
    identities = [(tmp_path / run / "checkpoint-4" / "run.json").read_text() for run in ("whole", "cut")]
    assert identities[0] == identities[1]
    assert not list(tmp_path.rglob(ADAPTER))


def test_the_best_model_is_found_and_loaded_without_ref(tmp_path: Path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2}
    held_out = {"eval_dataset": records("dpo", 5, seed=5), "max_steps": 4}
    trainer = trained(tmp_path, model=adapted(), reference="adapter", **SAVING, **best, **held_out, **TIGHT)
    file = Path(str(trainer.state.best_model_checkpoint), "adapter_model.safetensors")
    assert same(tensors(trainer.model), load_file(file))
    assert trainer.model.active_adapters == ["default"]
    assert saved_adapters(tmp_path) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("kind", [{}, {"modules_to_save": ["embed_tokens", "norm"]}])
def test_the_exported_folder_is_one_adapter_that_loads_and_is_the_policy(tmp_path: Path, kind: dict[str, Any]):
    tiny_model().save_pretrained(tmp_path / "start")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    model = adapted(base=base, **kind)
    trainer = trained(tmp_path / "run", model=model, reference="adapter", max_steps=2, **TIGHT)
    trainer.save_model()
    model.save_pretrained(tmp_path / "by_hand")
    for folder in (tmp_path / "run", tmp_path / "by_hand"):
        assert saved_adapters(folder) == ["."]
        named = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
        put_on = peft.PeftModel.from_pretrained(tiny_model(), folder)
        assert torch.equal(logits(named), logits(model))
        assert torch.equal(logits(put_on), logits(model))
    assert not torch.equal(logits(model), logits(adapted(**kind)))
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "start")


# Refused policies


def two_active() -> Any:
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(target_modules=["v_proj"]))
    model.base_model.set_adapter(["default", "other"])
    return model


def of_another_type() -> Any:
    return peft.get_peft_model(tiny_model(), peft.LoHaConfig(target_modules=["v_proj"], r=2))


def with_more_trained() -> Any:
    model = adapted()
    model.base_model.model.model.norm.requires_grad_(True)
    return model


def with_biases() -> Any:
    return adapted(base=tiny_model(attention_bias=True), bias="lora_only")


MISFITS = [
    (tiny_model, "expected a PEFT model with one active adapter, got LlamaForCausalLM; use reference='lookahead'"),
    (two_active, "expected a PEFT model with one active adapter, got 2: default, other"),
    (lambda: adapted("ref"), r"none called 'ref', .*got ref\. If an earlier run left it there: model\.delete_adapter"),
    (of_another_type, r"one active adapter of type LORA, got PeftType\.LOHA, .*use reference='lookahead'"),
    (with_more_trained, r"nothing else trained, got base_model\.model\.model\.norm\.weight beside 'default'"),
    (with_biases, r"nothing else trained, got .*v_proj\.base_layer\.bias.* beside 'default'"),
]


@pytest.mark.parametrize(("model", "said"), MISFITS)
def test_a_policy_that_a_second_adapter_cannot_represent_is_refused_before_any_write(
    tmp_path: Path, model: Any, said: str
):
    with pytest.raises(ValueError, match=f"reference='adapter': .*{said}"):
        tiny_trainer(tmp_path / "run", model=model(), reference="adapter")
    assert not (tmp_path / "run").exists()


def test_a_missing_peft_is_reported(monkeypatch: pytest.MonkeyPatch):
    model = adapted()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"expected peft, .*\(pip install 'humanline-fused\[peft\]'\)"):
        reference_of(model)


def test_an_adapter_with_ambiguous_tensor_names_is_refused_and_ref_is_removed():
    model = adapted("layers")
    before = set(dict(model.named_parameters()))
    with pytest.raises(ValueError, match=r"to have the same parameters: only the policy has .*input_layernorm\.weight"):
        reference_of(model)
    assert set(dict(model.named_parameters())) == before
    assert list(model.peft_config) == ["layers"]


def test_a_second_model_in_addition_to_the_second_adapter_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="expected None with reference='adapter', which keeps no second model"):
        tiny_trainer(tmp_path, model=adapted(), reference="adapter", reference_model=tiny_model())
