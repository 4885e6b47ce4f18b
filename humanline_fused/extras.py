"""The optional libraries, and which extra of the package installs them."""

from importlib.util import find_spec

EXTRAS = {
    "train": ("transformers", "accelerate", "datasets", "pyarrow", "tokenizers", "yaml", "jinja2"),
    "plot": ("matplotlib",),
    "peft": ("peft",),
    "trl": ("trl",),
}
"""Import names of the libraries of every extra that users install."""


def need(extra: str) -> None:
    """Import nothing, but fail now rather than after the work that needs the extra's libraries.

    Raises:
        ModuleNotFoundError: one of them is not installed; :func:`remedy` names the extra.

    >>> need("train")
    """
    for module in EXTRAS[extra]:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def remedy(error: ModuleNotFoundError) -> str | None:
    """Return the command that installs what was not found, or None where no extra has it.

    >>> remedy(ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"))
    "expected matplotlib, which is not installed: pip install 'humanline-fused[plot]'"
    """
    module = (error.name or "").split(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    return extra and f"expected {module}, which is not installed: pip install 'humanline-fused[{extra}]'"
