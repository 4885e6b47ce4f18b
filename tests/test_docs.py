"""The code on the documentation pages runs, and their links resolve."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.results import ROOT
from humanline_fused.training import HumanlineConfig
from humanline_fused.training.data.findings import CAUSES, Severity
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.objectives import find_objective
from tests.tiny_model import tiny_tokenizer

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "examples" / "README.md"])


def run(page: str) -> dict[str, Any]:
    """Run the Python blocks of a page in order and return their names."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL):
        exec(block, names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_to_a_file_resolves(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_resolves(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.*)$", (page.parent / target if target else page).read_text(), flags=re.MULTILINE)
        assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"\]\((\w+\.md)\)", (DOCS / "README.md").read_text()))
    assert listed == {page.name for page in DOCS.glob("*.md")} - {"README.md"}


def test_the_navigation_of_the_site_lists_every_page() -> None:
    listed = re.findall(r"^ +- (?:[\w ]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} - {*listed} == set()


def test_the_functions_of_the_diagnose_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    run("diagnose.md")
    assert capsys.readouterr().out == "0.10 nats per token\n0.86 of the sample\n"


def test_the_loops_of_the_losses_page_run() -> None:
    torch.manual_seed(0)
    names = run("losses.md")
    assert names["logits"].grad.abs().sum() > 0
    assert names["weight"].grad.abs().sum() > 0
    torch.testing.assert_close(names["scored_ahead"].ref_logp, names["ref_logp"])
    assert names["reference"].pending == {}


def test_the_reward_of_the_rounds_page_gives_the_stated_values() -> None:
    run("rounds.md")


def test_feedback_files_of_halos_are_converted_to_pairs_and_labels(tmp_path: Path) -> None:
    prompt, good, bad = ([{"role": role, "content": role}] for role in ("user", "assistant", "assistant"))
    good[0]["content"] = "good"
    pair = {"prompt_id": 0, "prompt": prompt, "type": "pairwise_feedback", "reward_A": 1.0, "reward_B": 0.0}
    single = {"prompt_id": 1, "prompt": prompt, "type": "binary_feedback", "output": bad, "label": 0, "reward": 0.0}
    swapped = pair | {"output_A": bad, "output_B": good, "label": 0}
    (tmp_path / "halos.json").write_text(
        json.dumps([pair | {"output_A": good, "output_B": bad, "label": 1}, swapped, single])
    )
    run("moving.md")["from_halos"](tmp_path / "halos.json", tmp_path / "ours.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "ours.jsonl").read_text().splitlines()]
    assert rows == [
        {"prompt": prompt, "chosen": good, "rejected": bad},
        {"prompt": prompt, "chosen": good, "rejected": bad},
        {"prompt": prompt, "completion": bad, "label": False},
    ]
    for row, objective in zip(rows, ("dpo", "dpo", "kto"), strict=True):
        assert len(prepare([row], tiny_tokenizer(), find_objective(objective), max_length=32).examples) == 1


def test_every_setting_named_on_the_migration_page_exists() -> None:
    known = {*HumanlineConfig.__dataclass_fields__, "reference_model", "reward_function", "prompt"}
    tables = re.findall(r"^\|(.*)\|(.*)\|(.*)\|$", (DOCS / "moving.md").read_text(), flags=re.MULTILINE)
    named = {name for _, ours, _ in tables for name in re.findall(r"`([a-z_A-Z]+)(?:: [^`]*|=)?`", ours)}
    assert named - known - {"true", "false", "processes", "HumanlineTrainer", "module:function", "auto"} == set()


def findings_by_severity() -> str:
    """The lists of docs/data.md: what each group means, and the findings in it."""
    meaning = {
        Severity.LOSS: "A part of the data is not learnt, or not as it was written. Strict data refuse it:",
        Severity.NOTE: "To know before training:",
        Severity.DETAIL: "Only in the report of `humanline data`:",
    }
    groups = []
    for severity in Severity:
        texts = [f"- {cause.text}" for cause in CAUSES.values() if cause.severity is severity]
        groups.append("\n".join([meaning[severity], "", *texts]))
    return "\n\n".join(groups)


def test_the_page_on_data_lists_every_finding() -> None:
    page = (DOCS / "data.md").read_text()
    listed = re.search(r"<!-- findings -->\n(.*?)\n<!-- end of findings -->", page, flags=re.DOTALL)
    assert listed
    assert listed[1] == findings_by_severity()
