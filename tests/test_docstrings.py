"""Every docstring example runs and gives the stated output."""

import doctest
import importlib
import pkgutil

import pytest

import humanline_fused

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(humanline_fused.__path__, "humanline_fused.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_operation_has_an_example():
    finder = doctest.DocTestFinder()
    for name in ("token_logp", "token_log_ratio", "dpo_loss", "kto_loss", "kto_kl", "grpo_loss", "shift_targets"):
        examples = [test for test in finder.find(getattr(humanline_fused, name), name) if test.examples]
        assert examples, f"{name} has no example"
