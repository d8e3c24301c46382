"""``lease ls|show|break``: who holds what, who waits for it, and taking it away."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.leases import (
    BROKEN_COLUMNS,
    HOLDER_COLUMNS,
    LEASE_COLUMNS,
    PAST_COLUMNS,
    WAITER_COLUMNS,
    broken_row,
    deadlock_text,
    edge_document,
    holder_document,
    holder_row,
    lease_document,
    lease_fields,
    lease_rows,
    past_document,
    past_row,
    waiter_document,
    waiter_row,
    who,
)
from llmspell_dist.cli.output import Output, printable
from llmspell_dist.cli.settings import Settings, command, command_group
from llmspell_dist.cli.state_commands import ScopeArgument
from llmspell_dist.cli.wording import wrong
from llmspell_dist.context import context
from llmspell_dist.errors import LeaseNotHeldError
from llmspell_dist.leases.looking import MAX_LISTED, MAX_WAITERS_SHOWN, ending
from llmspell_dist.leases.terms import DEFAULT_NAME

if TYPE_CHECKING:
    from llmspell_dist.client import Spell
    from llmspell_dist.leases.model import LeaseHolder, LeaseInfo, WaitEdge

__all__ = ["register"]

_MAX_REASON_BYTES: Final = 1024

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Which lease of the scope.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = command_group(app, "lease", "Look at leases: who holds them, who waits; take one away.")
    command(group, "ls")(ls)
    command(group, "show")(show)
    command(group, "break")(break_)


# --- ls -------------------------------------------------------------------------------------------


async def ls(
    settings: Settings,
    *,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=MAX_LISTED, help="At most so many.")
    ] = 100,
) -> Exit:
    """List the leases that are held or waited for, and name deadlocks.

    In the order in which they end. A lease that several hold (shared) has a row for each.
    """
    output = settings.output
    found: list[LeaseInfo] = []
    deadlocks: list[tuple[WaitEdge, ...]] = []
    async with settings.connect() as spell:
        for shard in spell.leases.steps.core.shards():
            found += await spell.leases.list(shard=shard, limit=limit)
            deadlocks += (await spell.leases.graph(shard=shard)).deadlocks
    found.sort(key=ending)  # each shard's are in order already
    shown, more = found[:limit], len(found) >= limit
    if settings.as_json:
        output.document(
            {
                "namespace": spell.namespace,
                "leases": [lease_document(info) for info in shown],
                "more": more,
                "deadlocks": [[edge_document(edge) for edge in cycle] for cycle in deadlocks],
            }
        )
        return Exit.OK
    output.table(LEASE_COLUMNS, (row for info in shown for row in lease_rows(info)))
    names = {holder.owner: who(holder) for info in found for holder in info.holders}
    output.table((), [("deadlock", deadlock_text(cycle, names)) for cycle in deadlocks])
    if output.terminal and not shown:
        output.say("no lease is held or waited for")
    elif output.terminal and more:
        output.say(f"there may be more than these {limit}; see --limit")
    return Exit.OK


# --- show -----------------------------------------------------------------------------------------


async def show(
    settings: Settings,
    scope: ScopeArgument,
    *,
    name: Name = DEFAULT_NAME,
    waiters: Annotated[
        int,
        typer.Option(
            "--waiters", metavar="N", min=0, max=MAX_WAITERS_SHOWN, help="At most so many."
        ),
    ] = 100,
) -> Exit:
    """Print who holds a lease, who waits, and who held it before; exit code 1 if nobody holds it.

    Also which lease the scope demands of its writers, and the highest fencing token that it has
    seen.
    """
    async with settings.connect() as spell:
        info = await spell.leases.show(scope, name=name, waiters=waiters)
        required = await spell.leases.requirement(scope)
        fence = (await spell.state.stat(scope)).fence
    if settings.as_json:
        lists = {
            "waiters": [waiter_document(waiter, info.time) for waiter in info.waiters],
            "history": [past_document(past) for past in info.history],
        }
        demands = {"required": required, "fence": fence}
        settings.output.document(lease_document(info) | lists | demands)
    else:
        _print(settings.output, info, required, fence)
    return Exit.OK if info.held else Exit.NO


def _print(output: Output, info: LeaseInfo, required: str | None, fence: int) -> None:
    output.fields(lease_fields(info, required, fence))
    output.table(HOLDER_COLUMNS, (holder_row(holder, info.time) for holder in info.holders))
    output.table(WAITER_COLUMNS, (waiter_row(waiter, info.time) for waiter in info.waiters))
    output.table(PAST_COLUMNS, map(past_row, info.history))
    if output.terminal and len(info.waiters) < info.waiting:
        output.say(f"{len(info.waiters)} of {info.waiting} who wait are shown; see --waiters")


# --- break ----------------------------------------------------------------------------------------


def break_(
    settings: Settings,
    scope: ScopeArgument,
    *,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; the change log keeps it.")
    ],
    name: Name = DEFAULT_NAME,
    token: Annotated[
        int | None,
        typer.Option("--token", metavar="N", min=1, help="Only from the holder with this token."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> Exit:
    """Take a lease from its holder, whose writes are refused from then on; the next one has it.

    Exit code 1 if nobody holds it. Asks first on a terminal; anywhere else --yes must be given.
    """
    _check_reason(reason)
    if not yes and not sys.stdin.isatty():
        raise wrong("--yes", "must be given where nobody can be asked")
    with settings.in_turns() as (run, spell):
        info = run(spell.leases.show(scope, name=name, waiters=0))
        meant = [holder for holder in info.holders if token in (None, holder.token)]
        if not meant:
            why = "nobody holds it" if token is None else f"nobody holds it with token {token}"
            current = info.holders[0] if info.holders else None
            raise LeaseNotHeldError(info.scope, info.name, "break it", why, current=current)
        agreed = yes or _agreed(info, meant)
        broken: list[tuple[LeaseHolder, str]] = []
        if agreed:
            broken = run(_break(spell, info, meant, reason))
    if settings.as_json:
        settings.output.document(
            {
                "scope": info.scope,
                "name": info.name,
                "reason": reason,
                "broken": [
                    holder_document(holder, info.time) | {"revision": revision}
                    for holder, revision in broken
                ],
            }
        )
    elif not settings.quiet:
        settings.output.table(BROKEN_COLUMNS, (broken_row(*one, info.time) for one in broken))
    return Exit.OK if agreed else Exit.NO


def _check_reason(reason: str) -> None:
    """Refuse it before anything is sent, and before anybody is asked."""
    try:
        fits = reason.strip() and len(reason.encode()) <= _MAX_REASON_BYTES
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise wrong("--reason", f"must say why in 1 to {_MAX_REASON_BYTES:,} bytes of UTF-8")


def _agreed(info: LeaseInfo, meant: Sequence[LeaseHolder]) -> bool:
    """Ask on the standard error: the standard output may be a pipe, or JSON."""
    for holder in meant:
        print(printable(f"{info.scope} {info.name} is held by {holder}"), file=sys.stderr)
    asked = "Take it away? Writes of who holds it are refused from then on. [y/N] "
    print(asked, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


async def _break(
    spell: Spell, info: LeaseInfo, meant: Sequence[LeaseHolder], reason: str
) -> list[tuple[LeaseHolder, str]]:
    """Break it by token: whoever got it while somebody was asked is not hit."""
    broken: list[tuple[LeaseHolder, str]] = []
    gone: LeaseNotHeldError | None = None
    with context(actor=_actor()):
        for holder in meant:
            try:
                revision = await spell.leases.break_lease(
                    info.scope, name=info.name, reason=reason, token=holder.token
                )
            except LeaseNotHeldError as error:
                gone = error
            else:
                broken.append((holder, str(revision)))
    if gone is not None and not broken:
        raise gone
    return broken


def _actor() -> str:
    """Return who does it, for the change log: a person on a machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a user table
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"[:128]
