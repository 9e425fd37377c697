"""Statistics of measurements: percentiles of one run, median and range over several runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], q: float) -> float:
    """Return the value that q per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q / 100 * (len(ordered) - 1)))]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return percentiles, maximum and number of the values."""
    quantiles = {f"p{q}": round(percentile(values, q), 3) for q in (10, 25, 50, 75, 90, 95, 99)}
    return {**quantiles, "max": round(max(values), 3), "n": len(values)}


@dataclass(frozen=True)
class Spread:
    """A measured value over several runs."""

    median: float
    least: float
    most: float
    runs: int

    def __str__(self) -> str:
        if self.least == self.most:
            return brief(self.median)
        return f"{brief(self.median)} ({brief(self.least)} to {brief(self.most)})"


def spread(values: Sequence[float]) -> Spread | None:
    """Return median and range, or None if there are no values."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))


def brief(value: float) -> str:
    """Return the value with its significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
