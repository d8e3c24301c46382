"""``backup delete|prune|gc``: remove what nobody wants or needs; nothing goes until --confirm."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import typer

from llmspell_dist.cli.arguments import parse_ttl
from llmspell_dist.cli.backup_options import Confirm, Keys, To, opened, tell
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.settings import Settings, command
from llmspell_dist.cli.wording import renamed, wrong
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["register", "span"]


def register(group: typer.Typer) -> None:
    """Add the commands."""
    command(group, "delete")(delete)
    command(group, "prune")(prune)
    command(group, "gc")(gc)


async def delete(
    settings: Settings,
    backup_id: Annotated[str, typer.Argument(metavar="ID", help="Of a backup.")],
    *,
    confirm: Confirm = False,
    to: To = None,
    keys: Keys = None,
) -> Exit:
    """Remove one backup, whatever a policy says; exit code 3 if something needs it.

    Without --confirm it only says what would go with it, with exit code 1.
    """
    async with opened(settings, to, keys) as store:
        found = await store.delete(backup_id, confirm=confirm)
    if settings.as_json:
        settings.output.document(found.as_data() | {"confirmed": confirm})
    else:
        settings.output.say(str(found))
    return _ended(settings, confirm=confirm, anything=True)


async def prune(
    settings: Settings,
    *,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="TEXT",
            help="What stays: 'last=10 daily=7 weekly=4 min=3', 'younger=30d max-size=50GB'.",
        ),
    ],
    confirm: Confirm = False,
    to: To = None,
    keys: Keys = None,
) -> Exit:
    """Remove backups, and parts of the archive, that a policy does not keep.

    What a backup that stays needs, stays. Without --confirm it only says what would go and why;
    exit code 1 if anything would.
    """
    from llmspell_dist.backup.retention import RetentionPolicy  # noqa: PLC0415

    wanted = RetentionPolicy.parse(policy)
    async with opened(settings, to, keys, reads=True) as store:
        planned = await store.prune(wanted)
        plan, done = planned.plan, None
        if confirm:
            done = (await store.prune(wanted, confirm=True, plan=planned)).report
    if settings.as_json:
        removed = None if done is None else done.as_data()
        settings.output.document(plan.as_data() | {"confirmed": confirm, "removed": removed})
    elif done is None:
        rows = [
            ("stays" if one.stays else "goes", one.backup.id, one.because) for one in plan.decisions
        ]
        settings.output.table(("", "ID", "BECAUSE"), rows)
        tell(settings, str(plan).partition("\n")[0])
    else:
        settings.output.say(str(done))
    return _ended(settings, confirm=confirm, anything=bool(plan))


async def gc(
    settings: Settings,
    *,
    grace: Annotated[
        str,
        typer.Option("--grace", metavar="TIME", help="Leave alone what is younger: 24h, 7d."),
    ] = "24h",
    confirm: Confirm = False,
    to: To = None,
    keys: Keys = None,
) -> Exit:
    """Remove what no backup needs: left by processes that were killed, and by pruning.

    Without --confirm it only says what would go; exit code 1 if anything would.
    """
    waited = span("--grace", grace)
    async with opened(settings, to, keys, reads=True) as store:
        found = await store.gc(confirm=confirm, grace=waited)
    if settings.as_json:
        settings.output.document(found.as_data() | {"confirmed": confirm})
    else:
        settings.output.say(str(found))
    return _ended(settings, confirm=confirm, anything=bool(len(found)))


def span(option: str, text: str) -> timedelta:
    """Return a time that is typed as 24h or 7d."""
    try:
        given: Any = parse_ttl(text)
    except InvalidArgumentError as error:
        raise renamed(error, option) from None
    if given is None:
        raise wrong(option, "must be a time such as 24h or 7d")
    return given if isinstance(given, timedelta) else timedelta(seconds=given)


def _ended(settings: Settings, *, confirm: bool, anything: bool) -> Exit:
    if confirm or not anything:
        return Exit.OK
    if not settings.as_json:
        tell(settings, "nothing was removed: --confirm does it")
    return Exit.NO
