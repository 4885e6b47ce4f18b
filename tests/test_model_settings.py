"""The model of a run by its settings: LoRA, attention, revision; and arguments that TRL's users bring."""

import inspect
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from humanline_fused.training import HumanlineConfig, HumanlineTrainer
from humanline_fused.training.foreign_arguments import OF_SETTINGS, OF_TRAINER, instead
from humanline_fused.training.start import load_policy
from tests.tiny_model import losses, records, tiny_config, tiny_model, tiny_tokenizer, tiny_trainer

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("start"))
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def trained_names(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_of(policy: torch.nn.Module) -> Any:
    assert isinstance(policy, peft.PeftModel)
    return policy.peft_config["default"]  # pyright: ignore[reportIndexIssue]


def test_lora_r_trains_an_adapter_on_every_linear_layer_but_the_head(saved: str):
    policy, _ = load_policy(None, None, tiny_config("unused", model=saved, lora_r=2))
    layers = [name for name, module in tiny_model().named_modules() if isinstance(module, torch.nn.Linear)]
    adapted = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in trained_names(policy)}
    assert adapted == {*layers} - {"lm_head"}
    assert adapter_of(policy).lora_alpha == 4


def test_the_adapter_has_the_rank_scale_and_layers_that_were_asked_for(saved: str):
    settings = {"lora_r": 3, "lora_alpha": 5.0, "lora_target_modules": ["q_proj", "v_proj"]}
    policy, _ = load_policy(None, None, tiny_config("unused", model=saved, **settings))
    config = adapter_of(policy)
    assert (config.r, config.lora_alpha, config.target_modules) == (3, 5.0, {"q_proj", "v_proj"})


def test_the_adapter_starts_alike_in_every_run_of_a_seed(saved: str):
    def start(seed: int) -> list[torch.Tensor]:
        policy, _ = load_policy(None, None, tiny_config("unused", model=saved, lora_r=2, seed=seed))
        return [p.detach() for p in policy.parameters() if p.requires_grad]

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_peft_config_gives_the_losses_of_the_same_settings(saved: str, tmp_path: Path):
    given = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    data = {"train_dataset": records("dpo", 8)}
    by_settings = HumanlineTrainer(args=tiny_config(tmp_path / "a", model=saved, lora_r=2), **data)
    by_config = HumanlineTrainer(args=tiny_config(tmp_path / "b", model=saved), peft_config=given, **data)
    by_settings.train()
    by_config.train()
    assert losses(by_settings) == losses(by_config) != []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_r": 0}, "lora_r: expected an integer >= 1, got 0"),
        ({"lora_alpha": 8.0}, "lora_alpha: expected None without lora_r, got 8.0"),
        ({"lora_target_modules": ["q_proj"]}, "lora_target_modules: expected None without lora_r"),
        ({"lora_r": 2, "lora_alpha": 0.0}, "lora_alpha: expected a finite number > 0, got 0.0"),
        ({"load_in_4bit": True}, "load_in_4bit: expected false without lora_r"),
        ({"lora_r": 2, "load_in_4bit": True}, "load_in_4bit: expected false without a GPU, got True"),
    ],
)
def test_settings_that_no_model_can_have_are_refused(settings, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        tiny_config("unused", **settings)


def test_layers_that_the_model_lacks_are_named_beside_those_it_has(saved: str):
    config = tiny_config("unused", model=saved, lora_r=2, lora_target_modules=["c_attn"])
    with pytest.raises(ValueError, match=r"expected all-linear or layers of the model \(.*q_proj.*\), got 'c_attn'"):
        load_policy(None, None, config)


def test_an_adapter_is_asked_for_once(saved: str):
    config, given = tiny_config("unused", model=saved, lora_r=2), peft.LoraConfig(target_modules="all-linear")
    with pytest.raises(ValueError, match="peft_config: expected None with lora_r=2, got LoraConfig"):
        load_policy(None, None, config, given)
    adapted = peft.get_peft_model(tiny_model(), given)
    with pytest.raises(ValueError, match="lora_r: expected None with a model that has an adapter, got 2"):
        load_policy(adapted, tiny_tokenizer(), config)


@pytest.fixture(scope="module")
def adapter(saved: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an adapter, as a LoRA run exports it."""
    folder = str(tmp_path_factory.mktemp("adapter"))
    policy, tokenizer = load_policy(None, None, tiny_config("unused", model=saved, lora_r=2))
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_no_second_adapter_takes_the_place_of_the_one_in_a_folder(adapter: str):
    with pytest.raises(ValueError, match=r"lora_r: expected None with a model that has an adapter, got 2.*merge"):
        load_policy(None, None, tiny_config("unused", model=adapter, lora_r=2))


@pytest.mark.parametrize("with_base", [False, True], ids=["by its folder", "on a model"])
def test_an_adapter_that_loads_frozen_is_refused_with_the_way_to_train(adapter: str, with_base: bool, tmp_path: Path):
    model: Any = peft.PeftModel.from_pretrained(tiny_model(), adapter) if with_base else adapter
    given = {"train_dataset": records("dpo", 8), "processing_class": tiny_tokenizer()}
    with pytest.raises(ValueError, match=r"model: expected trained weights, got none.*humanline merge"):
        HumanlineTrainer(model, tiny_config(tmp_path), **given)


def test_a_model_without_trained_weights_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"model: expected trained weights, got none that requires a gradient$"):
        tiny_trainer(tmp_path, model=tiny_model().requires_grad_(False))


def test_an_optimizer_of_other_weights_than_the_policys_is_refused(tmp_path: Path):
    model, data = tiny_model(), records("dpo", 8)
    before = torch.optim.SGD(model.parameters(), lr=0.1)
    config = tiny_config(tmp_path, lora_r=2)
    with pytest.raises(ValueError, match="optimizers: expected an optimizer of the policy's trained weights"):
        HumanlineTrainer(model, config, data, processing_class=tiny_tokenizer(), optimizers=(before, None))


def test_virtual_tokens_are_refused_as_the_losses_know_none(tmp_path: Path):
    given = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    data = records("dpo", 8)
    with pytest.raises(ValueError, match="expected an adapter of weights, got PromptTuningConfig"):
        HumanlineTrainer(
            tiny_model(), tiny_config(tmp_path), data, processing_class=tiny_tokenizer(), peft_config=given
        )


@pytest.mark.parametrize("settings", [{"revision": "main"}, {"attn_implementation": "eager"}])
def test_a_model_that_is_loaded_already_takes_no_setting_of_loading(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name}: expected its default with a model that is loaded already"):
        load_policy(tiny_model(), tiny_tokenizer(), tiny_config("unused", **settings))


def test_the_attention_is_the_one_that_was_asked_for(saved: str):
    policy, _ = load_policy(None, None, tiny_config("unused", model=saved, attn_implementation="eager"))
    assert policy.config._attn_implementation == "eager"


def test_model_and_tokenizer_are_loaded_with_the_same_revision(saved: str, monkeypatch):
    seen = []

    def spy(loaded, *args, **kwargs):
        seen.append((kwargs.get("revision"), kwargs.get("trust_remote_code")))
        return loaded

    monkeypatch.setattr("humanline_fused.training.start.AutoTokenizer.from_pretrained", lambda *a, **k: spy(1, *a, **k))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: spy(tiny_model(), *a, **k))
    load_policy(None, None, tiny_config("unused", model=saved, revision="v1", trust_remote_code=True))
    assert seen == [("v1", True), ("v1", True)]


# From TRL's scripts


def test_without_settings_the_defaults_hold(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = HumanlineTrainer(tiny_model(), train_dataset=records("dpo", 20), processing_class=tiny_tokenizer())
    assert trainer.args.objective == "dpo"


@pytest.mark.parametrize("name", ["ref_model", "compute_metrics", "tokenizer", "data_collator"])
def test_an_argument_of_trl_s_trainers_is_refused_with_its_counterpart(name: str, tmp_path: Path):
    with pytest.raises(TypeError, match=f"HumanlineTrainer: {name} is not an argument; here: "):
        HumanlineTrainer(tiny_model(), args=tiny_config(tmp_path), **{name: None})
    with pytest.raises(TypeError, match="args_ is not an argument; did you mean args"):
        HumanlineTrainer(tiny_model(), args_=None)


def test_a_setting_of_trl_is_refused_with_its_counterpart():
    with pytest.raises(TypeError, match="HumanlineConfig: max_prompt_length is not an argument; here: max_length"):
        HumanlineConfig(output_dir="run", **{"max_prompt_length": 3})
    with pytest.raises(TypeError, match="HumanlineConfig: sync_evry is not an argument; did you mean sync_every"):
        HumanlineConfig(output_dir="run", **{"sync_evry": 3})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("chat_template", "; here: none: the tokenizer's own"),
        ("packing", "; here: layout"),
        ("lr", "; here: learning_rate"),
        ("evaluation_strategy", "; did you mean eval_strategy?"),
        ("mixed_precision", "; here: bf16 or fp16"),
        ("special_tokens_map", ""),
    ],
)
def test_a_setting_of_other_programs_gets_its_counterpart_or_a_name_that_is_alike(name: str, said: str):
    known = [field.name for field in fields(HumanlineConfig)]
    told = instead(name, OF_SETTINGS, known)
    assert told.startswith(said)
    assert bool(told) == bool(said)


def test_no_setting_is_said_to_be_missing():
    assert not {field.name for field in fields(HumanlineConfig) if field.init} & OF_SETTINGS.keys()


def test_every_default_that_differs_from_trl_s_is_in_the_documents():
    trl = pytest.importorskip("trl")
    page = (Path(__file__).parent.parent / "docs" / "moving.md").read_text()
    table = page.split("### Defaults that differ from TRL's")[1].split("\n\n|")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()[2:]]
    listed = {name.split()[0].strip("`") for _, names, *_ in rows for name in names.split(", ")}
    here = {field.name: field.default for field in fields(HumanlineConfig) if field.init}
    differ = {
        field.name
        for kind in (trl.DPOConfig, trl.KTOConfig, trl.GRPOConfig)
        for field in fields(kind)
        if field.name in here and field.default != here[field.name] and field.default is not MISSING
    }
    by_objective = {"beta", "loss_type"}  # None and sigmoid stand for the objective's own, which are TRL's
    turned_on = {"bf16"}  # by TRL's __post_init__
    lacking = {"eval_fraction"}  # TRL trains on all data
    assert listed == differ - by_objective | turned_on | lacking


def test_every_argument_of_trl_that_is_missing_here_has_a_counterpart():
    trl = pytest.importorskip("trl")
    ours = {field.name for field in fields(HumanlineConfig)}
    theirs = {f.name for kind in (trl.DPOConfig, trl.KTOConfig, trl.GRPOConfig, trl.ModelConfig) for f in fields(kind)}
    assert [name for name in sorted(theirs - ours) if not instead(name, OF_SETTINGS, [])] == []
    assert {name for name in OF_SETTINGS if name in ours} <= {"warmup_ratio"}  # which transformers 5.10 still has
    trainers = trl.DPOTrainer, trl.KTOTrainer, trl.GRPOTrainer
    arguments = {name for kind in trainers for name in inspect.signature(kind).parameters}
    accepted = set(inspect.signature(HumanlineTrainer).parameters)
    assert [name for name in sorted(arguments - accepted) if not instead(name, OF_TRAINER, [])] == []
    assert [name for name in OF_TRAINER if name in accepted] == []
