"""Files of the documentation site: the pages of the repository where they lie in it, and an API reference.

MkDocs takes its pages from one folder. Here the root of the repository is that folder, so that a relative link between
two files works on the site as it does on a code host. An example is a page with its source. The pages under ``api/``
exist on the site alone: each lists the public names of its modules, and mkdocstrings puts their docstrings there.
"""

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from settings_page import settings

PAGES = ("*.md", "docs/*.md", "examples/README.md", "kernels/README.md")
STATIC = ("docs/images/**/*.png", "docs/site/extra.css")
SOURCES = {"examples/**/*.py": "python", "examples/**/*.yaml": "yaml"}

API = {
    "losses": ("Losses", ("humanline_fused",)),
    "training": ("Trainer and objectives", ("humanline_fused.training", "humanline_fused.training.objectives")),
    "reference": ("References", ("humanline_fused.reference",)),
    "trl": ("TRL", ("humanline_fused.integrations.trl",)),
    "perception": (
        "Perception",
        tuple(f"humanline_fused.perception.{m}" for m in ("prospect", "sampling", "diagnostics")),
    ),
    "layer": ("Interface of the implementations", ("humanline_fused.layer",)),
}
"""By name of a page its title and modules. A name of several modules is on the first page that lists it."""

FIRST = ("HumanlineConfig", "HumanlineTrainer")


class Source(File):
    """A page that shows a source file."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the site's files: those of the theme, of the repository and of the API reference."""
    root = Path(config.config_file_path).parent
    found = [file for file in files if file.src_dir != config.docs_dir]
    where = (str(root), config.site_dir, config.use_directory_urls)
    for pattern in (*PAGES, *STATIC):
        found += [File(path.relative_to(root).as_posix(), *where) for path in sorted(root.glob(pattern))]
    for pattern, language in SOURCES.items():
        for path in sorted(root.glob(pattern)):
            if path.name != "__init__.py":
                name = path.relative_to(root).as_posix()
                file = Source(name, None, *where[1:], inclusion=InclusionLevel.NOT_IN_NAV)
                file.content_string = f"# {name}\n\n````{language}\n{path.read_text(encoding='utf-8')}````\n"
                found.append(file)
    found += [File.generated(config, f"api/{name}.md", content=text) for name, text in reference(root).items()]
    return Files(found)


def reference(root: Path) -> dict[str, str]:
    """Return the pages of the API reference as Markdown, by name."""
    pages, listed = {"settings": settings()}, set()
    for page, (title, modules) in API.items():
        parts = [f"# {title}"]
        for module in modules:
            objects = [
                defined
                for name in public_names(root, module)
                if (defined := definition(root, module, name)) not in listed
            ]
            listed.update(objects)
            parts += [f"Import from `{module}`:", *(f"::: {defined}" for defined in objects)]
        pages[page] = "\n\n".join(parts) + "\n"
    return pages


def public_names(root: Path, module: str) -> list[str]:
    """Return the ``__all__`` of a module, or without one its public classes and functions.

    Functions come before classes, constants last, and the names that a script begins with before all others.
    """
    body = tree_of(root, module).body
    names = [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    public = (name for name in names if not name.startswith("_"))
    return sorted(public, key=lambda name: (name not in FIRST, name.isupper(), name[0].isupper()))


def definition(root: Path, module: str, name: str) -> str:
    """Return where a name of a module is defined: a function may have the name of the module that it is in."""
    for node in tree_of(root, module).body:
        if isinstance(node, ast.ImportFrom) and node.module and name in [alias.name for alias in node.names]:
            return definition(root, node.module, name)
    return f"{module}.{name}"


def tree_of(root: Path, module: str) -> ast.Module:
    """Return the parsed file of a module."""
    path = root.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))
