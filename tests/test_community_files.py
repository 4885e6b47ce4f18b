"""Workflows, citation and classifiers agree with the package."""

import re
import tomllib
from typing import Any

import pytest
import yaml
from trove_classifiers import classifiers

from benchmarks.results import ROOT
from humanline_fused import __version__

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYTHON = "Programming Language :: Python :: 3."


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_only_reads_the_repository_and_ends(path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 360 for job in workflow["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_commands_of_a_workflow_exist(path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"run: make (\S+)", path.read_text())
    assert [target for target in named if target not in targets] == []
    modules = re.findall(r"\.venv/bin/python -m (\w+)", path.read_text())
    assert set(modules) <= {"pytest", "benchmarks"}


def test_lint_tests_docs_wheels_and_a_gpu_job_have_a_workflow() -> None:
    jobs = {job for path in WORKFLOWS for job in yaml.safe_load(path.read_text())["jobs"]}
    assert jobs == {"lint", "test", "docs", "wheels", "gpu"}


def test_the_gpu_job_starts_only_by_hand() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "gpu.yml").read_text())
    assert workflow[True].keys() == {"workflow_dispatch"}  # YAML reads the key `on` as true


def test_the_classifiers_are_known_and_name_the_pythons_of_the_workflow() -> None:
    stated = project()["classifiers"]
    assert [line for line in stated if line not in classifiers] == []
    checks = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())
    tried = checks["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert tried == [f"3.{line.removeprefix(PYTHON)}" for line in stated if line.startswith(PYTHON)]


def test_the_lowest_python_that_is_declared_is_tried() -> None:
    assert project()["requires-python"] == ">=3.11"
    assert f"{PYTHON}11" in project()["classifiers"]


def test_the_citation_names_this_version_its_licence_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (__version__, project()["license"])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2509.24207"


def test_the_image_installs_extras_that_exist() -> None:
    (extras,) = re.findall(r"/src\[([\w,]+)\]", (ROOT / "Dockerfile").read_text())
    assert {*extras.split(",")} <= project()["optional-dependencies"].keys()
