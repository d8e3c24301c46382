"""One module per group of rows; ``ROWS`` is the table in the order in which it is printed."""

from __future__ import annotations

from benchmarks.harness import Row
from benchmarks.rows import (
    agents,
    archive,
    backup,
    backup_load,
    big,
    correlation,
    events,
    hooks,
    imports,
    latency,
    leases,
    many,
    memory,
    noise,
    reads,
    server_time,
    sidecar,
    streams,
    sync,
    telemetry,
    under_load,
    watch,
    writes,
)

__all__ = ["ROWS"]

ROWS: tuple[Row, ...] = (
    *noise.ROWS,
    *reads.ROWS,
    *writes.ROWS,
    *server_time.ROWS,
    *latency.ROWS,
    *many.ROWS,
    *big.ROWS,
    *memory.ROWS,
    *under_load.ROWS,
    *sync.ROWS,
    *leases.ROWS,
    *agents.ROWS,
    *hooks.ROWS,
    *watch.ROWS,
    *correlation.ROWS,
    *events.ROWS,
    *backup.ROWS,
    *backup_load.ROWS,
    *archive.ROWS,
    *telemetry.ROWS,
    *sidecar.ROWS,
    *streams.ROWS,
    *imports.ROWS,
)
