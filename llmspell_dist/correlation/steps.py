"""Reading and writing correlations, as steps: bounded pages, the same for both surfaces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, unquote

from llmspell_dist.context import check_text, current_context
from llmspell_dist.correlated import KIND_LINK, EventLink, pack_link
from llmspell_dist.correlation.building import build_timeline
from llmspell_dist.correlation.entries import Collected
from llmspell_dist.correlation.query import (
    CorrelationQuery,
    QueryMatch,
    match_timeline,
    sorted_matches,
)
from llmspell_dist.correlation.timeline import Timeline
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import from_ms, to_ms
from llmspell_dist.state.correlated import SHARD, note_call, trim_correlations

if TYPE_CHECKING:
    from datetime import datetime

    from llmspell_dist.correlation.model import TimelineConfig
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["CorrelationSteps", "KnownCorrelation"]

STREAM_PAGE: Final = 1000
CHANGES_PAGE: Final = 500
IDS_PAGE: Final = 500
MAX_KNOWN: Final = 10_000


class KnownCorrelation(NamedTuple):
    """A correlation that something is kept of."""

    correlation_id: str
    active: datetime
    """When something was last added to it, by the server's clock."""


class CorrelationSteps:
    """The operations on correlations."""

    def __init__(self, core: Core) -> None:
        self.core = core

    # --- writing

    def link(self, link: EventLink, correlation_id: str | None) -> Steps[EventLink]:
        """Store a link."""
        packed = pack_link(link)
        where = self.correlation_of(correlation_id)
        yield note_call(self.core, where, [(KIND_LINK, packed)])
        return link

    def correlation_of(self, correlation_id: str | None) -> str:
        """Return the correlation that is meant: that one, else the one in force."""
        if correlation_id is None:
            correlation_id = current_context().correlation_id
        if correlation_id is None:
            rule = "must be given where no correlation is in force"
            raise InvalidArgumentError("correlation_id", None, rule)
        return check_text("correlation_id", correlation_id)

    def forget(self, correlation_id: str) -> Steps[bool]:
        """Remove what is kept of a correlation; whether there was anything."""
        check_text("correlation_id", correlation_id)
        keyspace, gone = self.core.keyspace, 0
        for shard in self.core.shards():
            stream = keyspace.correlation(shard, correlation_id)
            log = keyspace.correlation_log(shard, correlation_id)
            name = stream.rpartition(b":")[2]
            gone += yield Command(pack(b"UNLINK", stream, log), "UNLINK")
            yield Command(pack(b"ZREM", keyspace.correlations(shard), name), "ZREM")
        return gone > 0

    def trim(self) -> Steps[int]:
        """Forget the correlations beyond what is kept now."""
        total = 0
        for shard in self.core.shards():
            more = True
            while more:
                gone, more = yield from trim_correlations(self.core, shard)
                total += gone
        return total

    # --- one correlation

    def timeline(self, correlation_id: str, config: TimelineConfig) -> Steps[Timeline]:
        """Read all that is kept of a correlation, page by page; the first pages together."""
        check_text("correlation_id", correlation_id)
        most = config.max_entries
        collected = Collected(self.core.values.codec)
        shards = self.core.shards()
        first = yield [
            self._stream_page(correlation_id, b"-"),
            *[self._changes_page(shard, correlation_id, 0) for shard in shards],
        ]
        more = yield from self._stream(correlation_id, collected, most, first[0])
        for shard, flat in zip(shards, first[1:], strict=True):
            rest = yield from self._changes(shard, correlation_id, collected, most, flat)
            more = more or rest
        return build_timeline(
            correlation_id,
            collected.entries,
            collected.links,
            config,
            truncated=more,
            unreadable=collected.unreadable,
        )

    def _stream_page(self, correlation_id: str, start: bytes) -> Command:
        key = self.core.keyspace.correlation(SHARD, correlation_id)
        request = pack(b"XRANGE", key, start, b"+", b"COUNT", STREAM_PAGE)
        return Command(request, "XRANGE", bulk=True)

    def _stream(
        self, correlation_id: str, collected: Collected, most: int, page: list[Any]
    ) -> Steps[bool]:
        """Read the stream on from its first page; whether there are more than `most` entries."""
        while True:
            collected.add_page(page)
            if len(page) < STREAM_PAGE:
                return False
            if len(collected.entries) > most:
                return True
            page = yield self._stream_page(correlation_id, b"(" + page[-1][0])

    def _changes_page(self, shard: str, correlation_id: str, skip: int) -> ScriptCall:
        keyspace = self.core.keyspace
        keys = (keyspace.correlation_log(shard, correlation_id), keyspace.log(shard))
        arguments = (b"%d" % skip, b"%d" % CHANGES_PAGE)
        return ScriptCall(load_script("correlation_changes"), keys, arguments, bulk=True)

    def _changes(
        self, shard: str, correlation_id: str, collected: Collected, most: int, flat: list[Any]
    ) -> Steps[bool]:
        """Read the commits of a shard on; whether there are more than `most`."""
        skip = 0
        while read := collected.add_changes(flat):
            skip += read
            if skip > most:
                return True
            flat = yield self._changes_page(shard, correlation_id, skip)
        return False

    # --- many of them

    def known(self, since: datetime | None, limit: int) -> Steps[list[KnownCorrelation]]:
        """Return the correlations that were active last, the last one first."""
        if type(limit) is not int or not 1 <= limit <= MAX_KNOWN:
            raise InvalidArgumentError("limit", limit, f"must be an int from 1 to {MAX_KNOWN:,}")
        least = b"-inf" if since is None else b"%d" % to_ms(since)
        shards = self.core.shards()
        first = yield [self._known_page(shard, least, 0, limit) for shard in shards]
        found: dict[str, int] = {}
        for shard, reply in zip(shards, first, strict=True):
            at, page = 0, reply
            while True:
                pairs = list(_scored(page))
                for name, ms in pairs:
                    found[name] = max(ms, found.get(name, 0))
                at += len(pairs)
                if len(pairs) < IDS_PAGE or at >= limit:
                    break
                page = yield self._known_page(shard, least, at, limit)
        # Those of one millisecond as the server has them, wherever a page ends.
        newest = sorted(((ms, quote(name, safe="")) for name, ms in found.items()), reverse=True)
        return [KnownCorrelation(unquote(name), from_ms(ms)) for ms, name in newest[:limit]]

    def _known_page(self, shard: str, least: bytes, at: int, limit: int) -> Command:
        request = pack(
            *(b"ZREVRANGEBYSCORE", self.core.keyspace.correlations(shard), b"+inf", least),
            *(b"WITHSCORES", b"LIMIT", at, min(IDS_PAGE, limit - at)),
        )
        return Command(request, "ZREVRANGEBYSCORE", bulk=True)

    def query(self, query: CorrelationQuery, config: TimelineConfig) -> Steps[list[QueryMatch]]:
        """Look at one correlation after the other and keep the best matches."""
        if query.correlation_ids:
            ids = list(query.correlation_ids)
        else:
            known = yield from self.known(query.since, query.max_correlations)
            ids = [one.correlation_id for one in known]
        best: list[QueryMatch] = []
        for correlation_id in ids:
            timeline = yield from self.timeline(correlation_id, config)
            best += match_timeline(query, timeline)
            if len(best) > query.limit:  # what is kept stays bounded, however many are looked at
                best = sorted_matches(best, query.sort)[: query.limit]
        return sorted_matches(best, query.sort)


def _scored(reply: list[Any]) -> Iterator[tuple[str, int]]:
    """Read members with scores: pairs in RESP3, flat in RESP2."""
    if reply and isinstance(reply[0], list):
        pairs = [(member, score) for member, score in reply]
    else:
        pairs = list(zip(reply[::2], reply[1::2], strict=True))
    for member, score in pairs:
        yield unquote(member.decode()), int(float(score))
