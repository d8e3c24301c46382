"""Server-sent events: slow clients, clients that are gone, limits, signs of life, the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fix_sidecar import Sidecar, StartSidecar
from fix_streams import listening, raw, until

from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.errors import UnauthenticatedError
from llmspell_dist.sidecar.auth.grants import ALL, Grant, Principal, Verb
from llmspell_dist.sidecar.settings import Limits
from llmspell_dist.sidecar.streams import Streams, raw_block

WATCH = "/v1/watch/agent:alice"
SCOPE = "agent:alice"


def streams_of(sidecar: Sidecar) -> Streams:
    """Return the streams that it holds."""
    return sidecar.services.one(Streams)


async def test_a_quiet_stream_gets_a_sign_of_life_and_a_busy_one_none(sidecar: Sidecar) -> None:
    """One comment a tick, unless something was sent since the tick before."""
    streams = streams_of(sidecar)
    async with listening(sidecar, WATCH) as events:
        await streams.tick()
        await streams.tick()
        await events.beat()
        await sidecar.services.spell.state.set(SCOPE, "a", 1)
        await events.next()
        await streams.tick()
        await streams.tick()
        await events.beat()
        assert events.comments == 2


async def test_a_client_that_goes_away_leaves_nothing_behind(sidecar: Sidecar) -> None:
    """Its place, its tasks and its subscription."""
    streams = streams_of(sidecar)
    async with listening(sidecar, WATCH):
        assert len(streams) == 1
        inside = len(asyncio.all_tasks())
    await until(lambda: len(streams) == 0)
    await until(lambda: len(sidecar.services.spell._feeds) == 0)
    assert len(asyncio.all_tasks()) < inside


async def test_a_client_that_takes_nothing_is_let_go_and_holds_up_nobody(sidecar: Sidecar) -> None:
    """Its stream ends after two ticks; others hear everything meanwhile."""
    state, streams = sidecar.services.spell.state, streams_of(sidecar)
    big = "x" * 500_000
    async with raw(sidecar, WATCH) as (_, writer), listening(sidecar, WATCH) as quick:
        await until(lambda: len(streams) == 2)
        writer.transport.pause_reading()
        for number in range(30):
            await state.set(SCOPE, "big", f"{number}{big}")
            assert (await quick.next()).data["value"].startswith(str(number))
        await until(lambda: any(place.busy for place in streams._places))
        await streams.tick()
        await streams.tick()
        await until(lambda: len(streams) == 1)
        await state.set(SCOPE, "end", 1)
        assert (await quick.next()).data["key"] == "end"


async def test_a_slow_client_misses_nothing(sidecar: Sidecar) -> None:
    """What it does not take stays in a bounded buffer, and then in the log."""
    state = sidecar.services.spell.state
    async with listening(sidecar, WATCH) as slow:
        for number in range(0, 3000, 100):
            await state.set_many(SCOPE, {f"k{n}": "y" * 500 for n in range(number, number + 100)})
        keys = [one.data["key"] for one in await slow.take(3000)]
    assert sorted(keys) == sorted(f"k{n}" for n in range(3000))


async def test_there_are_so_many_streams_of_one_client_and_in_all(
    start_sidecar: StartSidecar,
) -> None:
    """One more is refused with 429 and a hint when to come back; a place that is left is free."""
    sidecar = await start_sidecar(limits=Limits(streams=2, client_streams=2))
    async with listening(sidecar, WATCH):
        async with listening(sidecar, WATCH):
            answer = await sidecar.ask("GET", WATCH)
            assert (answer.status_code, answer.json()["code"]) == (429, "TOO_MANY_REQUESTS")
            assert answer.headers["retry-after"] == "1"
        await until(lambda: len(streams_of(sidecar)) == 1)
        async with listening(sidecar, WATCH):
            pass


async def test_a_drain_ends_streams_with_a_word_and_takes_no_new_ones(sidecar: Sidecar) -> None:
    """`event: end`: the client may come back at once, to another sidecar."""
    async with listening(sidecar, WATCH) as events:
        sidecar.services.drain()
        said = await events.ended()
        assert [(one.event, one.data) for one in said] == [("end", {"reason": "draining"})]
    answer = await sidecar.ask("GET", WATCH)
    assert (answer.status_code, answer.json()["code"]) == (503, "DRAINING")


async def test_a_stream_ends_once_its_caller_may_no_longer_listen(
    start_sidecar: StartSidecar,
) -> None:
    """With the problem that it would get now: a token that was revoked, a right that was taken."""
    access = _Changing()
    sidecar = await start_sidecar(access)
    for now, code in ((None, "UNAUTHENTICATED"), (_only("agent:bob"), "FORBIDDEN")):
        access.principal = ALL
        async with listening(sidecar, WATCH) as events:
            access.principal = now
            await streams_of(sidecar).tick()
            said = await events.ended()
            assert [(one.event, one.data["code"]) for one in said] == [("problem", code)]


class _Changing:
    principal: Principal | None = ALL
    check_bind = Access.open_on_loopback().check_bind

    def cached(self, *_: Any) -> Principal | None:
        return self.principal

    async def authenticate(self, *_: Any) -> Principal:
        raise UnauthenticatedError("revoked")


def _only(pattern: str) -> Principal:
    return Principal("some", "token", [Grant(pattern, frozenset({Verb.READ}))])


async def test_a_head_request_gets_the_head_alone(sidecar: Sidecar) -> None:
    """And holds no place."""
    answer = await sidecar.ask("HEAD", WATCH)
    assert answer.headers["content-type"] == "text/event-stream"
    await until(lambda: len(streams_of(sidecar)) == 0)


async def test_streams_are_counted_by_the_observer(start_sidecar: StartSidecar) -> None:
    """Up when one begins, down when it ends."""
    sidecar = await start_sidecar()
    counted: list[int] = []

    class Counting:
        def streams(self, change: int) -> None:
            counted.append(change)

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    sidecar.services.observer = Counting()
    async with listening(sidecar, WATCH):
        assert counted == [1]
    await until(lambda: counted == [1, -1])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, b"data: 1\n\n"),
        ({"event": "end"}, b"event: end\ndata: 1\n\n"),
        ({"event": "x", "event_id": "1-2"}, b"id: 1-2\nevent: x\ndata: 1\n\n"),
    ],
)
def test_a_block_is_as_the_standard_has_it(given: dict[str, str], text: bytes) -> None:
    """Fields on lines of their own, an empty line at the end."""
    assert raw_block(b"1", **given) == text
