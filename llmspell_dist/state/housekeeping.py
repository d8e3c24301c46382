"""What some process of the fleet does every second: remove what expired, shorten the log.

Both are one bounded script call each. Every client asks; the server lets one of them in an interval
do the work, so a fleet of a thousand costs no more than one.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.retention import Retention

if TYPE_CHECKING:
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["INTERVAL_S", "housekeep", "retention_of", "sweep", "trim"]

logger = logging.getLogger("llmspell_dist.state")
logger.addHandler(logging.NullHandler())

INTERVAL_S: Final = 1.0
SWEEP_KEYS: Final = 200
TRIM_ENTRIES: Final = 20_000
_ALARMS: Final = (0.8, 0.5)


def sweep(core: Core, shard: str, *, interval_ms: int = 0) -> Steps[tuple[bool, int, bool]]:
    """Remove expired keys of a shard; whether it was its turn, how many went, if more wait."""
    keyspace = core.keyspace
    log = keyspace.log(shard)
    keys = (
        *(log, keyspace.due(shard), keyspace.ctl(shard), keyspace.trash(shard)),
        *(keyspace.leases(shard), keyspace.waits(shard)),
    )
    arguments = (b"%d" % interval_ms, b"%d" % SWEEP_KEYS, log[: -len(b":log")])
    worked, removed, more = yield ScriptCall(load_script("sweep"), keys, arguments, bulk=True)
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


def housekeep(core: Core) -> Steps[bool]:
    """Do what is due in every shard; whether more is waiting."""
    waiting = False
    for shard in core.shards():
        worked, _, more = yield from sweep(core, shard, interval_ms=int(INTERVAL_S * 1000))
        if worked:
            waiting = waiting or more
            yield from trim(core, shard)
    return waiting
