"""The README's code runs, and its links resolve."""

import re

from benchmarks.results import ROOT

README = (ROOT / "README.md").read_text()


def test_the_training_loop_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {}
    exec(block, names)
    assert names["logits"].grad.abs().sum() > 0
    assert names["out"].loss.isfinite()


def test_every_link_to_a_file_resolves():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).is_file()] == []
