"""``backup archive``: ship the change log, and say what of it is archived."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from llmspell_dist.cli.backup_options import (
    NICE,
    Confirm,
    Keys,
    Nice,
    Plaintext,
    To,
    opened,
    tell,
    until_stopped,
)
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.output import printable
from llmspell_dist.cli.settings import Settings, command
from llmspell_dist.cli.wording import counted, spoken, wrong
from llmspell_dist.errors import mask_secrets

if TYPE_CHECKING:
    from llmspell_dist.backup.archive.offering import ArchiveStatus, TimelineStatus

__all__ = ["complaints", "register"]

REPORT_S: Final = 60.0
"""Between two lines that a service prints."""
STATUS_COLUMNS: Final = ("TIMELINE", "SHARD", "AFTER", "UP TO", "AFTER REVISION", "UP TO REVISION")


def register(group: typer.Typer) -> None:
    """Add the command."""
    command(group, "archive")(archive)


async def archive(
    settings: Settings,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", help="Ship until SIGTERM or Ctrl-C, then what is left.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Ship what there is now, and end.")] = False,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Keep the log no longer for an archive that has ended."),
    ] = False,
    confirm: Confirm = False,
    nice: Nice = NICE,
    to: To = None,
    keys: Keys = None,
    plaintext: Plaintext = False,
) -> Exit:
    """Ship the change log to the archive; without --follow or --once say what is archived.

    That is exit code 1 if nothing is. One process ships for a namespace; a second one with
    --follow waits for its turn. With --forget and --confirm the log is trimmed again whether it is
    archived or not; what is archived stays, and who ships again goes on in a new timeline.
    """
    given = [
        name for name, one in (("--follow", follow), ("--once", once), ("--forget", forget)) if one
    ]
    if len(given) > 1:
        raise wrong(given[0], f"must not be given with {given[1]}")
    if confirm and not forget:
        raise wrong("--confirm", "needs --forget")
    async with opened(settings, to, keys, nice=nice, plaintext=plaintext) as store:
        if not given:
            return _print_status(settings, await store.archive_status())
        shipper = store.archive()
        if forget:
            return await _forget(settings, shipper, confirm=confirm)
        if once:
            await shipper.once()
        else:
            with complaints():
                async with until_stopped() as stop:
                    await _follow(settings, shipper, stop, store.label)
        document = stats_document(shipper)
    if settings.as_json:
        settings.output.document(document)
    else:
        shipped = shipper.stats
        segments = counted(shipped.segments, "segment")
        settings.output.say(f"{segments}, {counted(shipped.entries, 'entry', 'entries')}")
    return Exit.OK


async def _forget(settings: Settings, shipper: Any, *, confirm: bool) -> Exit:
    """End the archive's hold, or say what it keeps; exit code 1 if it is still there."""
    held = await shipper.held()
    if confirm:
        await shipper.forget()
    if settings.as_json:
        settings.output.document(
            {"held": {shard: str(at) for shard, at in held.items()}, "confirmed": confirm}
        )
    elif not held:
        settings.output.say("no log is kept for an archive")
    else:
        kept = "was kept for the archive" if confirm else "is kept for the archive"
        settings.output.say(f"the log {kept} from {min(held.values())} on")
        if not confirm:
            tell(settings, "nothing was changed: --confirm ends that")
    return Exit.OK if confirm or not held else Exit.NO


async def _follow(settings: Settings, shipper: Any, stop: asyncio.Event, label: str) -> None:
    """Ship until `stop`, and show how far it is."""
    shown = None
    if not (settings.quiet or settings.as_json):
        show = _show(shipper) if sys.stderr.isatty() else _report(shipper, label)
        shown = asyncio.create_task(show)
    try:
        await shipper.run(stop)
    finally:
        if shown is not None:
            shown.cancel()
            await asyncio.wait([shown])


async def _show(shipper: Any) -> None:
    from rich.console import Console  # noqa: PLC0415

    with Console(stderr=True).status("archiving") as status:
        while True:
            status.update(_how_far(shipper))
            await asyncio.sleep(1.0)


async def _report(shipper: Any, label: str) -> None:
    """Print a line when it begins and each minute, for the log of a service."""
    print(printable(f"archiving to {label}, until SIGTERM"), file=sys.stderr, flush=True)
    while True:
        await asyncio.sleep(REPORT_S)
        print(_how_far(shipper), file=sys.stderr, flush=True)


def _how_far(shipper: Any) -> str:
    stats = shipper.stats
    if not stats.shipping:
        return "waiting for its turn: another process ships, or the server is away"
    return (
        f"{counted(stats.segments, 'segment')}, {counted(stats.entries, 'entry', 'entries')}; "
        f"{spoken(shipper.lag_s)} behind at most"
    )


class _Line(logging.Handler):
    """Prints what is logged as one line, without secrets."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        print(printable(f"llmspell-dist: {mask_secrets(record.getMessage())}"), file=sys.stderr)


@contextmanager
def complaints() -> Iterator[None]:
    """Print what goes wrong and is tried again, while the block runs."""
    logger, handler = logging.getLogger("llmspell_dist.backup"), _Line(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def stats_document(shipper: Any) -> dict[str, Any]:
    """Return what this process has shipped."""
    stats = shipper.stats
    return {
        "timeline": stats.timeline or None,
        "positions": {shard: str(at) for shard, at in stats.positions.items()},
        "segments": stats.segments,
        "entries": stats.entries,
        "plain_bytes": stats.plain_bytes,
        "stored_bytes": stats.stored_bytes,
        "gaps": stats.gaps,
        "timelines": stats.timelines,
        "inexact": stats.inexact,
        "errors": stats.errors,
        "last_error": stats.last_error or None,
        "base_needed": stats.base_needed,
    }


# --- what is archived -----------------------------------------------------------------------------


def _print_status(settings: Settings, status: ArchiveStatus) -> Exit:
    """Print it; exit code 1 if nothing is archived."""
    output = settings.output
    if settings.as_json:
        output.document(
            {
                "lag_s": None if status.lag_s is None else round(status.lag_s, 3),
                "pending": status.pending,
                "timelines": [_timeline_document(one) for one in status.timelines],
            }
        )
    else:
        rows = [row for one in status.timelines for row in _timeline_rows(one)]
        output.table(STATUS_COLUMNS, rows)
        if output.terminal:
            output.say(_lag_text(status))
        elif not status.timelines:
            tell(settings, _lag_text(status))
    return Exit.OK if status.timelines else Exit.NO


def _lag_text(status: ArchiveStatus) -> str:
    if status.lag_s is None:
        return "there is no archive: llmspell-dist backup archive --follow"
    return f"{spoken(status.lag_s)} behind, {status.pending:,} commits are not archived yet"


def _timeline_document(one: TimelineStatus) -> dict[str, Any]:
    return {
        "id": one.timeline.id,
        "parent": one.timeline.parent or None,
        "opened": one.timeline.opened,
        "reason": one.timeline.reason,
        "gaps": one.gaps,
        "shards": [
            {
                "shard": shard,
                "covered": [{"after": str(after), "upto": str(upto)} for after, upto in ranges],
            }
            for shard, ranges in one.covered.items()
        ],
    }


def _timeline_rows(one: TimelineStatus) -> Iterator[tuple[str, ...]]:
    """Yield a row for each stretch without a gap."""
    for shard, ranges in one.covered.items():
        for after, upto in ranges:
            times = (at.time.isoformat(timespec="milliseconds") for at in (after, upto))
            yield one.timeline.id, shard, *times, str(after), str(upto)
