"""The course of a value as a drawing with axes; the numbers are in the table beneath it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from views.base import branch_zone
from views.speech import spoken_day

WIDE, HIGH = 320, 168
"""Of the drawing, in its own units."""
LEFT, RIGHT, TOP, FOOT = 40, 8, 10, 26
"""Room around the curve, for what is written at its axes."""


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that reach from below `low` to above `high`, about so many."""
    span = high - low or abs(high) * 0.1 or 1.0
    rough = span / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next((size * each for each in (1, 2, 5) if size * each >= rough), size * 10)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(number * step, 6) for number in range(first, last + 1)]


def plot(lines: Sequence[Sequence[dict[str, Any]]], limits: tuple[float | None, float | None]) -> dict[str, Any]:
    """Where each line of `points` ({t in milliseconds, v}) goes, and what is written at the axes.

    `limits` are shown as a band; they do not stretch the axis.
    """
    values = [point["v"] for line in lines for point in line]
    times = [point["t"] for line in lines for point in line]
    marks = ticks(min(values), max(values))
    low, high, start = marks[0], marks[-1], min(times)
    long = (max(times) - start) or 1

    def across(t: float) -> float:
        return round(float(LEFT + (t - start) / long * (WIDE - LEFT - RIGHT)), 1)

    def down(v: float) -> float:
        return round(float(TOP + (high - min(max(v, low), high)) / (high - low) * (HIGH - TOP - FOOT)), 1)

    band = None
    if limits != (None, None):
        top = down(limits[1] if limits[1] is not None else high)
        bottom = down(limits[0] if limits[0] is not None else low)
        band = {"y": top, "height": max(bottom - top, 0)}
    zone = branch_zone()
    ends = [spoken_day(datetime.fromtimestamp(t / 1000, UTC).astimezone(zone).date()) for t in (start, max(times))]
    return {
        "width": WIDE,
        "height": HIGH,
        "left": LEFT,
        "right": WIDE - RIGHT,
        "foot": HIGH - FOOT,
        "marks": [{"y": down(mark), "label": f"{mark:g}"} for mark in marks],
        "ends": ends if ends[0] != ends[1] else ends[:1],
        "band": band,
        "lines": [[(across(point["t"]), down(point["v"])) for point in line] for line in lines],
    }
