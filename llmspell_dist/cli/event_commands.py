"""``events tail|publish|queues|dead|replay|forget|remove``: what happens, and what waits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from llmspell_dist.cli.arguments import parse_ttl, read_value
from llmspell_dist.cli.events import (
    LETTER_COLUMNS,
    QUEUE_COLUMNS,
    event_document,
    event_row,
    letter_document,
    letter_row,
    queue_document,
    queue_row,
)
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.output import Output, printable
from llmspell_dist.cli.settings import PATIENCE_S, Settings, command, command_group
from llmspell_dist.cli.wording import renamed, wrong
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.events import DurableSubscription, Event, SubscriptionNotFoundError
from llmspell_dist.events.looking import MOST_LISTED, check_id
from llmspell_dist.events.steps import check_name
from llmspell_dist.ttl import KEEP

if TYPE_CHECKING:
    from llmspell_dist.events import Events, LiveSubscription, SubscriptionInfo

__all__ = ["register"]

_PAGE: Final = 100
"""Dead letters in a round trip: each may have a MiB."""
_IDS_NAMED: Final = 20

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of a durable subscription.")]
Confirm = Annotated[
    bool,
    typer.Option("--confirm", "--yes", "-y", help="Do it, without a question."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = command_group(app, "events", "Hear and publish events; look at queues, dead letters.")
    command(group, "tail")(tail)
    # A negative number is DATA, not an option.
    command(group, "publish", context_settings={"ignore_unknown_options": True})(publish)
    command(group, "queues")(queues)
    command(group, "dead")(dead)
    command(group, "replay")(replay)
    command(group, "forget")(forget)
    command(group, "remove")(remove)


# --- tail -----------------------------------------------------------------------------------------


async def tail(
    settings: Settings,
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Such as 'state.*'; default: all.")
    ] = "*",
    *,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", min=1, help="Stop after so many.")
    ] = None,
    durable: Annotated[
        str | None,
        typer.Option(
            "--durable", metavar="NAME", help="Take them from a queue, and keep it for next time."
        ),
    ] = None,
) -> Exit:
    """Print events as they come, until Ctrl-C; with --json one document a line.

    By default what is published from now on. With --durable what waits in that queue, each event
    acknowledged when it was printed: it is taken from other consumers of that name.
    """
    if durable is not None:
        check_name(durable, "--durable")
    async with AsyncExitStack() as stack:
        spell = await stack.enter_async_context(settings.connect())
        events: Events = spell.events
        if durable is None:
            live = await stack.enter_async_context(events.subscribe(pattern))
            stack.callback(_tell_left_out, live)
            await _print(live, count, settings.output)
        else:
            if not settings.quiet and await _found(events, durable) is None:
                said = f"{durable} is new, and keeps events until `events remove {durable}`"
                print(printable(said), file=sys.stderr)
            queue = await stack.enter_async_context(events.subscribe(pattern, durable=durable))
            await _print(queue, count, settings.output)
    return Exit.OK


async def _print(
    heard: LiveSubscription | DurableSubscription, count: int | None, output: Output
) -> None:
    left = count
    async for event in heard:
        if output.as_json:
            print(output.dumps(event_document(event)))
        else:
            print("\t".join(map(printable, event_row(event, output))))
        sys.stdout.flush()  # whoever reads a pipe waits for this line
        if isinstance(heard, DurableSubscription):
            await heard.ack(event)
        if left is not None:
            left -= 1
            if not left:
                return


def _tell_left_out(heard: LiveSubscription) -> None:
    """Say what did not come, on the standard error."""
    stats = heard.stats()
    for number, what in (
        (stats.dropped, "events dropped: they came faster than they could be printed"),
        (stats.unreadable, "left out: bytes that are no event of this release"),
        (stats.gaps, "lost connections: what was published meanwhile did not come"),
    ):
        if number:
            print(f"{number} {what}", file=sys.stderr)


async def _found(events: Events, name: str) -> SubscriptionInfo | None:
    return next((one for one in await events.subscriptions() if one.name == name), None)


# --- publish --------------------------------------------------------------------------------------


async def publish(
    settings: Settings,
    event_type: Annotated[str, typer.Argument(metavar="TYPE", help="Such as order.paid.")],
    data: Annotated[
        str, typer.Argument(metavar="[DATA]", help="JSON; - reads it from the standard input.")
    ] = "null",
    *,
    text: Annotated[bool, typer.Option("--text", help="DATA is text, not JSON.")] = False,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TEXT", help="May be given several times.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="TEXT", help="Who publishes it.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="TEXT", help="Whom it is for.")
    ] = None,
    priority: Annotated[
        int, typer.Option("--priority", metavar="N", help="-100 to 100, lower first.")
    ] = 0,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="TIME", help="Not delivered after that: 90s, 2h.")
    ] = None,
    correlation: Annotated[
        str | None, typer.Option("--correlation", metavar="ID", help="What it belongs to.")
    ] = None,
) -> Exit:
    """Publish an event and print its id: every queue that means it has it then."""
    event = _event(
        event_type,
        _data(data, text=text),
        tags=tag or (),
        source=source,
        target=target,
        priority=priority,
        ttl=_time_to_live(ttl),
        correlation_id=correlation,
    )
    async with settings.connect() as spell:
        published: Event = await spell.events.publish_event(event, timeout=PATIENCE_S)
    if settings.as_json:
        settings.output.document(event_document(published))
    else:
        settings.output.say(published.id)
    return Exit.OK


def _data(argument: str, *, text: bool) -> Any:
    try:
        return read_value(argument, as_text=text)
    except InvalidArgumentError as error:
        raise wrong("DATA", error.rule) from None


def _time_to_live(text: str | None) -> Any:
    given = parse_ttl(text)
    return None if given is KEEP else given


def _event(event_type: str, data: Any, **fields: Any) -> Event:
    try:
        return Event(event_type, data, **fields)
    except InvalidArgumentError as error:
        typed = {"type": "TYPE", "tags": "--tag", "correlation_id": "--correlation"}
        name = typed.get(error.argument, f"--{error.argument}")
        raise renamed(error, name) from None


# --- queues and dead letters ----------------------------------------------------------------------


async def queues(settings: Settings) -> Exit:
    """List the durable subscriptions with what waits in their queues.

    LAG: not acknowledged yet; PENDING: those of them that a consumer holds; DEAD: dead letters;
    DROPPED: left out because the queue was full.
    """
    async with settings.connect() as spell:
        found = await spell.events.subscriptions()
    if settings.as_json:
        settings.output.document(
            {"namespace": spell.namespace, "queues": [queue_document(one) for one in found]}
        )
    else:
        settings.output.table(QUEUE_COLUMNS, map(queue_row, found))
        if settings.output.terminal and not found:
            settings.output.say("there is no durable subscription")
    return Exit.OK


async def dead(
    settings: Settings,
    name: Name,
    *,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=MOST_LISTED, help="At most so many.")
    ] = 100,
    after: Annotated[
        str | None, typer.Option("--after", metavar="ID", help="Those behind this one.")
    ] = None,
) -> Exit:
    """List dead letters, oldest first: events that could not be handled, and bytes that are none.

    With what went wrong last; of bytes that are no event the first ones, in hexadecimal.
    """
    check_name(name, "NAME")
    async with settings.connect() as spell:
        try:
            letters = await spell.events.dead_letters(name, limit=limit, after=after)
        except InvalidArgumentError as error:
            raise renamed(error, "--after") from None
        if not letters and await _found(spell.events, name) is None:
            raise SubscriptionNotFoundError(name)
    output, more = settings.output, len(letters) == limit
    if settings.as_json:
        found = [letter_document(letter) for letter in letters]
        output.document({"name": name, "letters": found, "more": more})
        return Exit.OK
    output.table(LETTER_COLUMNS, (letter_row(letter, output) for letter in letters))
    if output.terminal and not letters:
        output.say("there are no dead letters")
    elif output.terminal and more:
        output.say(f"there may be more than these {limit}; see --limit and --after")
    return Exit.OK


Ids = Annotated[
    list[str] | None, typer.Argument(metavar="[ID...]", help="Of dead letters, as `dead` has them.")
]


async def replay(settings: Settings, name: Name, ids: Ids = None) -> Exit:
    """Put dead letters back into their queue, to be delivered again; without ids all of them.

    Exit code 1 if one of the ids was not there.
    """
    check_name(name, "NAME")
    given = _checked(list(dict.fromkeys(ids or ())))
    async with settings.connect() as spell:
        events: Events = spell.events
        wanted = given or await _all_ids(events, name)
        if not wanted and await _found(events, name) is None:
            raise SubscriptionNotFoundError(name)
        done = await events.replay(name, wanted)
    return _report(settings, name, "replayed", done, len(wanted))


async def _all_ids(events: Events, name: str) -> list[str]:
    """Return the ids of what is there now; what comes while they are replayed is not meant."""
    found: list[str] = []
    while page := await events.dead_letters(name, limit=_PAGE, after=found[-1] if found else None):
        found += [letter.id for letter in page]
    return found


def forget(
    settings: Settings,
    name: Name,
    ids: Ids = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that are there now.")] = False,
    confirm: Confirm = False,
) -> Exit:
    """Delete dead letters; without --confirm only say which, and on a terminal ask.

    Exit code 1 if one of the ids was not there, or if nothing was deleted for want of --confirm.
    """
    check_name(name, "NAME")
    if bool(ids) == everything:
        raise wrong("ID...", "or --all must be given, and not both")
    given = _checked(list(dict.fromkeys(ids or ())))
    with settings.in_turns() as (run, spell):
        there = run(_all_ids(spell.events, name))
        if not there and run(_found(spell.events, name)) is None:
            raise SubscriptionNotFoundError(name)
        wanted = there if everything else given
        meant = there if everything else [one for one in wanted if one in set(there)]
        shown = ", ".join(meant[:_IDS_NAMED]) + (", …" if len(meant) > _IDS_NAMED else "")
        said = f"{len(meant)} dead letters of {name} would be deleted" + (shown and f": {shown}")
        if not (confirm or _agreed(said)):
            return _dry(settings, {"name": name, "would_forget": meant})
        done = run(spell.events.delete_dead(name, meant))
    return _report(settings, name, "forgotten", done, len(wanted))


def remove(settings: Settings, name: Name, *, confirm: Confirm = False) -> Exit:
    """End a durable subscription: its queue and its dead letters are deleted, consumers are told.

    Without --confirm only say what would be, and on a terminal ask.
    """
    check_name(name, "NAME")
    with settings.in_turns() as (run, spell):
        found = run(_found(spell.events, name))
        if found is None:
            raise SubscriptionNotFoundError(name)
        said = f"{name} would be removed, with {found.lag} events and {found.dead} dead letters"
        if not (confirm or _agreed(said)):
            return _dry(settings, {"name": name, "would_remove": queue_document(found)})
        removed = run(spell.events.remove(name))
    if settings.as_json:
        settings.output.document({"name": name, "removed": removed})
    else:
        settings.output.say(f"{name} removed")
    return Exit.OK if removed else Exit.NO


def _checked(ids: Sequence[str]) -> list[str]:
    """Refuse what is no id before anything is sent."""
    return [check_id(one, "ID...") for one in ids]


def _agreed(said: str) -> bool:
    """Say on the standard error what would be deleted; ask if somebody is there to be asked."""
    print(printable(said), file=sys.stderr)
    if not sys.stdin.isatty():
        print("nothing was deleted: --confirm does it", file=sys.stderr)
        return False
    print("Delete it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _dry(settings: Settings, document: dict[str, Any]) -> Exit:
    if settings.as_json:
        settings.output.document(document)
    return Exit.NO


def _report(settings: Settings, name: str, done_what: str, done: int, wanted: int) -> Exit:
    if settings.as_json:
        settings.output.document({"name": name, done_what: done, "missing": wanted - done})
    else:
        missing = f", {_not_there(wanted - done)}" if done < wanted else ""
        settings.output.say(f"{done} {done_what}{missing}")
    return Exit.OK if done == wanted else Exit.NO


def _not_there(count: int) -> str:
    return f"{count} {'was' if count == 1 else 'were'} not there"
