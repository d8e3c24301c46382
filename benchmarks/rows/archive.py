"""The archive of the change log: how long a commit waits until it is stored, at 5,000 a second."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Bench, Pair, Row, Samples
from benchmarks.ours import NAMESPACE, OURS, open_ours
from llmspell_dist.backup.archive import Shipper
from llmspell_dist.backup.repository import Repository
from llmspell_dist.backup.targets import open_target

__all__ = ["ROWS"]

RATE = 5_000
_TARGET = "5 s"


async def _lag(bench: Bench) -> Samples:
    """Measure the age of the oldest commit of a segment when that is stored; the worst one."""
    seconds = bench.scale(20, 3)
    lags: list[float] = []
    async with open_ours(bench.server) as spell:
        driver = spell._driver  # noqa: SLF001 - the shipper alone, without the lease of the service
        with tempfile.TemporaryDirectory() as folder:
            repository = Repository(open_target(f"file://{folder}"), NAMESPACE)
            shipper = Shipper(driver, repository)
            for _ in range(bench.scale(3, 1)):
                await shipper.once()
                shipper.stats.max_segment_lag_s = 0.0
                stop = asyncio.Event()
                running = asyncio.create_task(shipper.run(stop))
                arguments = (bench.server.url, str(RATE), str(seconds))
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "benchmarks.archive_worker", *arguments),
                    stdout=asyncio.subprocess.PIPE,
                    cwd=Path(__file__).parents[2],
                )
                said, _ = await process.communicate()
                lags.append(shipper.stats.max_segment_lag_s * 1e6)
                stop.set()
                await running
                bench.note(f"archive_lag: {int(said) / seconds:,.0f} commits a second")
            await shipper.forget()
    return {OURS: lags, _TARGET: [5e6] * len(lags)}


ROWS = (Row("archive_lag", _lag, (Pair("archive_lag", OURS, _TARGET),)),)
