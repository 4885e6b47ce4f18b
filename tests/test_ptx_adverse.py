"""The kernels where a GPU rounds as badly as PTX permits and runs warps in any order: still within the error budget."""

import pytest
import torch

from tests.inputs import FORMS, random_batch
from tests.oracle import assert_matches_oracle
from tests.ptx.driver import active
from tests.ptx.emulator import Emulator

SEEDS = (1, 2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("objective", "settings"), FORMS)
def test_a_loss_and_its_gradient_keep_within_the_budget(device, emulator, objective, settings, seed):
    adverse = Emulator(emulator.arch, approx_seed=seed, schedule_seed=seed)
    batch = random_batch(device, B=2, T=2, V=9001, dtype=torch.bfloat16)
    with active(adverse):
        assert_matches_oracle(objective, batch, **settings)
    assert adverse.findings == []
    assert adverse.programs
