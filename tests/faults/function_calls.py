"""Calls of the public functions with random arguments, right and wrong."""

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import humanline_fused
from humanline_fused import HumanlineClamp, LMHead, Logits, TokenLogp
from tests.faults import plain_losses as plain
from tests.faults.outcome import Fault, Outcome

FUNCTIONS = ("token_logp", "token_logp_and_entropy", "token_log_ratio", "dpo_loss", "kto_kl", "kto_loss", "grpo_loss")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FLAGS = {"inplace_gradient", "fp32_logits", "main_grad", "drop_clamped", "one_launch", "group", "perception"}
"""Arguments that are not changed: flags, whose truth counts, and objects."""


class Arguments:
    """Random arguments of a function; :meth:`spoil` puts junk into one of them."""

    def __init__(self, name: str, draw: random.Random) -> None:
        self.name, self.draw = name, draw
        self.generator = torch.Generator().manual_seed(draw.randrange(2**31))
        self.packed = name not in ("token_logp", "token_logp_and_entropy", "token_log_ratio") and draw.random() < 0.3
        pairs = 2 if name == "dpo_loss" else 1
        sequences, length = pairs * draw.randint(0, 3), draw.randint(0, 6)
        self.lengths = [draw.randint(0, 4) for _ in range(sequences)]
        self.shape = (1, sum(self.lengths)) if self.packed else (sequences, length)
        self.sequences, self.vocabulary = sequences, draw.randint(1, 9)
        self.given: dict[str, Any] = {}
        names = ("scores",) if name.startswith("token_logp") else ("policy", "reference")
        for one in names:
            self.given[one] = self._source(with_entropy=name == "token_logp_and_entropy")
        ids = torch.randint(0, self.vocabulary, self.shape, generator=self.generator)
        mask = torch.rand(self.shape, generator=self.generator) < draw.choice((0.0, 0.3, 0.8, 1.0))
        illegal = torch.randint(-5, 99, self.shape, generator=self.generator)  # never read where the mask is False
        ids = ids.where(mask, illegal)
        self.given |= {"target_ids": ids.to(draw.choice((torch.int64, torch.int32))), "loss_mask": mask}
        self._settings()

    def _numbers(self, shape: tuple[int, ...], kind: torch.dtype, size: float) -> Tensor:
        return (size * torch.randn(shape, generator=self.generator, dtype=torch.float64)).to(kind)

    def _source(self, with_entropy: bool) -> Any:
        draw, kind = self.draw, self.draw.choice(FLOATS)
        size = draw.choice((0.0, 1.0, 3.0, 3.0, 30.0))
        softmax: dict[str, Any] = {}
        if draw.random() < 0.3:
            softmax["temperature"] = draw.choice((0.5, 1, 2.0))
            if draw.random() < 0.3:
                softmax["temperature"] = 0.5 + torch.rand(self.shape, generator=self.generator)
        if draw.random() < 0.2:
            softmax["softcap"] = draw.choice((1.0, 30.0, 1e4))
        if draw.random() < 0.2:
            softmax["scale"] = draw.choice((0.25, 2))
        match draw.randrange(2 if with_entropy else 3):
            case 0:
                logits = self._numbers((*self.shape, self.vocabulary), kind, size)
                if draw.random() < 0.2:
                    logits = logits.masked_fill(torch.rand(logits.shape, generator=self.generator) < 0.2, -math.inf)
                    logits[..., 0] = 0.0
                    softmax.pop("softcap", None)
                return Logits(logits, **softmax)
            case 1:
                kind, width = draw.choice((torch.float64, torch.float32)), draw.randint(1, 5)
                hidden = self._numbers((*self.shape, width), kind, 1.0)
                weight = self._numbers((self.vocabulary, width), kind, 1.0)
                bias = self._numbers((self.vocabulary,), kind, 1.0) if draw.random() < 0.5 else None
                return LMHead(hidden, weight, bias, **softmax)
            case _:
                return TokenLogp(-self._numbers(self.shape, kind, size).abs())

    def _settings(self) -> None:
        draw, given = self.draw, self.given
        given["impl"] = draw.choice(("auto", "eager"))
        if self.packed:
            ends = torch.tensor([0, *np.cumsum(self.lengths).tolist()])
            given["cu_seqlens"] = ends.to(draw.choice((torch.int64, torch.int32)))
        if not self.name.startswith("token_logp") or self.name == "token_log_ratio":
            given["clamp"] = draw.choice(
                (
                    None,
                    HumanlineClamp(),
                    HumanlineClamp(-draw.random(), 2 * draw.random()),
                    HumanlineClamp(-math.inf, 0),
                )
            )
        match self.name:
            case "dpo_loss":
                given["beta"] = draw.choice((0.1, 1, 0.01))
                given["loss_type"] = draw.choice(("sigmoid", "sigmoid_norm", "ipo", "hinge"))
                if given["loss_type"] == "sigmoid":
                    given["label_smoothing"] = draw.choice((0, 0.1, 0.5))
            case "kto_loss":
                given["desirable"] = torch.rand(self.sequences, generator=self.generator) < 0.5
                given |= {"kl": draw.choice((0, 0.5, torch.tensor(0.25))), "beta": draw.choice((0, 0.1, 2))}
                given |= {"desirable_weight": draw.choice((0, 1, 1.5)), "undesirable_weight": draw.choice((0.5, 1))}
            case "grpo_loss":
                shape = self.shape if draw.random() < 0.3 else (self.sequences,)
                given["advantages"] = self._numbers(shape, draw.choice(FLOATS), draw.choice((0.0, 1.0)))
                given |= {"epsilon": draw.choice((0.2, 0, 1)), "epsilon_high": draw.choice((None, 0.3))}
                given |= {
                    "beta": draw.choice((0.0, 0.04)),
                    "num_items_in_batch": draw.choice((None, 7, torch.tensor(5))),
                }

    def spoil(self) -> str:
        """Replace one argument, or a part of scores, by junk; return its name."""
        name = self.draw.choice([name for name in self.given if name not in FLAGS])
        value = self.given[name]
        if isinstance(value, Logits | LMHead | TokenLogp) and self.draw.random() < 0.7:
            parts = [part for part in value.__dataclass_fields__ if part not in FLAGS and part != "_"]
            part = self.draw.choice(parts)
            self.given[name] = replace(value, **{part: self._junk(getattr(value, part))})
            return f"{name} {part}"
        self.given[name] = self._junk(value)
        return name

    def _junk(self, value: Any) -> Any:
        draw = self.draw
        numbers = [math.nan, math.inf, -math.inf, -1, -0.5, 0, 1e-300, 1e-30, 1e30, 1e300, 10**400, True]
        objects = [None, "x", "", [], [1.0], {}, object(), (1, 2), b"x", np.float64(0.5), np.ones((2, 3)), 1j]
        if not isinstance(value, Tensor):
            return draw.choice([*numbers, *objects, torch.tensor(0.5), torch.ones(2), HumanlineClamp(-1e38, 1e38)])
        tensors = [
            lambda t: t.to(torch.complex64),
            lambda t: t.to_sparse(),
            lambda t: t.to("meta"),
            lambda t: t[None],
            lambda t: t.flatten(),
            lambda t: t[..., :-1],
            lambda t: torch.cat([t, t]) if t.ndim else t[None],
            lambda t: t.to(torch.int16),
            lambda t: t.to(torch.float8_e4m3fn),
            lambda t: t.bool(),
            lambda t: t.double(),
            lambda t: t.tolist(),
            lambda t: t.numpy(),
            lambda t: torch.full_like(t, math.nan) if t.is_floating_point() else -t.long() - 1,
            lambda t: torch.full_like(t, math.inf) if t.is_floating_point() else t.long() + 2**40,
            lambda t: -t if t.is_floating_point() else t.long(),
        ]
        if draw.random() < 0.3:
            return draw.choice(objects + numbers)
        try:
            return draw.choice(tensors)(value)
        except Exception:
            return "a tensor that cannot be made"


def call(seed: int) -> Fault:
    """Call one function, half of the times with junk in one argument."""
    draw = random.Random(seed)
    name = draw.choice(FUNCTIONS)
    arguments = Arguments(name, draw)
    spoilt = arguments.spoil() if draw.random() < 0.5 else ""
    what = f"{name}, {'one wrong or odd argument' if spoilt else 'right arguments'}"
    outcome, said = judged(name, arguments, spoilt)
    return Fault("call", seed, what, outcome, f"{spoilt}: {said}" if spoilt else said)


def judged(name: str, arguments: Arguments, spoilt: str) -> tuple[Outcome, str]:
    given, leaf = arguments.given, None
    exact = all(not hasattr(s, "logp") or isinstance(s.logp, Tensor) for s in given.values())
    if not spoilt and exact:
        leaf = _with_gradient(given)
    try:
        result = getattr(humanline_fused, name)(**given)
    except (ValueError, TypeError) as error:
        return refusal(str(error), spoilt, [*given, *spoilt.split()])
    except Exception as error:
        return Outcome.TRACEBACK, f"{type(error).__name__}: {error}"
    try:
        expected, kinks = answers(name, given, leaf)
    except Exception as error:
        return Outcome.SILENT, f"accepted, and the oracle has no answer: {type(error).__name__}: {error}"
    for field, bounded in expected.items():
        actual = result if isinstance(result, Tensor) else getattr(result, field)
        if said := disagreement(actual, bounded):
            return Outcome.SILENT, f"{field}: {said}"
    sources = [given[one] for one in ("scores", "policy", "reference") if one in given]
    double = all(plain.accumulation(source) == torch.float64 for source in sources)
    if leaf is not None and double and not kinks and (said := _other_gradient(result, expected, leaf)):
        return Outcome.SILENT, said
    return Outcome.HARMLESS, ""


def refusal(message: str, spoilt: str, names: list[str]) -> tuple[Outcome, str]:
    """Return the outcome of a ValueError or TypeError."""
    if not spoilt:
        return Outcome.TRACEBACK, f"right arguments were refused: {message}"
    if not any(name in message for name in names) or "expected" not in message:
        return Outcome.TRACEBACK, f"names no argument: {message}"
    return Outcome.REFUSED, message


def disagreement(actual: Tensor, expected: plain.Bounded) -> str:
    """Return where a result is another than the oracle's; empty if it is within its bound."""
    value, bound = expected.value.detach(), plain.SAFETY * expected.bound.detach()
    if list(actual.shape) != list(value.shape):
        return f"shape {list(actual.shape)}, the oracle has {list(value.shape)}"
    actual = actual.detach().double()
    large = value.abs() > 1e37  # float32 may overflow on the way
    same = (actual == value) | (actual.isnan() & value.isnan()) | ((actual - value).abs() <= bound)
    unsure = large | ~bound.isfinite() & ~actual.isfinite()
    wrong = ~(same | unsure)
    if not wrong.any():
        return ""
    return f"{actual[wrong][0].item()!r}, the oracle has {value[wrong][0].item()!r} ± {bound[wrong][0].item():.1e}"


def _with_gradient(given: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Give the policy a leaf; return it, and its copy for the oracle."""
    name = "scores" if "scores" in given else "policy"
    source = given[name]
    part = {Logits: "logits", LMHead: "hidden", TokenLogp: "logp"}[type(source)]
    leaf = getattr(source, part).detach().clone().requires_grad_()
    given[name] = replace(source, **{part: leaf})
    return leaf, leaf.detach().double().requires_grad_()


def _other_gradient(result: Any, expected: dict[str, plain.Bounded], leaf: tuple[Tensor, Tensor]) -> str:
    field = next((f for f in ("loss", "log_ratio", "logp") if f in expected), "")
    actual = result if isinstance(result, Tensor) else getattr(result, field, None)
    if actual is None or not actual.requires_grad or not expected[field].value.requires_grad:
        return ""
    (mine,) = torch.autograd.grad(actual.sum(), leaf[0], allow_unused=True)
    (other,) = torch.autograd.grad(expected[field].value.sum(), leaf[1], allow_unused=True)
    mine, other = (torch.zeros_like(leaf[1]) if one is None else one for one in (mine, other))
    if not other.isfinite().all():
        return ""
    # Rounding in float64 is 2⁻⁵³ of values whose exponentials stay below e³⁰; another formula differs by far more.
    allowed = 2.0**-30 * max(1.0, other.abs().max().item() if other.numel() else 0.0)
    wrong = ~((mine - other).abs() <= allowed)
    return f"gradient {mine[wrong][0].item()!r}, the oracle has {other[wrong][0].item()!r}" if wrong.any() else ""


def answers(
    name: str, given: dict[str, Any], leaf: tuple[Tensor, Tensor] | None
) -> tuple[dict[str, plain.Bounded], bool]:
    """Return the oracle's results by field, and whether a token is within rounding of a kink."""
    ids, mask = given["target_ids"], given["loss_mask"]
    sources = [given[one] for one in ("scores", "policy", "reference") if one in given]
    eps = max(torch.finfo(plain.accumulation(source)).eps for source in sources)  # results have one dtype
    logp, entropy = plain.scores(sources[0], ids, mask, eps, leaf and leaf[1])
    if name == "token_logp":
        return {"logp": logp}, False
    if name == "token_logp_and_entropy":
        return {"logp": logp, "entropy": entropy}, False
    ref_logp, _ = plain.scores(sources[1], ids, mask, eps)
    found = {"logp": logp, "ref_logp": ref_logp}
    ratios = plain.ratios(logp, ref_logp, mask, given["clamp"], eps)
    counted = max(int(mask.sum()), 1)
    if name == "kto_kl":
        return {"kl": plain.reference_point(plain.sums(ratios, mask, given.get("cu_seqlens"), eps), eps)}, False
    if not ratios.at_a_kink:
        for field, side in (("clamped_low_fraction", ratios.low), ("clamped_high_fraction", ratios.high)):
            share = side.sum().double() / counted
            found[field] = plain.Bounded(share, eps * share + 1e-7 * (share > 0))
    if name == "token_log_ratio":
        return found | {"log_ratio": plain.Bounded(ratios.clamped, ratios.bound)}, ratios.at_a_kink
    cu_seqlens = given.get("cu_seqlens")
    sums = plain.sums(ratios, mask, cu_seqlens, eps)
    kinks = ratios.at_a_kink
    match name:
        case "dpo_loss":
            found |= plain.dpo(sums, given["beta"], given.get("label_smoothing", 0.0), given["loss_type"], eps)
            kinks |= given["loss_type"] == "hinge"
        case "kto_loss":
            weights = given["desirable_weight"], given["undesirable_weight"]
            found |= plain.kto(sums, given["desirable"], float(given["kl"]), given["beta"], weights, eps)
        case "grpo_loss":
            advantages, epsilon = given["advantages"].double(), given["epsilon"]
            if advantages.ndim == 1:
                lengths = [mask.shape[1]] * len(mask) if cu_seqlens is None else cu_seqlens.diff().tolist()
                advantages = advantages.repeat_interleave(torch.tensor(lengths, dtype=torch.long)).view(mask.shape)
            high = epsilon if given["epsilon_high"] is None else given["epsilon_high"]
            number = None if given["num_items_in_batch"] is None else float(given["num_items_in_batch"])
            found |= plain.grpo(ratios, mask, advantages, number, (epsilon, high), given["beta"], eps)
            value = ratios.clamped.detach().exp()
            kinks |= bool(
                sum(((value - side).abs() < 1e-6).logical_and(mask).sum() for side in (1 - epsilon, 1 + high))
            )
    return found, kinks
