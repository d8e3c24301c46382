"""Hooks at the three points of events."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from llmspell_dist import blocking
from llmspell_dist.client import Spell
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.errors import OperationCancelledError
from llmspell_dist.hooks.points import HookPoint
from llmspell_dist.hooks.results import Cancel, Modified

pytestmark = pytest.mark.integration


async def test_an_event_is_changed_before_it_is_published_and_seen_behind(spell: Spell) -> None:
    """What subscribers get is what the hook made of it."""
    seen: list[tuple[str, Any]] = []

    @spell.hooks.on(HookPoint.BEFORE_EVENT_EMIT)
    def redact(context: HookContext) -> Modified:
        return Modified({"data": {**context.data["data"], "card": "***"}, "tags": ("clean",)})

    @spell.hooks.on(HookPoint.AFTER_EVENT_EMIT)
    async def note(context: HookContext) -> None:
        seen.append((context.component.name, context.data["data"]))

    async with spell.events.subscribe("order.*") as orders:
        published = await spell.events.publish("order.paid", {"card": "4111", "sum": 3})
        with anyio.fail_after(10):
            heard = await anext(aiter(orders))
    assert heard.data == published.data == {"card": "***", "sum": 3}
    assert heard.tags == ("clean",)
    assert seen == [("order.paid", {"card": "***", "sum": 3})]


async def test_a_refused_event_is_not_published(spell: Spell) -> None:
    """The publisher is told by whom and why; a batch is refused as a whole from there on."""

    @spell.hooks.on(HookPoint.BEFORE_EVENT_EMIT, name="no-secrets")
    def refuse(context: HookContext) -> Cancel | None:
        return Cancel("a secret") if context.data["type"] == "order.secret" else None

    async with spell.events.subscribe("order.*") as orders:
        with pytest.raises(OperationCancelledError, match=r"no-secrets.*a secret") as refused:
            await spell.events.publish("order.secret", 1)
        assert refused.value.point == HookPoint.BEFORE_EVENT_EMIT
        await spell.events.publish("order.plain", 2)
        with anyio.fail_after(10):
            assert (await anext(aiter(orders))).type == "order.plain"


@pytest.mark.parametrize("name", ["type", "data", "target", "tags", "priority", "ttl"])
async def test_a_name_that_a_hook_removes_is_named(spell: Spell, name: str) -> None:
    """And nothing is published."""

    @spell.hooks.on(HookPoint.BEFORE_EVENT_EMIT)
    def remove(context: HookContext) -> None:
        del context.data[name]

    async with spell.events.subscribe("order.*") as orders:
        with pytest.raises(InvalidArgumentError, match=f"{name} must stay in the data"):
            await spell.events.publish("order.paid", 1)
        spell.hooks.clear()
        await spell.events.publish("order.plain", 2)
        with anyio.fail_after(10):
            assert (await anext(aiter(orders))).type == "order.plain"


async def test_what_a_handler_failed_on_is_seen(spell: Spell) -> None:
    """With the subscription, the event and the error."""
    failed: list[tuple[str, str, str | None]] = []
    done = anyio.Event()

    @spell.hooks.on(HookPoint.EVENT_HANDLER_ERROR)
    def note(context: HookContext) -> None:
        said = context.data
        failed.append((said["subscription"], said["type"], context.error_message))

    def handle(event: Any) -> None:
        if len(failed) < 2:
            raise ValueError("not yet")
        done.set()

    async with spell.events.subscribe("job.*", durable="jobs"):
        pass  # from now on there is a queue
    await spell.events.publish("job.new", 1)
    async with anyio.create_task_group() as group:
        consume = partial(spell.events.consume, retry_delay=0.01)
        group.start_soon(consume, "jobs", "job.*", handle)
        with anyio.fail_after(20):
            await done.wait()
        group.cancel_scope.cancel()
    assert failed == [("jobs", "job.new", "not yet")] * 2


def test_threads_publish_through_plain_and_async_hooks(url: str, namespace: str) -> None:
    """On the blocking surface as on the other."""
    with blocking.connect(url, namespace=namespace) as spell:

        @spell.hooks.on(HookPoint.BEFORE_EVENT_EMIT)
        def plain(context: HookContext) -> Modified:
            return Modified({"data": [*context.data["data"], "plain"]})

        @spell.hooks.on(HookPoint.BEFORE_EVENT_EMIT)
        async def coroutine(context: HookContext) -> Modified:
            await anyio.lowlevel.checkpoint()
            return Modified({"data": [*context.data["data"], "async"]})

        assert spell.events.publish("a.b", []).data == ["plain", "async"]
