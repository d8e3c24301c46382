"""``python -m benchmarks``: measure all rows, print the table, write and check ``build/``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from benchmarks import check, report
from benchmarks.harness import Bench, Row, Samples
from benchmarks.rows import ROWS
from benchmarks.server import find_binary, running_server


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; 1 if a row is missing or (in a full run) a target is missed."""
    options = _parser().parse_args(arguments)
    # A polite end by `kill` or `timeout` must not leave the server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    targets = report.load_targets()
    rows = [row for row in ROWS if not options.only or _asked_for(row, options.only)]
    if options.quick and not options.only:  # a smoke run leaves the merely informative rows out
        due = {check.NOISE, *targets}
        rows = [row for row in rows if any(pair.name in due for pair in row.pairs)]
    if not rows:
        print(f"no row matches {', '.join(options.only)}; there are:", *[row.name for row in ROWS])
        return 2
    started = datetime.now(UTC)
    with running_server(find_binary(options.server), unix=options.unix) as server:
        bench = Bench(server, quick=options.quick)
        if options.quick:
            bench.rounds, bench.slot = 2, 0.01
        if options.rounds:
            bench.rounds = options.rounds
        raw: list[report.RawLine] = []
        for row in rows:
            print(f"… {row.name}", end="", file=sys.stderr, flush=True)
            began = perf_counter()
            with server.admin() as admin:
                admin.flushall()
            raw += report.raw_lines(row, _run(row, bench))
            print(f", {perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        head = report.header(bench, started=started)
    lines = [report.line_of(entry, targets) for entry in raw]
    report.write(Path(options.out), lines, raw, head)
    print(f"\n{head['server']}, Python {head['python']}, {head['machine']}\n")
    print(report.table(lines))
    for note in bench.notes:
        print(f"note: {note}")
    only = {line.name for line in lines} | {r.name for r in rows} if options.only else None
    found = check.problems(
        [asdict(line) for line in lines], [asdict(entry) for entry in raw], targets, only=only
    )
    if options.quick:  # a smoke run proves that everything runs; its ratios mean nothing
        found = [problem for problem in found if check.MISSED not in problem]
    for problem in found:
        print(problem)
    return 1 if found else 0


def _asked_for(row: Row, wanted: Sequence[str]) -> bool:
    names = [row.name, *[pair.name for pair in row.pairs]]
    return any(name.startswith(prefix) for name in names for prefix in wanted)


def _run(row: Row, bench: Bench) -> Samples:
    with asyncio.Runner(loop_factory=_loop_factory(row.loop)) as runner:
        return runner.run(row.measure(bench))  # type: ignore[arg-type]


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 - only for its own rows

    return uvloop.new_event_loop


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="rows whose name starts so; repeatable"
    )
    parser.add_argument("--server", metavar="BINARY", help="server binary (default: from PATH)")
    parser.add_argument("--unix", action="store_true", help="unix socket instead of TCP")
    parser.add_argument("--rounds", type=int, help="rounds per row")
    parser.add_argument("--out", default="build", help="folder for the results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
