"""What watches give out passes the hooks of reads, on both surfaces."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fix_hooks import Hooked, S, Seen

import llmspell_dist
from llmspell_dist import InvalidArgumentError, blocking
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.errors import OperationCancelledError
from llmspell_dist.hooks.points import HookPoint as P
from llmspell_dist.hooks.results import Cancel, Modified, Redirect, Replace
from llmspell_dist.revision import Revision

pytestmark = pytest.mark.integration

FIRST = Revision(0, 0)


class Watched:
    """A watch of either surface."""

    def __init__(self, hooked: Hooked, watch: Any) -> None:
        self._hooked, self._watch = hooked, watch

    async def next(self) -> Any:
        """Return the next change."""
        if self._hooked.surface == "blocking":
            return next(self._watch)
        return await anext(self._watch)

    async def close(self) -> None:
        """End it."""
        if self._hooked.surface == "blocking":
            self._watch.close()
        else:
            await self._watch.aclose()

    @property
    def revision(self) -> Any:
        """Where it is."""
        return self._watch.revision


def mask(ctx: HookContext) -> Modified | None:
    """Hide secrets."""
    return Modified({"value": "***"}) if ctx.data["value"] == "secret" else None


@pytest.fixture
async def watched(hooked: Hooked) -> Any:
    """A watch from the first change."""
    watch = Watched(hooked, hooked.state.watch(S, since=FIRST))
    yield watch
    await watch.close()


async def test_a_watch_gives_out_what_hooks_leave(hooked: Hooked, watched: Watched) -> None:
    """Modified, replaced; a change without a value is nobody's secret."""
    seen = Seen(mask)
    hooked.hooks.register(P.AFTER_STATE_READ, seen)
    await hooked.do(hooked.state.set(S, "a", "secret"))
    await hooked.do(hooked.state.set(S, "b", "open"))
    await hooked.do(hooked.state.delete(S, "a"))
    changes = [await watched.next() for _ in range(3)]
    assert [(one.key, one.op, one.value) for one in changes] == [
        ("a", "set", "***"),
        ("b", "set", "open"),
        ("a", "delete", None),
    ]
    assert seen.names == ["watch", "watch"]
    assert [run.data["key"] for run in seen.runs] == ["a", "b"]
    hooked.hooks.clear()
    hooked.hooks.register(P.AFTER_STATE_READ, lambda _: Replace("instead"), name="replace")
    await hooked.do(hooked.state.set(S, "c", 1))
    assert (await watched.next()).value == "instead"


async def test_a_refused_change_is_raised_and_the_next_one_follows(
    hooked: Hooked, watched: Watched
) -> None:
    """Nothing is lost, nothing comes twice."""

    def guard(ctx: HookContext) -> Cancel | None:
        return Cancel("not for you") if ctx.data["key"] == "a" else None

    hooked.hooks.register(P.AFTER_STATE_READ, guard)
    await hooked.do(hooked.state.set(S, "a", "secret"))
    last = await hooked.do(hooked.state.set(S, "b", "open"))
    with pytest.raises(OperationCancelledError, match="not for you"):
        await watched.next()
    assert (await watched.next()).key == "b"
    assert watched.revision == last


@pytest.mark.parametrize("answer", [Cancel("no"), Replace(1), Redirect("agent:other")])
async def test_a_hook_before_reads_can_refuse_a_watch(hooked: Hooked, answer: Any) -> None:
    """Once, before it begins; it can neither answer it nor send it elsewhere."""
    hooked.hooks.register(P.BEFORE_STATE_READ, lambda _: answer, name="guard")
    await hooked.do(hooked.state.set(S, "k", "secret"))
    wanted = OperationCancelledError if isinstance(answer, Cancel) else InvalidArgumentError
    watch = Watched(hooked, hooked.state.watch(S, since=FIRST))
    with pytest.raises(wanted):
        await watch.next()
    await watch.close()
    with pytest.raises(wanted):
        await hooked.do(hooked.state.wait_for(S, "k", lambda value: value == "secret", timeout=5))


async def test_wait_for_gives_out_what_hooks_leave(hooked: Hooked) -> None:
    """What is there, and what its predicate is asked about."""
    seen = Seen(mask)
    hooked.hooks.register(P.AFTER_STATE_READ, seen)
    await hooked.do(hooked.state.set(S, "k", "secret"))
    asked: list[Any] = []

    def any_value(value: Any) -> bool:
        asked.append(value)
        return True

    assert await hooked.do(hooked.state.wait_for(S, "k", any_value, timeout=5)) == "***"
    assert asked == ["***"]
    assert seen.names == ["wait_for"]


async def test_wait_for_masks_what_comes_later(hooked: Hooked) -> None:
    """The change that it waited for."""
    hooked.hooks.register(P.AFTER_STATE_READ, mask)
    state = hooked.state
    waited = False

    def not_yet(value: Any) -> bool:
        nonlocal waited
        if not waited:  # asked first about what is there: now there is something new
            waited = True
            other.state.set(S, "k", "secret")
            return False
        return bool(value is not None)

    with blocking.connect(hooked.url, namespace=hooked.spell.namespace) as other:
        assert await hooked.do(state.wait_for(S, "k", not_yet, timeout=5)) == "***"


async def test_a_watch_without_hooks_of_reads_is_not_looked_at(
    hooked: Hooked, watched: Watched
) -> None:
    """Hooks of writes have nothing to do with it."""
    hooked.hooks.register(P.AFTER_STATE_WRITE, Seen(), name="writes")
    await hooked.do(hooked.state.set(S, "k", "v"))
    assert (await watched.next()).value == "v"


async def test_a_reader_that_is_cancelled_in_a_hook_loses_nothing(url: str, namespace: str) -> None:
    """The change is the next one again."""
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(_: HookContext) -> Modified:
            begun.set()
            await go_on.wait()
            return Modified({"value": "***"})

        spell.hooks.register(P.AFTER_STATE_READ, slow, timeout=30)
        await spell.state.set(S, "k", "secret")
        async with spell.state.watch(S, since=FIRST) as watch:
            reader = asyncio.create_task(anext(watch))
            await begun.wait()
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            assert watch.revision == FIRST
            go_on.set()
            assert (await anext(watch)).value == "***"
