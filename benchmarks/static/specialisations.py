"""The specialisations of the kernels that users' calls compile."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
VOCABULARY, SHORT_VOCABULARY = 128256, 32000


@dataclass(frozen=True)
class Specialisation:
    """One kernel as a call compiles it."""

    kernel: str  # module and function, with a colon between
    dtype: str  # of the logits
    constants: dict[str, int | bool | str]  # flags and blocks; a flag that is not named is False
    num_warps: int
    read_bytes: int  # of one element, in a loop that reads its elements
    written_bytes: int  # the same where it writes them
    cached_loops: tuple[str, ...] = ()  # loops that read from the L2 cache
    launched_per_sm: int | None = None  # programs, where the launch asks for fewer than an SM can hold
    max_registers: int | None = None  # per thread, where the launch sets it
    note: str = ""  # distinguishes it from others

    @property
    def name(self) -> str:
        function = self.kernel.split(":")[1].removesuffix("_kernel")
        flags = [name for name, value in self.constants.items() if value is True]
        return " ".join([function, self.dtype, *flags, *filter(None, [self.note])])


def specialisations(arch: str) -> Iterator[Specialisation]:
    warp = 64 if arch.startswith("gfx") else 32
    for dtype in ITEMSIZE:
        yield from token_logp(dtype, warp=warp)
    for flag in ("HAS_TEMPERATURE", "HAS_SOFTCAP", "HAS_ENTROPY"):
        yield from token_logp("bf16", flag, warp=warp)
    _, backward = token_logp("bf16", "HAS_GRAD_OUTPUT", warp=warp)
    yield backward
    if warp == 32:  # no cache of AMD's holds the rows in flight: two launches there
        yield grpo_one_launch("bf16", "HAS_REFERENCE")
        yield grpo_one_launch("fp32", "HAS_REFERENCE")
        yield grpo_one_launch("bf16")
        yield grpo_one_launch("bf16", "HAS_REFERENCE", vocabulary=SHORT_VOCABULARY)
        yield score_and_dlogits("bf16")
        yield score_and_dlogits("fp32")
        yield score_and_dlogits("bf16", vocabulary=SHORT_VOCABULARY)
        yield scale_dlogits("bf16")
    for loss in ("dpo", "kto", "grpo"):
        yield token_loss(loss)
    yield means()


def of_logits(
    kernel: str, dtype: str, tiles: dict[str, int], *flags: str, writes: bool = True, **options: Any
) -> Specialisation:
    constants = {**tiles, **dict.fromkeys(flags, True)}
    num_warps, itemsize = constants.pop("num_warps"), ITEMSIZE[dtype]
    options["max_registers"] = constants.pop("maxnreg", None)
    written = itemsize if writes else 0
    return Specialisation(
        f"humanline_kernels.{kernel}_kernel", dtype, constants, num_warps, itemsize, written, **options
    )


def token_logp(dtype: str, *flags: str, warp: int = 32) -> Iterator[Specialisation]:
    from humanline_kernels.tiles import vocabulary_tiles

    tiles = vocabulary_tiles(VOCABULARY, ITEMSIZE[dtype], warp)
    yield of_logits("token_logp:token_logp_forward", dtype, tiles, *flags, writes=False)
    yield of_logits("token_logp:token_logp_backward", dtype, tiles, *flags)


def grpo_one_launch(dtype: str, *flags: str, vocabulary: int = VOCABULARY) -> Specialisation:
    from humanline_kernels.tiles import one_launch_tiles

    return of_logits(
        "grpo_one_launch:grpo_one_launch",
        dtype,
        one_launch_tiles(vocabulary, ITEMSIZE[dtype]),
        *flags,
        **_held_rows(dtype, vocabulary),
    )


def score_and_dlogits(dtype: str, vocabulary: int = VOCABULARY) -> Specialisation:
    from humanline_kernels.tiles import score_and_dlogits_tiles

    tiles = score_and_dlogits_tiles(vocabulary, ITEMSIZE[dtype])
    return of_logits("score_and_dlogits:score_and_dlogits", dtype, tiles, **_held_rows(dtype, vocabulary))


def _held_rows(dtype: str, vocabulary: int) -> dict[str, Any]:
    """Options of a launch whose rows the L2 cache holds until their second read."""
    from humanline_kernels.tiles import one_launch_per_multiprocessor

    return {
        "cached_loops": ("store_dlogits",),
        "launched_per_sm": one_launch_per_multiprocessor(vocabulary * ITEMSIZE[dtype]),
        "note": "" if vocabulary == VOCABULARY else f"V={vocabulary}",
    }


def scale_dlogits(dtype: str) -> Specialisation:
    from humanline_kernels.tiles import vocabulary_tiles

    return of_logits("dlogits:scale_dlogits", dtype, vocabulary_tiles(VOCABULARY, ITEMSIZE[dtype]))


def token_loss(loss: str) -> Specialisation:
    from humanline_kernels.tiles import TOKEN_TILES

    constants: dict[str, int | bool | str] = {"NEEDS_GRADIENT": True, "BLOCK_T": TOKEN_TILES["BLOCK_T"]}
    if loss == "dpo":
        constants["LINK"] = "sigmoid"
    kernel = f"humanline_kernels.{loss}_loss:{loss}_loss_kernel"
    # A token is two log-probs and a mask; its coefficient is written.
    return Specialisation(kernel, "fp32", constants, TOKEN_TILES["num_warps"], read_bytes=9, written_bytes=4)


def means() -> Specialisation:
    from humanline_kernels.tiles import MEANS_TILES

    constants: dict[str, int | bool | str] = {"COLUMNS": 7, "TOKENS": 1, **MEANS_TILES}
    num_warps = int(constants.pop("num_warps"))
    # Of the loop: a row of partial sums.
    return Specialisation("humanline_kernels.means:means_kernel", "fp32", constants, num_warps, 28, written_bytes=0)
