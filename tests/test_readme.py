"""What README shows runs, and what it points at exists."""

import re

from benchmarks.results import ROOT

README = (ROOT / "README.md").read_text()


def test_the_loop_of_your_own_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {}
    exec(block, names)
    assert names["logits"].grad.abs().sum() > 0
    assert names["out"].loss.isfinite()


def test_every_link_to_a_file_of_the_tree_leads_to_one():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
