"""Scopes that were laid down take the place of the live ones, each in one step of the server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgpack

from llmspell_dist.backup.errors import RestoreRefusedError
from llmspell_dist.backup.restoring.checking import check
from llmspell_dist.changes import Op
from llmspell_dist.errors import LeaseNotHeldError
from llmspell_dist.leases.looking import LeaseViews
from llmspell_dist.leases.steps import LeaseSteps
from llmspell_dist.leases.wire import read_holder
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.commits import ScopeKey, change
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope, decode_part
from llmspell_dist.state.core import field_of
from llmspell_dist.state.scopes import WITH_RECORDS, Stretch, split_cursor
from llmspell_dist.state.server_time import server_ms

if TYPE_CHECKING:
    from llmspell_dist.backup.restoring.batches import Place
    from llmspell_dist.backup.restoring.staging import Staging
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = [
    "Leased",
    "Swap",
    "Swapped",
    "abandon",
    "check",
    "heard_of",
    "leftovers",
    "refuse_leased",
    "staged_page",
    "survey",
    "swap",
    "take_key",
]

SWAP_SCOPES: Final = 50
CLEAN_SCOPES: Final = 100
QUIET_MS: Final = 60_000
"""After so long without a word a restore is dead: one that works is heard of all the time."""
_PAGE: Final = 1000


class Swap(NamedTuple):
    """A scope to be put in place."""

    scope: Scope
    source: bytes | None
    """The printed name that it had in the backup; None: it was not there, so it is emptied."""
    expected: Revision | None = None
    """The revision that the live scope must have; None: any."""


class Swapped(NamedTuple):
    """A scope that is as it was."""

    scope: Scope
    revision: Revision
    """Of the entry that says so in the log."""
    keys: int


class Leased(NamedTuple):
    """The leases of a shard that were known at a moment, by their scopes' hashes."""

    since_ms: int
    by_scope: dict[bytes, list[bytes]]


def survey(core: Core, shard: str) -> Steps[Leased]:
    """Find which leases there are; those registered later are found by the swap itself."""
    since_ms = yield from server_ms()
    registry = core.keyspace.leases(shard)
    by_scope: dict[bytes, list[bytes]] = {}
    cursor: str | None = None
    while True:
        start, process = split_cursor(cursor, _PAGE)
        arguments = (start, process, b"", b"%d" % _PAGE)
        reply = yield ScriptCall(load_script("scan_set"), (registry,), arguments, bulk=True)
        keys, cursor, _ = Stretch.read(reply, start, process)
        for key in keys:
            known = by_scope.setdefault(key.rpartition(b":lease:")[0], [])
            if key not in known:
                known.append(key)
        if cursor is None:
            return Leased(since_ms, by_scope)


def staged_page(
    staging: Staging, shard: str, cursor: str | None = None
) -> Steps[tuple[list[Swap], str | None]]:
    """Return some of the scopes of a shard that are laid down and not in place, and the cursor.

    A scope may come twice; the cursor None: that was all.
    """
    start, process = split_cursor(cursor, _PAGE)
    registry = staging.core.keyspace.restore(shard, staging.id)
    arguments = (start, b"", b"%d" % _PAGE, WITH_RECORDS, process)
    reply = yield ScriptCall(load_script("scan"), (registry,), arguments, bulk=True)
    page = Stretch.read(reply, start, process)
    found: list[Swap] = []
    for name, about in zip(page.found[::2], page.found[1::2], strict=True):
        if len(name) > 1 and not about.startswith(b"="):
            text, source, _ = about.split(b"\n")
            found.append(Swap(Scope.parse(text.decode()), source))
    return found, page.cursor


def swap(
    staging: Staging,
    scopes: Iterable[Swap],
    *,
    force: bool = False,
    leased: dict[str, Leased] | None = None,
) -> Steps[list[Swapped]]:
    """Put scopes in place, some in each step of the server, none of them ever half.

    A lease that is held on a scope refuses (`RestoreRefusedError`); with `force` its fence is
    raised, so that its holder writes no more, and it is broken. `leased` is what `survey` found, by
    shard; without it, it is looked for here.
    """
    by_shard: dict[str, list[Swap]] = {}
    for one in scopes:
        by_shard.setdefault(staging.core.keyspace.shard(one.scope), []).append(one)
    known = {} if leased is None else leased
    for shard in by_shard:
        if shard not in known:
            known[shard] = yield from survey(staging.core, shard)
    if not force:
        yield from refuse_leased(
            staging.core, [one for of in by_shard.values() for one in of], known
        )
    done: list[Swapped] = []
    for shard, wanted in by_shard.items():
        for at in range(0, len(wanted), SWAP_SCOPES):
            part = wanted[at : at + SWAP_SCOPES]
            done += yield from _swap_some(staging, shard, part, known[shard], force=force)
    return done


def refuse_leased(core: Core, scopes: Iterable[Swap], leased: Mapping[str, Leased]) -> Steps[None]:
    """Raise `RestoreRefusedError` if a lease of a scope is held, before anything is changed.

    Who takes one later is found by the swap of that scope.
    """
    keyspace = core.keyspace
    for one in scopes:
        known = leased[keyspace.shard(one.scope)]
        for lease in known.by_scope.get(keyspace.scope(one.scope), ()):
            holder, readers = yield [
                Command(pack(b"HGET", lease, b"x"), "HGET", bulk=True),
                Command(pack(b"HVALS", lease + b":s"), "HVALS", bulk=True),
            ]
            for raw in [holder, *readers]:
                if raw and int.from_bytes(raw[8:14], "big") > known.since_ms:
                    raise _is_leased(one.scope.text, lease, raw)


def _is_leased(scope: str, lease: bytes, raw: bytes) -> RestoreRefusedError:
    holder = read_holder(raw)
    name = decode_part(lease.rpartition(b":")[2].decode(), "name")
    reason = f"the lease {name!r} is held by {holder.owner} until {holder.expires.isoformat()}"
    return RestoreRefusedError(scope, reason)


def _swap_some(
    staging: Staging, shard: str, scopes: Sequence[Swap], leased: Leased, *, force: bool
) -> Steps[list[Swapped]]:
    core, keyspace = staging.core, staging.core.keyspace
    common = yield from staging.shard(shard)
    said = {"i": staging.id, "r": common.rewriting.revision, "b": staging.backup, "n": 0}
    packed = msgpack.packb(said)[:-1]
    keys: list[bytes] = []
    args: list[bytes] = []
    for one in scopes:
        place = staging.place_of(one.scope, one.source or b"")
        leases = leased.by_scope.get(keyspace.scope(one.scope), [])
        keys.append(keyspace.scope(one.scope))
        args += (
            one.scope.text.encode(),
            place.name,
            b"" if one.source is None else place.about,
            b"" if one.expected is None else one.expected.packed,
            b"%d" % len(leases),
            *leases,
        )
    reply = yield ScriptCall(
        load_script("restore_swap"),
        (
            *(keyspace.log(shard), keyspace.due(shard), keyspace.trash(shard)),
            *(keyspace.leases(shard), *common.keys, *keys),
        ),
        (
            *common.head,
            packed,
            core.meta([core.scope_key(one.scope) for one in scopes]),
            b"1" if force else b"0",
            b"%d" % leased.since_ms,
            *args,
        ),
        bulk=True,
    )
    _raise_if_refused(staging, reply)
    _, entry, counts, held = reply
    if held:
        yield from _break(staging, held)
    revision = Revision.parse(entry)
    return [Swapped(one.scope, revision, count) for one, count in zip(scopes, counts, strict=True)]


def _raise_if_refused(staging: Staging, reply: list[bytes]) -> None:
    code = reply[0]
    if code == b"LEASED":
        raise _is_leased(reply[1].decode(), reply[2], reply[3])
    if code == b"MOVED":
        reason = f"it was changed meanwhile: its revision is {Revision.unpack(reply[2])}"
        raise RestoreRefusedError(reply[1].decode(), reason)
    if code == b"UNFIT":
        reason = "it is not as it was laid down, begin anew"
        raise RestoreRefusedError(reply[1].decode(), reason)
    if code != b"OK":
        raise staging.refusal(code)


def _break(staging: Staging, leases: Sequence[bytes]) -> Steps[None]:
    """Take leases from their holders, who write no more since the swap; the log says so."""
    core = staging.core
    views = LeaseViews(LeaseSteps(core))
    for key in leases:
        parsed = core.keyspace.parse(key)
        assert parsed.scope is not None and parsed.extra is not None  # noqa: S101, PT018
        with contextlib.suppress(LeaseNotHeldError):  # it ended meanwhile
            reason = f"the scope was restored (restore {staging.id})"
            yield from views.break_lease(parsed.scope, parsed.extra, reason, None)


def take_key(staging: Staging, source: bytes, scope: Scope, key: str) -> Steps[Revision | None]:
    """Put one key back in an ordinary commit, out of a scope that was laid down aside.

    A key that was not there then is deleted. Returns the commit's revision, None if it is as it was
    because it neither was there nor is.
    """
    core = staging.core
    place: Place = staging.place_of(scope, source)
    target = core.scope_key(scope)
    field = field_of(target, key)
    prefix = core.keyspace.prefix(place.shard)[:-1]
    laid = ScopeKey(place.key, place.name, prefix, scope)
    copying = change(Op.COPY, field, b"\0\1\0" + core.new_generation())
    done = yield from core.carry_out(core.commit((target, laid), (copying,)))
    if done.results == [b"0"]:
        done = yield from core.carry_out(core.commit((target,), (change(Op.DELETE, field, b""),)))
    return done.revision


# --- tidying up


def abandon(staging: Staging) -> Steps[None]:
    """Forget the restore: what was not put in place goes, what was stays."""
    for shard in list(staging.shards):
        yield from _clean(staging.core, shard, staging.id.encode(), 0)
        staging.shards.pop(shard, None)


def heard_of(staging: Staging) -> Steps[None]:
    """Tell that a restore goes on, while it has nothing to lay down."""
    core = staging.core
    for shard in list(staging.shards):
        now_ms = yield from server_ms()
        request = pack(b"ZADD", core.keyspace.restores(shard), b"XX", now_ms, staging.id)
        yield Command(request, "ZADD")


def leftovers(core: Core, shard: str, *, quiet_ms: int = QUIET_MS) -> Steps[list[str]]:
    """Remove what restores left that were killed: not heard of for so long; their ids."""
    return (yield from _clean(core, shard, b"", quiet_ms))


def _clean(core: Core, shard: str, restore_id: bytes, quiet_ms: int) -> Steps[list[str]]:
    keyspace = core.keyspace
    prefix = keyspace.prefix(shard)[:-1]
    worked: dict[str, None] = {}
    while True:
        more, *ids = yield ScriptCall(
            load_script("restore_clean"),
            (keyspace.restores(shard), keyspace.trash(shard)),
            (prefix, restore_id, b"%d" % quiet_ms, b"%d" % CLEAN_SCOPES),
            bulk=True,
        )
        worked.update((one.decode(), None) for one in ids)
        if not more:
            return list(worked)
