"""Watching a scope over HTTP: nothing left out, nothing twice, wherever a stream was cut."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fix_sidecar import Sidecar, StartSidecar
from fix_state import Raw, Store
from fix_streams import listening

from llmspell_dist import connect
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks import Replace
from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.routes.watch import parse_place, place_within
from llmspell_dist.sidecar.streams import Streams
from llmspell_dist.state.model import Change

WATCH = "/v1/watch/agent:alice"
SCOPE = "agent:alice"


def told(events: list[Any]) -> list[tuple[str, str, Any]]:
    """Return op, key and value of each."""
    return [(one.data["op"], one.data["key"], one.data["value"]) for one in events]


async def test_a_change_comes_as_the_history_has_it_with_its_revision_as_id(
    sidecar: Sidecar,
) -> None:
    """Type, document and id; a value beyond JSON is tagged."""
    async with listening(sidecar, WATCH) as events:
        revision = await sidecar.services.spell.state.set(SCOPE, "blob", b"hi")
        said = await events.next()
    assert (said.event, said.last_id) == ("message", str(revision))
    assert told([said]) == [("set", "blob", {"$bytes": "aGk="})]
    history = await sidecar.ask("GET", "/v1/state/agent:alice/blob/history")
    assert said.data in history.json()["changes"]


async def test_a_stream_that_was_cut_before_any_change_misses_nothing(sidecar: Sidecar) -> None:
    """The first block says where the watch begins, so that coming back is possible at once."""
    async with listening(sidecar, WATCH) as events:
        begun = events.last_id
    await sidecar.services.spell.state.set(SCOPE, "a", 1)
    async with listening(sidecar, WATCH, last_id=begun) as events:
        assert told([await events.next()]) == [("set", "a", 1)]


@pytest.mark.parametrize("cut", range(6))
async def test_resuming_after_any_event_skips_nothing_and_repeats_nothing(
    sidecar: Sidecar, cut: int
) -> None:
    """Also in the middle of a commit of several changes, which have one revision."""
    state = sidecar.services.spell.state
    async with listening(sidecar, WATCH) as events:
        await state.set(SCOPE, "one", 0)
        await state.set_many(SCOPE, {"a": 1, "b/ü": 2, "c": 3})
        await state.delete(SCOPE, "a")
        await state.set(SCOPE, "last", 9)
        whole = await events.take(6)
        ids = [one.last_id for one in whole]
    assert len({one.data["revision"] for one in whole}) == 4
    async with listening(sidecar, WATCH, last_id=ids[cut]) as events:
        await state.set(SCOPE, "end", 1)
        rest = await events.take(6 - cut)
    assert told(rest) == [*told(whole[cut + 1 :]), ("set", "end", 1)]
    assert [one.last_id for one in rest[:-1]] == ids[cut + 1 :]


async def test_since_goes_back_and_last_event_id_goes_before_it(sidecar: Sidecar) -> None:
    """`since=0-0` is from the beginning; what the browser sends itself is newer."""
    state = sidecar.services.spell.state
    first = await state.set(SCOPE, "a", 1)
    await state.set(SCOPE, "a", 2)
    async with listening(sidecar, WATCH, since="0-0") as events:
        assert told(await events.take(2)) == [("set", "a", 1), ("set", "a", 2)]
    async with listening(sidecar, WATCH, since="0-0", last_id=str(first)) as events:
        assert told([await events.next()]) == [("set", "a", 2)]


async def test_only_keys_of_the_prefix_come_and_the_others_move_the_place_on(
    sidecar: Sidecar,
) -> None:
    """A quiet stream's sign of life has the place, so that it is not trimmed away meanwhile."""
    state = sidecar.services.spell.state
    async with listening(sidecar, WATCH, prefix="in.") as events:
        await state.set(SCOPE, "in.a", 1)
        assert told([await events.next()]) == [("set", "in.a", 1)]
        other = await state.set(SCOPE, "out.b", 2)
        await state.set("agent:bob", "x", 1)
        streams = sidecar.services.one(Streams)
        while events.last_id != str(other):
            await streams.tick()  # something was sent since the tick before
            await streams.tick()
            await events.beat()


async def test_a_log_that_no_longer_reaches_back_is_a_problem_that_ends_the_stream(
    sidecar: Sidecar, raw: Raw, store: Store
) -> None:
    """With the code and the facts that the library's error has."""
    since = await trimmed(sidecar, raw, store)
    async with listening(sidecar, WATCH, since=since) as events:
        said = await events.next()
        assert await events.ended() == []
    assert (said.event, said.data["code"], said.data["status"]) == ("problem", "WATCH_TRIMMED", 410)
    assert said.data["facts"]["since"] == since


async def test_a_trimmed_log_is_replaced_by_what_is_there_when_asked(
    sidecar: Sidecar, raw: Raw, store: Store
) -> None:
    """`reset`, then each key; only the last of them has an id: half a snapshot is none."""
    since = await trimmed(sidecar, raw, store)
    async with listening(sidecar, WATCH, since=since, on_trimmed="snapshot") as events:
        said = await events.take(3)
        assert [one.data["op"] for one in said] == ["reset", "snapshot", "snapshot"]
        assert [one.last_id == since for one in said] == [True, True, False]
        await sidecar.services.spell.state.set(SCOPE, "c", 3)
        assert told([await events.next()]) == [("set", "c", 3)]


async def trimmed(sidecar: Sidecar, raw: Raw, store: Store) -> str:
    """Write some changes and trim the log before the last; the revision of the first."""
    state = sidecar.services.spell.state
    since = await state.set(SCOPE, "a", 1)
    await state.set(SCOPE, "a", 2)
    await state.set(SCOPE, "b", 2)
    raw("XTRIM", store.space.log("0"), "MAXLEN", 1)
    return str(since)


async def test_a_hook_that_changes_what_readers_see_sees_every_change_of_a_page(
    sidecar: Sidecar,
) -> None:
    """None of those that come together passes it by."""
    spell = sidecar.services.spell
    spell.hooks.register("AfterStateRead", lambda _: Replace("hidden"), name="hide")
    await spell.state.set_many(SCOPE, {"a": 1, "b": 2, "c": 3})
    async with listening(sidecar, WATCH, since="0-0") as events:
        assert {value for _, _, value in told(await events.take(3))} == {"hidden"}


async def test_two_sidecars_continue_one_another(
    sidecar: Sidecar, url: str, namespace: str, start_sidecar: StartSidecar
) -> None:
    """An id of one means the same to the other: a client can go on anywhere."""
    if url.startswith("memory"):
        pytest.skip("the server lives in this process's client")
    other = await start_sidecar()
    async with connect(url, namespace=namespace) as spell:
        async with listening(sidecar, WATCH) as events:
            await spell.state.set_many(SCOPE, {"a": 1, "b": 2})
            seen = await events.next()
        async with listening(other, WATCH, last_id=seen.last_id) as events:
            assert told([await events.next()]) == [("set", "b", 2)]


async def test_who_may_not_read_the_scope_gets_no_stream(start_sidecar: StartSidecar) -> None:
    """A problem document, not a stream that ends."""
    sidecar = await start_sidecar(_nobody())
    answer = await sidecar.ask("GET", WATCH)
    assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")


def _nobody() -> Any:
    from llmspell_dist.sidecar.auth.grants import Principal

    access = Access.open_on_loopback()

    class Refusing:
        cached = staticmethod(lambda *_: Principal("nobody", "anonymous", ()))
        check_bind = access.check_bind

    return Refusing()


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ({"since": "yesterday"}, "since"),
        ({"since": "1-1/x"}, "since"),
        ({"since": "1-1/00ff:1/set/a/b"}, "since"),
        ({"since": "1-1", "operation": "zz"}, "operation"),
        ({"since": "1-1/0011223344556677:9/reset/a"}, "since"),
        ({"on_trimmed": "ignore"}, "on_trimmed"),
        ({"prefix": ""}, None),
    ],
)
async def test_a_place_that_is_none_is_refused_by_name(
    sidecar: Sidecar, query: dict[str, Any], name: str | None
) -> None:
    """400 before anything is streamed."""
    if name is None:
        async with listening(sidecar, WATCH, **query):
            return
    answer = await sidecar.ask("GET", WATCH, **query)
    assert answer.status_code == 400, answer.text
    assert name in answer.json()["detail"]


def test_a_place_within_a_commit_says_which_change_it_was() -> None:
    """Whatever the key's text is."""
    from llmspell_dist import Revision

    revision = Revision(17, 4)
    change = Change(
        *(SCOPE, "a/b %/ü\n", "set", revision, revision.time),
        has_value=False,
        operation="0011223344556677:9",
    )
    assert parse_place(place_within(change), SCOPE, None) == change
    with pytest.raises(InvalidArgumentError):
        parse_place(place_within(change) + "/", SCOPE, None)


async def test_many_streams_of_a_scope_share_one_subscription(sidecar: Sidecar) -> None:
    """And all of them hear of a change."""
    async with asyncio.TaskGroup() as group:
        ready = asyncio.Barrier(21)

        async def one() -> None:
            async with listening(sidecar, WATCH) as events:
                await ready.wait()
                assert told([await events.next()]) == [("set", "a", 1)]

        for _ in range(20):
            group.create_task(one())
        await ready.wait()
        assert len(sidecar.services.spell._feeds) == 1
        await sidecar.services.spell.state.set(SCOPE, "a", 1)
