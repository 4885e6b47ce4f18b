"""Content of the wheel, and no clash with a distribution named ``kernels`` (kernels/README.md)."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from transformers.utils.import_utils import KERNELS_MIN_VERSION, is_kernels_available

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


def run_python(code: str, cwd: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter whose path is ``cwd``, then ``path``, then the installed packages."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    # Built from a copy: setuptools leaves build/ behind, and a stale one would put deleted modules in the wheel.
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "humanline_fused", "kernels"):
        (tree / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    built = subprocess.run([*pip, "--wheel-dir", out, tree], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture
def stub_kernels(tmp_path: Path) -> Path:
    """Site folder with a distribution ``kernels`` that has every name that transformers imports from it."""
    package, metadata = tmp_path / "kernels", tmp_path / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text(STUB)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    return tmp_path


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
    return [Requirement(line) for line in (*project["dependencies"], *extras["peft"], *extras["trl"])]


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
