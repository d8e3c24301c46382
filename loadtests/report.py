"""What is left of a run: summary.json, tables as text and Markdown, and a page with the plots."""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from loadtests.criteria import Measured, Verdict
from loadtests.sampling import OTHERS

__all__ = [
    "bottleneck",
    "machine",
    "markdown",
    "names",
    "note",
    "summary",
    "verdict_lines",
    "write_page",
    "write_summary",
]

_SHOWN: Final = 8
_FULL: Final = 0.85
"""Part of a core from which a thread counts as saturated."""


def machine(server: str) -> dict[str, Any]:
    """Return where it was measured."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": psutil.cpu_count() or 0,
        "server": server,
    }


def summary(
    head: Mapping[str, Any], loads: Sequence[Measured], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """Return all figures as plain data."""
    return {
        **head,
        "note": note(loads),
        "holds": all(verdict.holds for verdict in verdicts),
        "verdicts": [
            {
                "load": verdict.load,
                "criterion": verdict.criterion,
                "holds": verdict.holds,
                "facts": verdict.facts,
            }
            for verdict in verdicts
        ],
        "loads": [_load(load) for load in loads],
    }


def _load(load: Measured) -> dict[str, Any]:
    knee = load.knee
    return {
        "name": load.plan.name,
        "mix": load.plan.mix,
        "target": load.plan.target,
        "kind": load.plan.kind,
        "requests": load.requests,
        "failures": dict(load.failures),
        "compared": load.checked,
        "problems": load.problems,
        "knee": None
        if knee is None
        else {"users": knee.users, "throughput": knee.throughput, "reached": knee.reached},
        "saturated": bottleneck(load),
        "commands": _dearest(load),
        "memory": {
            name: {"first": used.rss_first, "last": used.rss_last, "growth": used.growth}
            for name, used in load.steady.items()
            if used.rss_first
        },
        "stages": _stages(load),
    }


def _dearest(load: Measured) -> dict[str, dict[str, float]]:
    """Return the commands that took most of the server's time."""
    found = sorted(load.commands.items(), key=lambda item: -item[1][1])[:_SHOWN]
    return {
        name: {"calls": calls, "seconds": usec / 1e6, "usec_per_call": usec / calls}
        for name, (calls, usec) in found
        if calls
    }


def _stages(load: Measured) -> list[dict[str, Any]]:
    rows = []
    for number, window in enumerate(load.windows):
        used = load.usages[number] if number < len(load.usages) else {}
        rows.append(
            {
                "users": window.users,
                "seconds": window.seconds,
                "offered": window.offered,
                "achieved": window.achieved,
                "ms": {f"p{p:g}": window.steps.percentile_ms(p) for p in (50, 95, 99, 99.9)},
                "names": {
                    name: {
                        "count": found.count,
                        "p50": found.percentile_ms(50),
                        "p95": found.percentile_ms(95),
                        "p99": found.percentile_ms(99),
                    }
                    for name, found in sorted(window.names.items())
                },
                "failures": dict(window.failures),
                "cores": {name: one.cores for name, one in used.items()},
                "busiest_thread": {name: one.busiest_thread for name, one in used.items()},
            }
        )
    return rows


def bottleneck(load: Measured) -> str:
    """Return what was full in the last stage: a thread, the machine, or nothing."""
    if not load.usages:
        return "not sampled"
    used = load.usages[-1]
    full = [
        f"{name} ({one.busiest_thread:.0%} of a core)"
        for name, one in sorted(used.items(), key=lambda item: -item[1].busiest_thread)
        if one.busiest_thread >= _FULL
    ]
    cores = psutil.cpu_count() or 1
    busy = sum(one.cores for one in used.values())
    if full:
        return " and ".join(full)
    if busy >= _FULL * cores:
        shares = sorted(used.items(), key=lambda item: -item[1].cores)
        told = ", ".join(f"{name} {one.cores:.2f}" for name, one in shares)
        return f"the machine: {busy:.2f} of {cores} cores ({told})"
    return "nothing"


def verdict_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the verdicts, a line each."""
    return [
        f"{'holds' if one.holds else 'FAILS':<7}{one.load:<9}{one.criterion:<32}{one.facts}"
        for one in verdicts
    ]


_HEAD: Final = (
    "users",
    "offered/s",
    "done/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "sidecar",
    "server",
    "locust",
    "library",
    OTHERS,
)


def markdown(load: Measured) -> str:
    """Return a load's stages as a Markdown table; the last columns are cores."""
    rows = [list(_HEAD)]
    for number, window in enumerate(load.windows):
        used = load.usages[number] if number < len(load.usages) else {}
        latencies = [f"{window.steps.percentile_ms(percent):.2f}" for percent in (50, 95, 99)]
        cores = [f"{used[name].cores:.2f}" if name in used else "" for name in _HEAD[6:]]
        offered = f"{window.offered:,.0f}"
        rows.append([f"{window.users:,}", offered, f"{window.achieved:,.0f}", *latencies, *cores])
    kept = [at for at in range(len(_HEAD)) if at < 3 or any(row[at] for row in rows[1:])]
    return _table([[row[at] for at in kept] for row in rows])


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"| {' | '.join(cells)} |")
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines)


def names(load: Measured) -> str:
    """Return what was done in the last stage as a Markdown table, the most frequent first."""
    if not load.windows:
        return ""
    window = load.windows[-1]
    rows = [["step", "per s", "p50 ms", "p95 ms", "p99 ms"]]
    for name, found in sorted(window.names.items(), key=lambda item: -item[1].count):
        latencies = [f"{found.percentile_ms(percent):.2f}" for percent in (50, 95, 99)]
        rows.append([name, f"{found.count / window.seconds:,.1f}", *latencies])
    return _table(rows)


def note(loads: Sequence[Measured]) -> str:
    """Return how busy the machine was with something else, which makes everything slower."""
    shares = [used[OTHERS].cores for load in loads for used in load.usages if OTHERS in used]
    if not shares:
        return "nothing was sampled"
    mean, cores = sum(shares) / len(shares), psutil.cpu_count() or 1
    return f"everything else on this machine took {mean:.2f} of its {cores} cores meanwhile"


def write_page(
    folder: Path, loads: Sequence[Measured], verdicts: Sequence[Verdict], plots: Sequence[Path]
) -> Path:
    """Write a page that holds verdicts, tables and plots, and leads to Locust's own reports."""
    parts = ["<!doctype html><meta charset=utf-8><title>Load test</title>"]
    parts.append("<style>body{font:15px sans-serif;margin:2em}pre{overflow:auto}</style>")
    parts.append("<h1>Load test</h1>")
    parts.append(f"<pre>{html.escape(chr(10).join(verdict_lines(verdicts)))}</pre>")
    parts.append(f"<p>{html.escape(note(loads))}</p>")
    for load in loads:
        name = html.escape(load.plan.name)
        parts.append(f"<h2>{name}</h2><p>saturated: {html.escape(bottleneck(load))}; ")
        parts.append(f'<a href="{name}/locust.html">Locust\'s report</a></p>')
        parts.append(f"<pre>{html.escape(markdown(load))}</pre>")
        parts.append(f"<pre>{html.escape(names(load))}</pre>")
    parts += [f'<img src="{html.escape(str(plot.relative_to(folder)))}" alt="">' for plot in plots]
    page = folder / "report.html"
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def write_summary(folder: Path, content: dict[str, Any]) -> Path:
    """Write the figures as JSON."""
    path = folder / "summary.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path
