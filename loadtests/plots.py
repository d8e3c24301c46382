"""Plots as SVG files that stand alone: no script, no font and no style from elsewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

import pygal
from pygal.style import CleanStyle

from loadtests.criteria import Measured
from loadtests.profiles import RAMP
from loadtests.sampling import MIB, Sample

__all__ = ["draw", "draw_memory"]

# pygal leaves a finder for its plugins behind, whose old form Python warns of at every import.
sys.meta_path[:] = [one for one in sys.meta_path if type(one).__name__ != "PluginImportFixer"]

_POINTS_OF_MEMORY: Final = 60
_PERCENTS: Final = (50, 95, 99)


def draw(measured: Measured, folder: Path) -> list[Path]:
    """Draw a ramp: throughput, latency and CPU over what was offered."""
    if measured.plan.kind != RAMP or len(measured.windows) < 2:
        return []
    name = measured.plan.name
    return [
        _throughput(measured, folder / f"load-{name}-throughput.svg"),
        _latency(measured, folder / f"load-{name}-latency.svg"),
        _cpu(measured, folder / f"load-{name}-cpu.svg"),
    ]


def draw_memory(samples: list[Sample], since: float, until: float, path: Path) -> Path | None:
    """Draw the memory of all processes over a hold."""
    chart = _chart("Memory of each process", "seconds", "MiB resident")
    lines = 0
    for process in sorted({sample.process for sample in samples if sample.rss}):
        span = [s for s in samples if s.process == process and since <= s.time <= until]
        every = max(1, len(span) // _POINTS_OF_MEMORY)
        if len(span) > 1:
            lines += 1
            chart.add(
                process, [(s.time - since, s.rss / MIB) for s in span[::every]], show_dots=False
            )
    return _written(chart, path) if lines else None


def _throughput(measured: Measured, path: Path) -> Path:
    chart = _chart(_title(measured, "throughput"), "offered, steps/s", "done, steps/s")
    points = [(window.offered, window.achieved) for window in measured.windows]
    chart.add("done", points)
    ideal = [(window.offered, window.offered) for window in measured.windows]
    chart.add("offered", ideal, show_dots=False, stroke_style={"dasharray": "4, 4"})
    knee = measured.knee
    if knee is not None:
        chart.add("knee", [points[knee.number]], dots_size=7, stroke=False)
    return _written(chart, path)


def _latency(measured: Measured, path: Path) -> Path:
    title = _title(measured, "latency")
    chart = _chart(title, "offered, steps/s", "ms, logarithmic", logarithmic=True)
    for percent in _PERCENTS:
        line = [
            (window.offered, max(0.01, window.steps.percentile_ms(percent)))
            for window in measured.windows
        ]
        chart.add(f"p{percent}", line)
    return _written(chart, path)


def _cpu(measured: Measured, path: Path) -> Path:
    chart = _chart(_title(measured, "CPU"), "offered, steps/s", "cores")
    for process in sorted({name for one in measured.usages for name in one}):
        line = [
            (window.offered, one[process].cores)
            for window, one in zip(measured.windows, measured.usages, strict=True)
            if process in one
        ]
        chart.add(process, line)
    return _written(chart, path)


def _title(measured: Measured, what: str) -> str:
    return f"{measured.plan.mix} over the {measured.plan.target}: {what}"


def _chart(title: str, x_title: str, y_title: str, **options: Any) -> Any:
    return pygal.XY(
        title=title,
        x_title=x_title,
        y_title=y_title,
        style=CleanStyle(font_family="sans-serif"),
        js=[],
        width=720,
        height=400,
        dots_size=3,
        legend_at_bottom=True,
        truncate_legend=-1,
        value_formatter=lambda value: f"{value:,.4g}",
        x_value_formatter=lambda value: f"{value:,.4g}",
        **options,
    )


def _written(chart: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # pygal writes a script with its configuration, whether or not there is one that reads it.
    path.write_bytes(re.sub(rb"<script.*?</script>", b"", chart.render(), flags=re.DOTALL) + b"\n")
    return path
