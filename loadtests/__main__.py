"""``python -m loadtests``: load a server and a sidecar of its own, report, judge.

Exit code 0 if every criterion holds, 1 if one fails, 2 if the test could not be run at all.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from llmspell_dist import SpellError
from loadtests import plots, report
from loadtests.criteria import Measured, Verdict, judge
from loadtests.profiles import DEFAULT, HOLD, PROFILES, RAMP, Plan, Profile
from loadtests.rig import Rig, RigError, running_rig
from loadtests.running import RunError, run_plan
from loadtests.sampling import Sampler
from loadtests.stages import Stage

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a profile and return the exit code."""
    options = _parser().parse_args(arguments)
    # A polite end by `kill` or `timeout` must not leave server and sidecar behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    profile: Profile = PROFILES["quick" if options.quick else options.profile]
    plans = [plan for plan in profile.plans if not options.only or plan.name in options.only]
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    started = datetime.now(UTC)
    try:
        with running_rig(folder / "sidecar.log") as rig, Sampler() as sampler:
            sampler.add("sidecar", rig.sidecar_pid)
            sampler.add("server", rig.server_pid)
            loads = _run(profile, plans, rig, sampler, options)
            head = {"profile": profile.name, "started": started.isoformat(timespec="seconds")}
            head |= report.machine(rig.server)
    except (RigError, RunError, SpellError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    verdicts = [verdict for load in loads for verdict in judge(load, profile.limits)]
    _write(folder, head, loads, verdicts, sampler)
    return 0 if verdicts and all(verdict.holds for verdict in verdicts) else 1


def _run(
    profile: Profile, plans: Sequence[Plan], rig: Rig, sampler: Sampler, options: argparse.Namespace
) -> list[Measured]:
    loads: list[Measured] = []
    for plan in plans:
        due = _hold_at_knee(plan, loads, profile) if plan.kind == HOLD else plan
        print(f"… {due.name}", end="", file=sys.stderr, flush=True)
        before = rig.command_stats()
        measured = run_plan(due, rig, sampler, options.out, options.data)
        measured.commands = _difference(before, rig.command_stats())
        if plan.kind == HOLD:
            measured.unloaded_ms = loads[-1].windows[0].steps.percentile_ms(50)
        loads.append(measured)
        print(f": {measured.requests:,} requests", file=sys.stderr, flush=True)
    return loads


def _hold_at_knee(plan: Plan, loads: Sequence[Measured], profile: Profile) -> Plan:
    """Return a hold with its users: a part of those at the knee of the ramp just before it."""
    knee = loads[-1].knee if loads and loads[-1].plan.kind == RAMP else None
    if knee is None:
        raise RunError(f"{plan.name} holds a part of a knee, and no ramp before it found one")
    users = max(1, round(profile.limits.part_of_knee * knee.users))
    return replace(plan, stages=tuple(Stage(users, stage.seconds) for stage in plan.stages))


def _difference(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Return calls and microseconds of each command in between."""
    return {
        name: (calls - before.get(name, (0, 0))[0], usec - before.get(name, (0, 0))[1])
        for name, (calls, usec) in after.items()
    }


def _write(
    folder: Path,
    head: Mapping[str, object],
    loads: list[Measured],
    verdicts: list[Verdict],
    sampler: Sampler,
) -> None:
    sampler.write(folder / "samples.csv")
    drawn = [path for load in loads for path in plots.draw(load, folder / "plots")]
    for load in loads:
        if load.plan.kind == HOLD and load.windows:
            window = load.windows[-1]
            path = folder / "plots" / f"load-{load.plan.name}-memory.svg"
            memory = plots.draw_memory(sampler.samples, window.since, window.until, path)
            drawn += [memory] if memory else []
    report.write_summary(folder, report.summary(head, loads, verdicts))
    page = report.write_page(folder, loads, verdicts, drawn)
    for load in loads:
        print(f"\n{load.plan.name}: {load.plan.mix} over the {load.plan.target}")
        print(report.markdown(load))
        print(f"saturated in the last stage: {report.bottleneck(load)}\n")
        print(report.names(load))
    print("", report.note(loads), "", *report.verdict_lines(verdicts), "", page, sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default=DEFAULT)
    parser.add_argument("--quick", action="store_true", help="the profile quick: a smoke run")
    parser.add_argument("--data", type=Path, help="folder of recorded runs (default: made ones)")
    parser.add_argument(
        "--only", action="append", metavar="LOAD", help="of the profile; repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path("build/load"), help="folder for results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
