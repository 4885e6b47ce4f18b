"""Synced reference as a second, frozen LoRA adapter on the policy's base weights."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.reference.sync import _some, _tensors, pair_by_name

ADAPTER = "ref"
"""Name of the second adapter."""

INSTEAD = "use reference='lookahead', the same numbers without a second adapter"


def trained_adapter(model: nn.Module) -> str:
    """Return the name of the trained LoRA adapter, if a second adapter can represent the whole policy.

    Args:
        model: the policy, as returned by peft.get_peft_model. It is not changed.

    Raises:
        ValueError: peft is missing; the model is not a PEFT model; it has several active adapters, one that is not
            LoRA, or one called "ref"; or other parameters are trained too. The message says which.

    >>> from peft import LoraConfig, get_peft_model
    >>> trained_adapter(get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"])))
    'default'
    """
    try:
        from peft import PeftModel, PeftType
    except ImportError as missing:
        raise ValueError(
            "reference='adapter': expected peft, which is not installed (pip install 'humanline-fused[peft]')"
        ) from missing
    expected = "reference='adapter': expected a PEFT model with one active adapter"
    if not isinstance(model, PeftModel):
        raise ValueError(f"{expected}, got {type(model).__name__}; use reference='lookahead'")
    if len(model.active_adapters) != 1:
        raise ValueError(f"{expected}, got {len(model.active_adapters)}: {_some(model.active_adapters)}")
    if ADAPTER in model.peft_config:
        raise ValueError(
            f"{expected} and none called {ADAPTER!r}, the name of the second one, got {_some(model.peft_config)}. "
            f"If an earlier run left it there: model.delete_adapter({ADAPTER!r})"
        )
    (name,) = model.active_adapters
    kind = model.peft_config[name].peft_type
    if kind != PeftType.LORA:
        raise ValueError(f"{expected} of type LORA, got {kind}, which may keep state elsewhere; {INSTEAD}")
    own = {id(tensor) for tensor in adapter_tensors(model, name).values()}
    beside = [path for path, p in model.named_parameters() if p.requires_grad and id(p) not in own]
    if beside:
        raise ValueError(f"{expected} and nothing else trained, got {_some(beside)} beside {name!r}; {INSTEAD}")
    return name


def adapter_tensors(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Return the parameters and buffers of one adapter, by path without the adapter's name."""
    split = ((path.split("."), tensor) for path, tensor in _tensors(model).items())
    return {".".join(part for part in parts if part != adapter): tensor for parts, tensor in split if adapter in parts}


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore ``requires_grad`` of all parameters and the training mode of all modules on exit."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        for module, training in modes:
            module.training = training


class AdapterReference:
    """A frozen adapter "ref" on the policy's base weights, synced every ``sync_every`` optimizer steps.

    It gives the same log-probs as a copied model, for the memory of one adapter. It covers everything that PEFT keeps
    per LoRA adapter: embeddings, DoRA's magnitudes, ``modules_to_save``, trainable tokens. From now on the model's
    ``save_pretrained`` excludes "ref".

    Args:
        score: takes a step and returns the log-probs of its micro-batches under the active adapter.
        model: the PEFT policy; gets the adapter "ref", equal to the active one.
        sync_every: k ≥ 1, in optimizer steps; None never syncs.

    Raises:
        ValueError: :func:`trained_adapter` refuses the model, or PEFT creates different tensors from the same
            config. The model is unchanged.

    Source: arXiv 2509.24207, section 4 (the sync).

    >>> from peft import LoraConfig, get_peft_model
    >>> policy = get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"]))
    >>> x = torch.ones(1, 2)
    >>> reference = AdapterReference(lambda step: [{"ref_logp": policy(x)}], policy, sync_every=1)
    >>> _ = policy.base_model.model[0].lora_B["default"].weight.data.fill_(1.0)  # an update
    >>> torch.equal(reference.scores(0, 9)[0]["ref_logp"], policy(x))
    False
    >>> reference.before_optimizer_step(0, policy)
    >>> torch.equal(reference.scores(1, 9)[0]["ref_logp"], policy(x))
    True
    """

    def __init__(self, score: Callable[[int], list[TokenScores]], model: nn.Module, sync_every: int | None) -> None:
        self.score = score
        self.sync_every = sync_every
        self.trained = trained_adapter(model)
        self.model: Any = model
        self._add()

    def _add(self) -> None:
        model, exported = self.model, list(self.model.peft_config)
        config = copy.deepcopy(model.peft_config[self.trained])
        config.init_lora_weights = False  # PiSSA and similar would subtract the adapter from the base weights again
        config.inference_mode = True
        devices = {p.device for p in model.parameters() if p.is_cuda}
        # PEFT draws weights that are overwritten: fork the RNG so that the policy's dropout does not change.
        with torch.random.fork_rng(devices), _modes_kept(model):
            model.add_adapter(ADAPTER, config)
            try:
                self._sync()
            except ValueError:
                model.delete_adapter(ADAPTER)
                raise
        for tensor in adapter_tensors(model, ADAPTER).values():
            tensor.requires_grad_(False)
        model.save_pretrained = partial(model.save_pretrained, selected_adapters=exported)

    @torch.no_grad()
    def _sync(self) -> None:
        pairs = pair_by_name(*(adapter_tensors(self.model, name) for name in (ADAPTER, self.trained)))
        torch._foreach_copy_(*pairs)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Activate the reference adapter; restore adapter, training mode and ``requires_grad`` on exit."""
        with _modes_kept(self.model):
            try:
                self.model.base_model.set_adapter(ADAPTER, inference_mode=True)
                yield
            finally:
                self.model.base_model.set_adapter(self.trained, inference_mode=True)

    def scores(self, step: int, last_step: int) -> list[TokenScores]:
        """Return the reference's log-probs for ``step``, under the current adapter (next sync: before the next step).

        The active adapter, ``requires_grad`` and training mode are restored, also after an exception.
        """
        with self.active():
            return self.score(step)

    def before_optimizer_step(self, step: int, policy: nn.Module) -> None:
        """Sync at steps 0, k, 2k … Call after backward and gradient clipping, *before* the update."""
        if self.sync_every is not None and step % self.sync_every == 0:
            self._sync()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the adapter "ref", which the exported model lacks."""
        return {"adapter": {path: tensor.detach() for path, tensor in adapter_tensors(self.model, ADAPTER).items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], step: int, last_step: int) -> None:
        """Continue from :meth:`state_dict`, at any step."""
        for path, tensor in adapter_tensors(self.model, ADAPTER).items():
            tensor.copy_(state["adapter"][path])
