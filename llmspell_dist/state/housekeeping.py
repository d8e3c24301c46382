"""What some process of the fleet does every second: remove what expired, shorten the log.

Both are one bounded script call each; services add chores of their own (`Core.chores`). Every
client asks; the server lets one of them in an interval do the work, so a fleet of a thousand costs
no more than one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import SpellError
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.retention import Retention
from llmspell_dist.revision import Revision
from llmspell_dist.state.correlated import trim_correlations
from llmspell_dist.state.interception import NOTHING_SEEN, Interceptor

if TYPE_CHECKING:
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["INTERVAL_S", "complain", "housekeep", "retention_of", "sweep", "trim"]

logger = logging.getLogger("llmspell_dist.state")
logger.addHandler(logging.NullHandler())

INTERVAL_S: Final = 1.0
SWEEP_KEYS: Final = 200
TRIM_ENTRIES: Final = 20_000
_ALARMS: Final = (0.8, 0.5)


def sweep(
    core: Core, shard: str, *, interval_ms: int = 0, seen: Interceptor = NOTHING_SEEN
) -> Steps[tuple[bool, int, bool]]:
    """Remove expired keys of a shard; whether it was its turn, how many went, if more wait."""
    keyspace = core.keyspace
    log = keyspace.log(shard)
    keys = (
        *(log, keyspace.due(shard), keyspace.ctl(shard), keyspace.trash(shard)),
        *(keyspace.leases(shard), keyspace.waits(shard)),
    )
    asks = b"1" if seen.expiring else b"0"
    arguments = (b"%d" % interval_ms, b"%d" % SWEEP_KEYS, log[: -len(b":log")], asks)
    worked, removed, more, gone = yield ScriptCall(load_script("sweep"), keys, arguments, bulk=True)
    for scope, revision, names in gone:
        fields = [name.decode() for name in names]
        yield from seen.expired(core, scope.decode(), fields, Revision.parse(revision))
    return bool(worked), int(removed), bool(more)


def retention_of(core: Core) -> Steps[Retention]:
    """Return what the namespace keeps of its log; every client asks, so that all do the same."""
    request = pack(b"HGET", core.keyspace.ctl("0"), b"retention")
    return Retention.parse((yield Command(request, "HGET")))


def trim(core: Core, shard: str) -> Steps[int]:
    """Shorten a shard's log to its retention, in bounded calls; how many entries went."""
    retention = yield from retention_of(core)
    total = 0
    while True:
        removed, more = yield from _trim_some(core, shard, retention)
        total += removed
        if not more:
            return total


def _trim_some(core: Core, shard: str, retention: Retention) -> Steps[tuple[int, bool]]:
    keyspace = core.keyspace
    age_ms = retention.max_age_ms
    arguments = (
        b"%d" % retention.max_entries,
        b"%d" % (2**47 if age_ms is None else age_ms),
        b"%d" % retention.cap_entries,
        b"%d" % TRIM_ENTRIES,
    )
    keys = (keyspace.log(shard), keyspace.ctl(shard))
    call = ScriptCall(load_script("trim"), keys, arguments, bulk=True)
    removed, left, broken, slowest, more = yield call
    if broken is not None:
        logger.warning(
            "the log reached its cap of %d entries: hold %s broke, what it held is gone",
            retention.cap_entries,
            broken.decode("utf-8", "replace"),
        )
    elif slowest is not None:
        for share in _ALARMS:
            if left > share * retention.cap_entries:
                logger.warning(
                    "hold %s keeps %d entries in the log, %d %% of its cap",
                    slowest.decode("utf-8", "replace"),
                    left,
                    100 * left // retention.cap_entries,
                )
                break
    return int(removed), bool(more)


def complain(core: Core, what: str, error: BaseException) -> None:
    """Log what went wrong in housekeeping: what the server refused quietly, a fault once."""
    if isinstance(error, SpellError):
        logger.debug("%s failed, another process may do it: %s", what, error)
        return
    said = f"{what}: {type(error).__name__}"
    if said not in core.complained:
        core.complained.add(said)
        logger.error("%s failed, and is tried again; this is logged once", what, exc_info=error)


def _guarded(core: Core, chore: Callable[[], Steps[Any]]) -> Steps[None]:
    """Do a service's chore; if it fails, that is no reason not to do the others."""
    try:
        yield from chore()
    except Exception as error:  # noqa: BLE001 - of whatever a service does
        complain(core, f"the chore {getattr(chore, '__qualname__', chore)}", error)


def housekeep(core: Core, seen: Interceptor = NOTHING_SEEN) -> Steps[bool]:
    """Do what is due in every shard; whether more is waiting."""
    waiting = False
    for shard in core.shards():
        worked, _, more = yield from sweep(
            core, shard, interval_ms=int(INTERVAL_S * 1000), seen=seen
        )
        if worked:
            waiting = waiting or more
            yield from trim(core, shard)
            if shard == "0":
                for chore in core.chores:
                    yield from _guarded(core, chore)
            _, more = yield from trim_correlations(core, shard)
            waiting = waiting or more
    return waiting
