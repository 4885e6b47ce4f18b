"""Content of the wheel, and no clash with a distribution named ``kernels`` (kernels/README.md)."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from transformers.utils.import_utils import KERNELS_MIN_VERSION, is_kernels_available

from humanline_fused.cli import main
from humanline_fused.extras import EXTRAS

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = {"humanline_fused": ROOT, "humanline_kernels": ROOT / "kernels"}

# Stands for any function, class, flag or decorator.
STUB = """
class Anything:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *args, **kwargs):
        return lambda decorated: decorated

    def __or__(self, other):
        return self

__getattr__ = Anything().__getattr__
"""

# Finds nothing but Python's own modules and those of the distributions that are named.
ONLY = """
def admit(modules):
    class Others:
        def find_spec(self, name, path=None, target=None):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names | modules | {"humanline_fused", "humanline_kernels"}:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Others())
"""

LOSSES = """
import torch
from humanline_fused import HumanlineClamp, LMHead, Logits, TokenLogp, dpo_loss, grpo_loss, kto_loss, shift_targets

logits, reference = torch.randn(4, 8, 20, requires_grad=True), torch.randn(4, 8, 20)
hidden, weight = torch.randn(4, 8, 6, requires_grad=True), torch.randn(20, 6)
target_ids, loss_mask = shift_targets(torch.randint(20, (4, 8)), torch.arange(8).expand(4, 8) >= 3)
clamp = HumanlineClamp(-1.5, 1.5)
losses = [
    dpo_loss(Logits(logits), Logits(reference), target_ids, loss_mask, clamp=clamp).loss,
    dpo_loss(LMHead(hidden, weight), Logits(reference), target_ids, loss_mask, clamp=clamp).loss,
    kto_loss(Logits(logits), Logits(reference), target_ids, loss_mask, torch.arange(4) > 1, kl=0.0).loss,
    grpo_loss(Logits(logits), Logits(reference), target_ids, loss_mask, torch.randn(4)).loss,
]
sum(losses).backward()
print(all(loss.isfinite() for loss in losses) and bool(hidden.grad.any() and logits.grad.any()))
"""


def installed_with(*distributions: str) -> set[str]:
    """Return the import names of the distributions and of all that they require here."""
    found, left = set(), [*distributions]
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        found.add(name)
        wanted = map(Requirement, requires(name) or ())
        left += [r.name for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    names = packages_distributions().items()
    return {module for module, owners in names if found & {*map(canonicalize_name, owners)}}


def run_python(code: str, cwd: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter whose path is ``cwd``, then ``path``, then the installed packages."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", out]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture
def stub_kernels(tmp_path: Path) -> Path:
    """Site folder with a distribution ``kernels`` that has every name that transformers imports from it."""
    package, metadata = tmp_path / "kernels", tmp_path / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text(STUB)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    return tmp_path


@pytest.fixture
def wheel_names(wheel: zipfile.ZipFile) -> list[str]:
    return wheel.namelist()


def test_a_wheel_holds_exactly_two_top_level_names(wheel_names: list[str]) -> None:
    top_level = {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name}
    assert top_level == {"humanline_fused", "humanline_kernels"}


def test_a_wheel_holds_every_module_of_the_tree(wheel_names: list[str]) -> None:
    in_tree = {
        module.relative_to(source_root).as_posix()
        for package, source_root in SOURCE_ROOTS.items()
        for module in (source_root / package).rglob("*.py")
    }
    assert in_tree == {name for name in wheel_names if name.endswith(".py")}


def test_a_wheel_is_typed_and_licensed(wheel_names: list[str]) -> None:
    assert "humanline_fused/py.typed" in wheel_names
    assert any(name.endswith("/licenses/LICENSE") for name in wheel_names)


def test_a_source_distribution_holds_the_tree(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.split("/", 1)[1] for name in tar.getnames()}
    rooms = ("humanline_fused", "kernels", "benchmarks", "tests", "examples", "docs", "typings", "versions")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.*") if "__pycache__" not in path.parts]
    files += [ROOT / name for name in ("Makefile", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE")]
    assert {file.relative_to(ROOT).as_posix() for file in files if file.is_file()} - held == set()


def test_the_losses_of_a_wheel_need_torch_and_triton_alone(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = f"import sys\n{ONLY}\nadmit({installed_with('torch', 'triton')!r})\n{LOSSES}"
    done = run_python(code, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"


def test_a_type_checker_finds_the_package_of_an_editable_install(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from humanline_fused import HumanlineClamp\nreveal_type(HumanlineClamp(-1, 1))\n"
    )
    check = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "script.py"]
    checked = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    assert 'is "HumanlineClamp"' in checked.stdout


# Extras


def test_every_library_of_an_extra_is_known_by_its_import_name() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {extra: {Requirement(line).name.lower() for line in extras[extra]} for extra in EXTRAS}
    of_module = packages_distributions()
    assert names == {extra: {of_module[module][0].lower() for module in modules} for extra, modules in EXTRAS.items()}


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        (["plot", "run"], "matplotlib", "plot"),
        (["demo"], "matplotlib", "plot"),
        (["diagnose", "--model", "m", "--dataset", "d"], "matplotlib", "plot"),
        (["init"], "transformers", "train"),
        (["train"], "transformers", "train"),
        (["data", "pairs.jsonl"], "transformers", "train"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(command, module, extra, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for loaded in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(command) == 2
    said = f"expected {module}, which is not installed: pip install 'humanline-fused[{extra}]'"
    assert capsys.readouterr().err == f"humanline {command[0]}: error: {said}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_kernels_folder_is_a_source_root_and_not_a_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_a_distribution_called_kernels_behind_the_checkout_wins(stub_kernels: Path) -> None:
    found = run_python("import kernels; print(kernels.__file__)", ROOT, stub_kernels)
    assert found.stdout.strip() == str(stub_kernels / "kernels" / "__init__.py"), found.stderr


def test_transformers_imports_a_model_beside_a_distribution_called_kernels(stub_kernels: Path) -> None:
    imported = run_python("from transformers import LlamaForCausalLM", ROOT, stub_kernels)
    assert imported.returncode == 0, imported.stderr


def test_transformers_imports_a_model_from_the_checkout_without_such_a_distribution() -> None:
    assert str(ROOT) in sys.path  # as pyproject.toml has it, before any test's imports
    from transformers import LlamaForCausalLM

    assert LlamaForCausalLM.__module__.startswith("transformers.models.")
    assert not is_kernels_available()


# Versions


def requirements() -> list[Requirement]:
    """Return the requirements that a user installs, with the extras that are libraries."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [Requirement(line) for line in (*project["dependencies"], *chain(*(extras[extra] for extra in EXTRAS)))]


def pinned(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower(): Version(version) for name, version in pins}


def test_the_oldest_versions_that_are_tested_are_the_floors_of_the_ranges() -> None:
    oldest = pinned("versions/oldest.txt")
    floors = {r.name: Version(s.version) for r in requirements() for s in r.specifier if s.operator == ">="}
    assert floors == {r.name: oldest[r.name] for r in requirements()}


@pytest.mark.parametrize("file", ["constraints.txt", "versions/newest.txt"])
def test_the_ranges_allow_the_versions_that_are_tested(file: str) -> None:
    pins = pinned(file)
    assert [r.name for r in requirements() if not r.specifier.contains(pins[r.name])] == []


def test_a_run_of_the_tests_names_the_version_that_is_imported(pytestconfig, tmp_path, monkeypatch) -> None:
    (tmp_path / "triton-0.1.dist-info").mkdir()
    (tmp_path / "triton-0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: triton\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    (ours,) = [one for one in pytestconfig.pluginmanager.get_plugins() if hasattr(one, "REPORTED")]
    assert "triton 0.1," in ours.pytest_report_header()
