"""Names of the data type of a model's weights."""

import torch

NAMES = {
    "float32": ("fp32", "float"),
    "bfloat16": ("bf16",),
    "float16": ("fp16", "half"),
    "float64": ("fp64", "double"),
}
"""torch's names of the data types of weights, each with its other names."""


def model_dtype_of(given: object) -> str:
    """Return torch's name of a data type, or ``"auto"``: the one that the model was saved with.

    Raises:
        ValueError: there is no such data type of weights.

    >>> model_dtype_of("bf16"), model_dtype_of("torch.float32"), model_dtype_of(torch.float16), model_dtype_of("auto")
    ('bfloat16', 'float32', 'float16', 'auto')
    """
    name = str(given).removeprefix("torch.") if isinstance(given, str | torch.dtype) else ""
    for known, others in NAMES.items():
        if name == known or name in others:
            return known
    if name == "auto":
        return name
    expected = ", ".join(f"{known} ({others[0]})" for known, others in NAMES.items())
    raise ValueError(f"model_dtype: expected {expected} or auto, got {given!r}")
