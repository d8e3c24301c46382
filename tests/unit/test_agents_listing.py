"""Pages of agents over a table of scopes that changes between them: nothing is left out."""

from __future__ import annotations

from typing import Any

import pytest

from llmspell_dist.agents.listing import AgentFilter, Listing
from llmspell_dist.classes import ClassRules
from llmspell_dist.clock import ServerClock
from llmspell_dist.codec import Codec
from llmspell_dist.keys import KeySpace
from llmspell_dist.redis.commands import ScriptCall
from llmspell_dist.state.core import Core
from llmspell_dist.state.reads import Reads
from llmspell_dist.state.values import Values

pytestmark = [pytest.mark.unit, pytest.mark.agent]

PROCESS = b"abc123"
"""The server process that answers."""


class Table:
    """A sorted set as the server walks it: bucket by bucket, until it has as many as it should."""

    def __init__(self, *buckets: str) -> None:
        self.buckets = [list(bucket) for bucket in buckets]

    def scan(self, start: int, count: int) -> list[Any]:
        found: list[str] = []
        while start < len(self.buckets) and len(found) < count:
            found += self.buckets[start]
            start += 1
        end = 0 if start == len(self.buckets) else start
        return [b"%d" % end, PROCESS, *[f"agent:{name}".encode() for name in found]]


class Pages:
    """The pages of a table, one after the other."""

    def __init__(self, table: Table) -> None:
        core = Core(KeySpace("test"), Values(Codec()), ClassRules().resolver(), ServerClock())
        self.listing = Listing(core, Reads(core))
        self.table = table
        self.cursor: str | None = None

    def next(self, limit: int) -> str:
        """Return the agents that the next page looked at."""
        steps = self.listing.page(AgentFilter(), self.cursor, limit)
        request: Any = next(steps)
        assert isinstance(request, ScriptCall)
        assert (request.name, request.keys) == ("scan_set", (b"test:{0}:due",))
        start, process, _, count = request.args
        assert start == b"0" or process == PROCESS
        looks: Any = steps.send(self.table.scan(int(start), int(count)))
        try:
            steps.send([[b"0", None, *[None] * 8] for _ in looks])  # no agent is there any more
        except StopIteration as done:
            self.cursor = done.value.cursor
        return "".join(look.keys[0].decode().rpartition(":")[2] for look in looks)

    def rest(self, limit: int) -> list[str]:
        """Return the pages to the last one."""
        pages = [self.next(limit)]
        while self.cursor is not None:
            pages.append(self.next(limit))
        return pages


@pytest.mark.parametrize("limit", [1, 2, 3, 9])
def test_a_table_at_rest_is_given_once(limit: int) -> None:
    """In pages of at most the limit, also where the server gives more at once."""
    pages = Pages(Table("bm", "", "az", "cdefg")).rest(limit)
    assert all(len(page) <= limit for page in pages)
    assert sorted("".join(pages)) == list("abcdefgmz")


def test_a_stretch_that_reaches_further_than_before_is_given_anew() -> None:
    """Its first part is gone, so the server goes on to what was never given."""
    table = Table("bm", "az", "c")
    pages = Pages(table)
    assert pages.next(1) == "b"
    table.buckets[0].clear()
    assert "".join(pages.rest(1)) == "azc"


def test_a_stretch_that_ends_before_is_followed_by_the_rest() -> None:
    """Others came in at its front."""
    table = Table("b", "az", "c")
    pages = Pages(table)
    assert pages.next(2) == "ab"
    table.buckets[0] += "qr"
    assert set("".join(pages.rest(2))) >= set("zc")


def test_who_leaves_takes_nobody_along() -> None:
    """The place in a stretch is a name, no number: what stands behind it does not move up."""
    table = Table("abcdef")
    pages = Pages(table)
    assert pages.next(2) == "ab"
    table.buckets[0].remove("a")
    assert pages.next(2) == "cd"
    table.buckets[0].insert(0, "A")
    assert pages.rest(2) == ["ef"]


def test_a_page_may_have_another_limit_than_the_one_before() -> None:
    """The stretch stays the one that the cursor names."""
    pages = Pages(Table("abcdef", "gh"))
    assert [pages.next(2), pages.next(3), *pages.rest(1)] == ["ab", "cde", "f", "g", "h"]
