"""``get``, ``set``, ``del`` and ``history``: single keys."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from llmspell_dist.classes import StateClass
from llmspell_dist.cli.arguments import parse_expected, parse_moment, parse_ttl, read_value
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.records import CHANGE_COLUMNS, change_document, change_row, record_document
from llmspell_dist.cli.settings import Settings, command
from llmspell_dist.cli.wording import wrong
from llmspell_dist.errors import CipherNotConfiguredError
from llmspell_dist.jsonable import to_json
from llmspell_dist.revision import Revision
from llmspell_dist.state.history import moment_of
from llmspell_dist.state.manager import StateManager
from llmspell_dist.state.model import Record

__all__ = ["KeyArgument", "ScopeArgument", "ShowSensitive", "register"]

ScopeArgument = Annotated[
    str, typer.Argument(metavar="SCOPE", help="Such as agent:alice, workflow:w1/step:plan, global.")
]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY")]
ShowSensitive = Annotated[
    bool, typer.Option("--show-sensitive", help="Show values that their class hides, too.")
]
_MISSING: Final = object()
_ENOUGH_HISTORY: Final = 1000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "get")(get)
    # A negative number is a VALUE, not an option.
    command(app, "set", context_settings={"ignore_unknown_options": True})(set_)
    command(app, "del")(delete)
    command(app, "history")(history)


# --- get ------------------------------------------------------------------------------------------


async def get(
    settings: Settings,
    scope: ScopeArgument,
    key: KeyArgument,
    *,
    record: Annotated[
        bool, typer.Option("--record", help="With revision, times, class and expiry.")
    ] = False,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="REV|TIME", help="As it was at a revision or ISO time."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Text and bytes as they are, without a newline.")
    ] = False,
    show_sensitive: ShowSensitive = False,
) -> Exit:
    """Print the value of a key; exit code 1 if it has none."""
    if at is not None and record:
        raise wrong("--record", "cannot be combined with --at")
    moment = None if at is None else parse_moment(at)
    async with settings.connect() as spell:
        if moment is not None:
            return await _get_at(
                settings, spell.state, (scope, key), moment, raw=raw, show_sensitive=show_sensitive
            )
        found = await spell.state.get_record(scope, key)
    hidden = found is not None and found.state_class.behaviour.redact and not show_sensitive
    if settings.as_json:
        settings.output.document(record_document(scope, key, found, hidden=hidden))
        return Exit.NO if found is None else Exit.OK
    if found is None:
        return _absent(settings, scope, key)
    if record:
        _print_record(settings, found, hidden)
        return Exit.OK
    if hidden:
        return _hidden(found.state_class)
    _print_value(settings, found.value, raw)
    return Exit.OK


async def _get_at(
    settings: Settings,
    state: StateManager,
    place: tuple[str, str],
    moment: Revision | datetime,
    *,
    raw: bool,
    show_sensitive: bool,
) -> Exit:
    scope, key = place
    value = await state.get_at(scope, key, moment, _MISSING)
    found = value is not _MISSING
    redacting = None
    if found and not show_sensitive:
        redacting = await _class_that_hides(state, scope, key, moment)
    if settings.as_json:
        document: dict[str, Any] = {"scope": scope, "key": key, "found": found}
        document["at"] = str(moment) if isinstance(moment, Revision) else moment.isoformat()
        if found:
            document["value"] = None if redacting else to_json(value)
            document["hidden"] = redacting is not None
        settings.output.document(document)
    elif not found:
        return _absent(settings, scope, key)
    elif redacting is not None:
        return _hidden(redacting)
    else:
        _print_value(settings, value, raw)
    return Exit.OK if found else Exit.NO


async def _class_that_hides(
    state: StateManager, scope: str, key: str, moment: Revision | datetime
) -> StateClass | None:
    """Return the class that hides the value of a moment: the one then, or the one now."""
    latest = moment_of(moment)
    try:
        now = await state.get_record(scope, key)
        changes = await state.history(scope, key, limit=_ENOUGH_HISTORY)
    except CipherNotConfiguredError:
        return StateClass.SENSITIVE  # it was at some time, and more cannot be told
    then = next((c.state_class for c in changes if c.revision <= latest and c.state_class), None)
    for state_class in (then, None if now is None else now.state_class):
        if state_class is not None and state_class.behaviour.redact:
            return state_class
    return None


def _print_value(settings: Settings, value: Any, raw: bool) -> None:
    output = settings.output
    if not raw:
        output.value(to_json(value))
        return
    data = value if isinstance(value, bytes) else None
    if isinstance(value, str):
        data = value.encode()
    if data is None:
        data = output.dumps(to_json(value)).encode()
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _print_record(settings: Settings, found: Record, hidden: bool) -> None:
    output = settings.output
    document = record_document(found.scope, found.key, found, hidden=hidden)
    shown = "(hidden)" if hidden else output.dumps(document["value"])
    names = ("revision", "created", "updated", "expires", "class", "kind", "schema_version")
    output.fields([("value", shown), *[(name, document[name]) for name in names]])


def _absent(settings: Settings, scope: str, key: str) -> Exit:
    if not settings.quiet:
        _complain("NOT_FOUND", f"no value at {key!r} in {scope}")
    return Exit.NO


def _hidden(state_class: StateClass) -> Exit:
    _complain("HIDDEN", f"the class {state_class} hides the value; see --show-sensitive")
    return Exit.NO


def _complain(code: str, message: str) -> None:
    print(f"llmspell-dist: {code}: {message}", file=sys.stderr)


# --- set ------------------------------------------------------------------------------------------


async def set_(
    settings: Settings,
    scope: ScopeArgument,
    key: KeyArgument,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="JSON; - reads standard input.")],
    *,
    text: Annotated[bool, typer.Option("--text", help="VALUE is text, not JSON.")] = False,
    ttl: Annotated[
        str | None,
        typer.Option(
            "--ttl",
            metavar="TIME",
            help="90s, 15m, 2h, 7d; none removes an expiry. Default: it stays as it is.",
        ),
    ] = None,
    state_class: Annotated[
        str | None, typer.Option("--class", metavar="CLASS", help="State class, such as critical.")
    ] = None,
    if_absent: Annotated[
        bool, typer.Option("--if-absent", help="Only if it has no value (else exit code 1).")
    ] = False,
    expected: Annotated[
        str | None,
        typer.Option(
            "--expected",
            metavar="REV",
            help="Only if it is at this revision, or none (else exit code 3).",
        ),
    ] = None,
) -> Exit:
    """Set a key. What `get --json` shows of a value can be set again."""
    if if_absent and expected is not None:
        raise wrong("--expected", "cannot be combined with --if-absent")
    options: dict[str, Any] = {"ttl": parse_ttl(ttl)}
    if state_class is not None:
        options["state_class"] = StateClass.coerce(state_class)
    wanted = None if expected is None else parse_expected(expected)
    given = read_value(value, as_text=text)
    async with settings.connect() as spell:
        state, revision = spell.state, None
        if if_absent:
            revision = await state.set_if_absent(scope, key, given, **options)
        elif expected is not None:
            revision = await state.compare_and_set(scope, key, given, expected=wanted, **options)
        else:
            revision = await state.set(scope, key, given, **options)
    done = revision is not None
    if settings.as_json:
        document = {"scope": scope, "key": key, "set": done}
        settings.output.document(document | {"revision": str(revision) if done else None})
    elif done:
        settings.output.say(str(revision))
    elif not settings.quiet:
        _complain("EXISTS", f"{key!r} in {scope} has a value already")
    return Exit.OK if done else Exit.NO


# --- del, history ---------------------------------------------------------------------------------


async def delete(
    settings: Settings,
    scope: ScopeArgument,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="One to 1,000 keys.")],
) -> Exit:
    """Remove keys, as one commit; exit code 1 if none of them was there."""
    async with settings.connect() as spell:
        count = await spell.state.delete_many(scope, keys)
    if settings.as_json:
        settings.output.document({"scope": scope, "keys": _listed(keys), "deleted": count})
    else:
        settings.output.say(f"{count} deleted")
    return Exit.OK if count else Exit.NO


def _listed(keys: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(keys))


async def history(
    settings: Settings,
    scope: ScopeArgument,
    key: KeyArgument,
    *,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="Most changes to show.")] = 100,
    show_sensitive: ShowSensitive = False,
) -> Exit:
    """Print who changed a key, and when, newest first; exit code 1 if nothing is known."""
    async with settings.connect() as spell:
        changes = await spell.state.history(scope, key, limit=limit)
    output = settings.output
    documents = [change_document(change, show_sensitive=show_sensitive) for change in changes]
    if settings.as_json:
        output.document({"scope": scope, "key": key, "changes": documents})
    else:
        output.table(CHANGE_COLUMNS, (change_row(document, output) for document in documents))
    return Exit.OK if changes else Exit.NO
