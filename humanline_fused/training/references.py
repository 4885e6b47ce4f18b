"""Makes a run's reference: scores of coming batches, a second adapter, or a second model."""

import copy
from collections.abc import Callable

from accelerate import Accelerator
from torch import nn

from humanline_fused.model.fused_head import score_in_forward_
from humanline_fused.reference import AdapterReference, CopyReference, LookaheadReference
from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.reference.sync import pair_tensors, refuse_shared_storage
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.run.sharding import prepare_reference
from humanline_fused.training.start import disable_dropout_

Reference = LookaheadReference | CopyReference | AdapterReference


def make_reference(
    config: HumanlineConfig,
    accelerator: Accelerator,
    policy: Callable[[], nn.Module],
    given: nn.Module | None,
    score: Callable[[nn.Module, int], list[TokenScores]],
) -> Reference:
    """Return the reference that a config names.

    Args:
        config: the settings.
        accelerator: places and shards a second model.
        policy: returns the policy, which Trainer wraps later.
        given: a reference model of its own, if there is one.
        score: scores the batches of a step with a model.

    Raises:
        ValueError: the model that was given does not fit the policy.
    """
    if config.reference in ("lookahead", "adapter"):
        assert config.sync_every is not None

        def score_policy(step: int) -> list[TokenScores]:
            return score(policy(), step)

        if config.reference == "lookahead":
            return LookaheadReference(score_policy, config.sync_every)
        reference = AdapterReference(score_policy, policy(), config.sync_every)
        if config.disable_dropout:
            disable_dropout_(policy())  # that of the second adapter
        return reference
    if given is not None:
        refuse_shared_storage(given, policy())
    model = copy.deepcopy(policy()) if given is None else given
    if config.head == "fused":
        score_in_forward_(model)
    sync_every = config.sync_every if config.reference == "copy" else None
    if sync_every:
        pair_tensors(model, policy())
    model = prepare_reference(accelerator, model)
    return CopyReference(lambda step: score(model, step), model, sync_every)
