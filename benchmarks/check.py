"""Check the files of a run: every target has its row, and every verdict follows from the samples.

``python -m benchmarks.check [build]`` trusts nothing in ``bench.json``: it computes medians,
ratios and verdicts again from the raw samples and the targets.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RawLine, Target, line_of, load_targets

__all__ = ["MISSED", "NOISE", "problems"]

NOISE = "noise (A/A)"
"""The row that says what a difference is worth; no run is complete without it."""

MISSED = "target missed"
_TOLERANCE = 1e-9


def problems(
    lines: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    targets: Mapping[str, Target],
    *,
    only: Collection[str] | None = None,
) -> list[str]:
    """Return what is wrong with a run, a sentence each; empty if every target is met.

    ``only`` names the rows that were asked for, when a run was limited on purpose.
    """
    found: list[str] = []
    raw = {entry["name"]: RawLine(**entry) for entry in samples}
    stated = {entry["name"]: entry for entry in lines}
    if only is None and NOISE not in stated:
        found.append(f"{NOISE}: the row is missing")
    for name, target in targets.items():
        if only is not None and name not in only:
            continue
        if name not in stated:
            found.append(f"{name}: the row is missing ({target.what})")
        elif name in raw and not (line := line_of(raw[name], targets)).met:
            found.append(f"{name}: {line.ratio:.2f}, {MISSED} ({line.bound} {line.target})")
    for name, entry in stated.items():
        if name not in raw:
            found.append(f"{name}: no samples to recompute it from")
            continue
        found += _differences(name, entry, raw[name], targets)
    return found


def _differences(
    name: str, entry: Mapping[str, Any], raw: RawLine, targets: Mapping[str, Target]
) -> list[str]:
    expected = line_of(raw, targets)
    different = [
        figure
        for figure in ("ours", "peer", "ratio", "lo", "hi")
        if not math.isclose(entry[figure], getattr(expected, figure), rel_tol=_TOLERANCE)
    ]
    different += [
        fact for fact in ("target", "bound", "met") if entry[fact] != getattr(expected, fact)
    ]
    return [f"{name}: {fact} does not follow from the samples" for fact in different]


def main(arguments: Sequence[str]) -> int:
    """Check the files of a folder and print what is wrong; 0 if nothing is."""
    folder = Path(arguments[0] if arguments else "build")
    lines = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    samples = json.loads((folder / "bench-samples.json").read_text(encoding="utf-8"))
    found = problems(lines, samples, load_targets())
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
