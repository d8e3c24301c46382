"""The benchmark's arithmetic, its checker and a smoke run of all its rows."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import llmspell_dist

if TYPE_CHECKING:
    from benchmarks.report import RawLine

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the benchmarks importable, and of the checkout nothing else: tox tests the wheel."""
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def _raw(name: str = "get_1", ours: list[float] | None = None) -> RawLine:
    from benchmarks.report import RawLine

    return RawLine(name, "µs", "ours", "redis-py", ours or [7.0, 8.0, 6.0], [10.0, 11.0, 9.0])


def _checked(raw: list[RawLine], **changed: Any) -> list[str]:
    """Return what the checker says to a run with one target; ``changed`` falsifies its line."""
    from benchmarks.check import NOISE, problems
    from benchmarks.report import Target, line_of

    targets = {"get_1": Target("one get", 0.85, at_least=False)}
    lines = [asdict(line_of(entry, targets)) | changed for entry in raw]
    noise = _raw(NOISE)
    lines.append(asdict(line_of(noise, targets)))
    raw = [*raw, noise]
    return problems(lines, [asdict(entry) for entry in raw], targets)


def test_a_percentile_is_a_sample_that_occurred() -> None:
    """No interpolation: of three samples the p99.9 is the largest."""
    from benchmarks.stats import percentile

    assert percentile([1.0, 2.0, 30.0], 99.9) == 30.0
    assert percentile([1.0, 2.0, 30.0], 50) == 2.0
    assert percentile([float(n) for n in range(1, 101)], 99) == 99.0
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


def test_the_interval_encloses_the_ratio_and_is_the_same_every_time() -> None:
    """The bootstrap has a fixed seed."""
    from benchmarks.stats import ratio_interval, ratio_of_medians

    source = random.Random(3)
    ours = [source.gauss(20, 2) for _ in range(15)]
    peer = [source.gauss(10, 1) for _ in range(15)]
    low, high = ratio_interval(ours, peer)
    assert low <= ratio_of_medians(ours, peer) <= high
    assert 1.5 < low < high < 2.5
    assert ratio_interval(ours, peer) == (low, high)
    assert ratio_interval([4.0], [2.0]) == (2.0, 2.0)


def test_samples_that_are_no_pairs_are_refused() -> None:
    """A ratio needs both samples of each round."""
    from benchmarks.stats import ratio_interval

    with pytest.raises(ValueError, match="unpaired"):
        ratio_interval([1.0, 2.0], [1.0])


def test_the_checker_accepts_a_run_that_follows_from_its_samples() -> None:
    """Nothing to say about an honest run that meets its target."""
    assert _checked([_raw()]) == []


def test_the_checker_finds_a_missing_row() -> None:
    """A target without a line fails the run."""
    assert _checked([_raw("something else")]) == ["get_1: the row is missing (one get)"]


def test_a_run_without_its_noise_is_incomplete() -> None:
    """Without the A/A row nobody knows what a difference is worth."""
    from benchmarks.check import problems

    assert problems([], [], {}) == ["noise (A/A): the row is missing"]
    assert problems([], [], {}, only=["get_1"]) == []


def test_the_checker_finds_a_missed_target() -> None:
    """The verdict comes from the samples."""
    assert _checked([_raw(ours=[9.0, 9.5, 9.2])]) == ["get_1: 0.92, target missed (at most 0.85)"]


@pytest.mark.parametrize(
    "falsified", [{"ratio": 0.5}, {"ours": 1.0}, {"met": False}, {"target": 9.0}, {"lo": 0.1}]
)
def test_the_checker_finds_a_figure_that_does_not_follow(falsified: dict[str, Any]) -> None:
    """Every figure of a line is computed again."""
    (problem,) = _checked([_raw()], **falsified)
    assert problem == f"get_1: {next(iter(falsified))} does not follow from the samples"


def test_a_missed_target_that_claims_to_be_met_is_found() -> None:
    """The line cannot talk the checker into anything."""
    found = _checked([_raw(ours=[9.0, 9.5, 9.2])], met=True)
    assert "get_1: met does not follow from the samples" in found


def test_every_target_has_a_row() -> None:
    """The table of rows and the file of targets name the same lines."""
    from benchmarks.report import load_targets
    from benchmarks.rows import ROWS

    names = [pair.name for row in ROWS for pair in row.pairs]
    assert set(load_targets()) <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("size", [143, 663, 4_300, 100_000])
def test_a_payload_has_exactly_its_size(size: int) -> None:
    """Both sides move the same number of bytes, and variants differ."""
    from benchmarks.payloads import packed

    assert len(packed(size)) == len(packed(size, 3)) == size
    assert packed(size) != packed(size, 3)


async def test_rounds_alternate_and_the_collector_rests() -> None:
    """Each round runs all arms, every second one backwards, without garbage collection."""
    from benchmarks.harness import Arm, Bench

    ran: list[str] = []

    def arm(name: str) -> Arm:
        async def work(count: int) -> float:
            assert not gc.isenabled()
            ran.append(name)
            return 5.0 * count

        return Arm(name, work, fixed=10)

    bench = replace(Bench(None, rounds=3))  # type: ignore[arg-type]
    samples = await bench.interleave([arm("a"), arm("b")])
    assert "".join(ran) == "abbaab"
    assert samples == {"a": [5.0] * 3, "b": [5.0] * 3}
    assert gc.isenabled()


async def test_a_batch_fills_its_slot_in_whole_steps() -> None:
    """The harness finds how many calls fit, in multiples of the concurrent callers."""
    from benchmarks.harness import Arm, Bench

    counts: list[int] = []

    async def work(count: int) -> None:
        counts.append(count)
        sum(range(count))

    await Bench(None, rounds=2, slot=0.05).interleave([Arm("a", work, step=50)])  # type: ignore[arg-type]
    assert all(count % 50 == 0 for count in counts)
    assert counts[-1] == counts[-2] > 50


@pytest.mark.performance
@pytest.mark.timeout(400)  # forty rows; on a busy machine it waits more than it works
def test_a_quick_run_measures_every_row(benchmarks_on_path: Path, tmp_path: Path) -> None:
    """The smoke run writes a line per target, and its files pass their own check."""
    from benchmarks.report import load_targets

    package = str(Path(llmspell_dist.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--out", "out"],
        cwd=benchmarks_on_path,
        env=os.environ | {"PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert {"name", "ours", "peer", "unit", "ratio", "target", "met"} <= set(lines[0])
    assert sum(line["target"] is not None for line in lines) == len(load_targets())
