"""The documentation site builds without a warning, with every public name, setting and formula."""

import dataclasses
import importlib
import re
from html import unescape
from pathlib import Path

import pytest
from transformers import TrainingArguments

from benchmarks.results import ROOT
from humanline_fused.training import HumanlineConfig

pytest.importorskip("mkdocs", reason="the extra docs is not installed: the site was not built")
pytest.importorskip("material", reason="the extra docs is not installed: the site was not built")

PUBLIC = (
    "humanline_fused",
    "humanline_fused.training",
    "humanline_fused.reference",
    "humanline_fused.integrations.trl",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the built site."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
    assert config.strict
    build(config)
    return folder


def text_of(page: Path) -> str:
    return unescape(page.read_text(encoding="utf-8"))


def test_the_site_has_a_page_for_every_page_of_the_repository(site: Path) -> None:
    names = [*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    pages = [path.relative_to(ROOT).with_suffix("") for path in names if path.name != "README.md"]
    folders = [Path(), Path("docs"), Path("examples"), Path("kernels")]
    assert [page for page in [*pages, *folders] if not (site / page / "index.html").is_file()] == []


def test_the_api_reference_has_every_public_name(site: Path) -> None:
    anchors = {
        anchor.split(".")[-1]
        for page in (site / "api").glob("*/index.html")
        for anchor in re.findall(r'<h2 id="(humanline_fused[\w.]+)"', text_of(page))
    }
    names = {name for module in PUBLIC for name in importlib.import_module(module).__all__}
    assert names - {"__version__"} - anchors == set()


def test_the_page_of_the_trainer_begins_with_its_settings_and_the_trainer(site: Path) -> None:
    found = re.findall(r'<h2 id="humanline_fused[\w.]*\.(\w+)"', text_of(site / "api" / "training" / "index.html"))
    assert found[:2] == ["HumanlineConfig", "HumanlineTrainer"]


def test_the_page_of_settings_has_every_setting_that_is_not_of_transformers(site: Path) -> None:
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    ours = {field.name for field in dataclasses.fields(HumanlineConfig) if field.init} - theirs
    assert ours - set(re.findall(r"<code>(\w+)</code>", text_of(site / "api" / "settings" / "index.html"))) == set()


def test_every_formula_of_the_mathematics_is_drawn_without_a_script(site: Path) -> None:
    source = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
    page = text_of(site / "docs" / "math" / "index.html")
    displayed = re.findall(r"\$\$.*?\$\$", source, re.DOTALL)
    inline = re.findall(r"\$[^$]+\$", re.sub(r"\$\$.*?\$\$", "", source, flags=re.DOTALL))
    assert page.count("<math ") == len(displayed) + len(inline)
    numbers = re.findall(r'class="equation".*?<span>\((\w+)\)</span>', page, re.DOTALL)
    assert numbers == re.findall(r"\\tag\{(\w+)\}", source)
    assert "arithmatex" not in page


def test_the_site_takes_nothing_from_other_hosts(site: Path) -> None:
    loaded = [
        (page.relative_to(site).as_posix(), url)
        for page in site.rglob("*.html")
        for url in re.findall(r'<(?:script|link|img|iframe)[^>]*?(?:src|href)="(https?:[^"]+)"', text_of(page))
    ]
    assert loaded == []
