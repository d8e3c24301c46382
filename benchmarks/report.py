"""From samples to lines, and from lines to a table, a page and the files under ``build/``."""

from __future__ import annotations

import json
import os
import platform
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Bench, Pair, Row, Samples
from benchmarks.stats import ratio_interval

__all__ = [
    "Line",
    "RawLine",
    "Target",
    "header",
    "line_of",
    "load_targets",
    "raw_lines",
    "table",
    "write",
]

TARGETS_FILE = Path(__file__).with_name("targets.toml")
_MEASURED_PACKAGES = (
    "llmspell-dist",
    "redis",
    "hiredis",
    "coredis",
    "valkey-glide",
    "uvloop",
    "msgpack",
)
_FROM_MICROSECONDS = {"calls": 1.0, "µs": 1.0, "ms": 1e-3, "MB": 1e-6, "bytes": 1.0, "k/s": 1.0}


@dataclass(frozen=True, slots=True)
class Target:
    """What a row has to reach: a ratio that is at least or at most a number."""

    what: str
    bound: float
    at_least: bool
    dream: float | None = None

    def met_by(self, ratio: float) -> bool:
        """Return whether a ratio reaches the target."""
        return ratio >= self.bound if self.at_least else ratio <= self.bound


@dataclass(frozen=True, slots=True)
class RawLine:
    """The raw samples of a line, in its unit: everything else can be computed from them."""

    name: str
    unit: str
    ours_arm: str
    peer_arm: str
    ours: list[float]
    peer: list[float]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of ``bench.json``: both medians, their ratio with its interval, and the verdict."""

    name: str
    ours: float
    peer: float
    unit: str
    ratio: float
    target: float | None
    bound: str | None
    met: bool | None
    lo: float
    hi: float
    against: str


def load_targets(path: Path = TARGETS_FILE) -> dict[str, Target]:
    """Return the targets by row name."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: Target(
            table["what"],
            table["at_least"] if "at_least" in table else table["at_most"],
            "at_least" in table,
            table.get("dream"),
        )
        for name, table in tables.items()
    }


def raw_lines(row: Row, samples: Samples) -> list[RawLine]:
    """Return the lines of a row whose arms were both measured, converted to their units."""
    return [
        RawLine(
            pair.name,
            pair.unit,
            pair.ours,
            pair.peer,
            _converted(samples[pair.ours], pair),
            _converted(samples[pair.peer], pair),
        )
        for pair in row.pairs
        if pair.ours in samples and pair.peer in samples
    ]


def _converted(costs: Sequence[float], pair: Pair) -> list[float]:
    if pair.unit == "MB/s":
        return [1 / cost for cost in costs]
    if pair.unit == "ops/s":
        return [1e6 / cost for cost in costs]
    return [cost * _FROM_MICROSECONDS[pair.unit] for cost in costs]


def line_of(raw: RawLine, targets: Mapping[str, Target]) -> Line:
    """Return the line that the raw samples and the targets give: the only place of the verdict."""
    ours, peer = median(raw.ours), median(raw.peer)
    ratio = ours / peer
    low, high = ratio_interval(raw.ours, raw.peer)
    target = targets.get(raw.name)
    return Line(
        name=raw.name,
        ours=ours,
        peer=peer,
        unit=raw.unit,
        ratio=ratio,
        target=None if target is None else target.bound,
        bound=None if target is None else ("at least" if target.at_least else "at most"),
        met=None if target is None else target.met_by(ratio),
        lo=low,
        hi=high,
        against=raw.peer_arm,
    )


def header(bench: Bench, *, started: datetime) -> dict[str, Any]:
    """Return what the figures depend on: versions, server, transport, machine, rounds."""
    packages = {name: _version(name) for name in _MEASURED_PACKAGES}
    return {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
        "server": bench.server.described,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "packages": packages,
        "rounds": bench.rounds,
        "slot_seconds": bench.slot,
        "quick": bench.quick,
        "notes": bench.notes,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(
    folder: Path, lines: Iterable[Line], raw: Iterable[RawLine], head: Mapping[str, Any]
) -> None:
    """Write ``bench.json``, the raw samples and the header into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("bench.json", [asdict(line) for line in lines]),
        ("bench-samples.json", [asdict(line) for line in raw]),
        ("bench-header.json", dict(head)),
    ):
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")


COLUMNS = ("row", "ours", "peer", "unit", "ratio", "95 %", "target", "")


def cells(line: Line) -> tuple[str, ...]:
    """Return the printed cells of a line."""
    verdict = {None: "", True: "met", False: "MISSED"}[line.met]
    name = line.name if ": against" in line.name else f"{line.name} (against {line.against})"
    return (
        name,
        _figure(line.ours),
        _figure(line.peer),
        line.unit,
        f"{line.ratio:.2f}×",
        f"{line.lo:.2f} to {line.hi:.2f}",
        f"{line.bound} {line.target:g}×" if line.target is not None else "",
        verdict,
    )


def table(lines: Sequence[Line]) -> str:
    """Return the lines as a Markdown table, which reads well in a terminal too."""
    rows = [COLUMNS, *[cells(line) for line in lines]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    text = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in rows
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def _figure(number: float) -> str:
    if number >= 1_000:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"
