"""What a softmax is taken of: logits, scaled, capped and divided by a temperature (docs/math.md, equation 1)."""

from typing import NamedTuple

from torch import Tensor

from humanline_fused.scores import LMHead, Logits


class Softmax(NamedTuple):
    """``z = cap(scale · x) · inverse_temperature / temperature``; temperature per token, or None."""

    temperature: Tensor | None
    inverse_temperature: float
    softcap: float | None
    scale: float

    def scores(self, rows: Tensor, temperature: Tensor | float) -> Tensor:
        """z of logits x."""
        if self.softcap is None and isinstance(temperature, float):
            factor = self.scale / temperature
            return rows if factor == 1 else rows * factor
        rows = rows * self.scale
        if self.softcap is not None:
            rows = (rows / self.softcap).tanh() * self.softcap
        return rows / temperature

    def back(self, dz: Tensor, rows: Tensor, temperature: Tensor | float) -> Tensor:
        """dz · ∂z/∂x."""
        slope = self.scale / temperature
        if self.softcap is not None:
            slope = slope * (1 - (rows * (self.scale / self.softcap)).tanh().square())
        return dz if isinstance(slope, float) and slope == 1 else dz * slope

    def temperature_of(self, index: tuple[Tensor, ...] | slice) -> Tensor | float:
        """Of some tokens: [n, 1], or one for all."""
        if self.temperature is None:
            return 1 / self.inverse_temperature
        return self.temperature[index].reshape(-1, 1) / self.inverse_temperature


def softmax_of(source: Logits | LMHead) -> Softmax:
    cap, scale = source.softcap, float(source.scale)
    if isinstance(source.temperature, Tensor):
        return Softmax(source.temperature.detach().float(), 1.0, cap, scale)
    return Softmax(None, 1.0 / source.temperature, cap, scale)
