"""How far work has come, for somebody at a terminal: bytes, rate, time that is left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmspell_dist.cli.settings import Settings

__all__ = ["shown"]


@contextmanager
def shown(settings: Settings) -> Iterator[Callable[[Any], None] | None]:
    """Show progress on the standard error while the block runs; None where nobody looks."""
    if settings.quiet or settings.as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[records]:,} records"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("preparing", total=None, records=0)

        def update(now: Any) -> None:
            bars.update(
                bar,
                description=str(now.phase),
                completed=now.bytes,
                total=now.total_bytes,
                records=now.records,
            )

        yield update
