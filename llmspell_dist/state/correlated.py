"""What belongs to a correlation, as the server keeps it: adding to it, forgetting the oldest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script

if TYPE_CHECKING:
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["SHARD", "note_call", "trim_correlations"]

SHARD: Final = "0"
"""Where events, hook runs, leases and links are kept; commits are with their own shard."""
KEPT: Final = 10_000
"""How many correlations a shard keeps, unless `Options.max_correlations` says otherwise."""
_FORGOTTEN_AT_ONCE: Final = 200


def note_call(
    core: Core,
    correlation_id: str,
    items: Sequence[tuple[bytes, bytes]],
    *,
    behind_commits: bool = False,
    shard: str = SHARD,
) -> ScriptCall:
    """Return what remembers things with a correlation: pairs of kind and versioned bytes.

    `behind_commits`: within a millisecond they stand behind what was committed by then. It may be
    sent twice: who reads a correlation takes each thing once. See `llmspell_dist.correlated` for
    kinds and bytes.
    """
    flat = [part for item in items for part in item]
    keyspace = core.keyspace
    prefix = keyspace.log(shard)[: -len(b"log")]
    key = keyspace.correlation(shard, correlation_id)
    behind = b"1" if behind_commits else b"0"
    return ScriptCall(load_script("correlation_add"), (key,), (prefix, behind, *flat))


def trim_correlations(core: Core, shard: str) -> Steps[tuple[int, bool]]:
    """Forget some of the correlations beyond what a shard keeps; how many went, if more wait."""
    keyspace = core.keyspace
    # Every client asks, so that all do the same.
    stored = yield Command(pack(b"HGET", keyspace.ctl("0"), b"correlations"), "HGET")
    keep = b"%d" % KEPT if stored is None else stored
    prefix = keyspace.log(shard)[: -len(b"log")]
    arguments = (prefix, keep, b"%d" % _FORGOTTEN_AT_ONCE)
    keys = (keyspace.correlations(shard),)
    gone, more = yield ScriptCall(load_script("correlation_trim"), keys, arguments, bulk=True)
    return int(gone), bool(more)
