"""Events over a WebSocket: JSON or MessagePack frames, live or answered for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from fix_sidecar import Sidecar, StartSidecar
from fix_streams import until

from llmspell_dist.codec import decode, encode
from llmspell_dist.events import Event
from llmspell_dist.sidecar.settings import Limits
from llmspell_dist.sidecar.streams import Streams


class Talk:
    """One conversation."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, packed: bool) -> None:
        self.socket = socket
        self._packed = packed

    async def say(self, **said: Any) -> None:
        if self._packed:
            await self.socket.send_bytes(encode(said))
        else:
            await self.socket.send_str(json.dumps(said))

    async def hear(self) -> dict[str, Any]:
        message = await self.socket.receive(timeout=10)
        kind = aiohttp.WSMsgType.BINARY if self._packed else aiohttp.WSMsgType.TEXT
        assert message.type == kind, message
        found: dict[str, Any] = decode(message.data) if self._packed else json.loads(message.data)
        return found

    async def ended(self) -> int:
        message = await self.socket.receive(timeout=10)
        assert message.type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}, message
        assert self.socket.close_code is not None
        return self.socket.close_code


@asynccontextmanager
async def talking(sidecar: Sidecar, packed: bool = False, **query: str) -> AsyncIterator[Talk]:
    """Open a WebSocket whose subscription has begun."""
    if packed:
        query["format"] = "msgpack"
    async with aiohttp.ClientSession() as session:
        url = f"{sidecar.url}/v1/events/ws"
        async with session.ws_connect(url, params=query) as socket:
            yield Talk(socket, packed)


@pytest.mark.parametrize("packed", [False, True])
async def test_events_come_live_in_the_form_that_was_asked_for(
    sidecar: Sidecar, packed: bool
) -> None:
    """Bytes are bytes in MessagePack, and tagged in JSON."""
    async with talking(sidecar, packed, pattern="job.*") as talk:
        await sidecar.services.spell.events.publish("job.a", b"hi", tags=["x"])
        said = await talk.hear()
    assert said["op"] == "event"
    assert said["event"]["data"] == (b"hi" if packed else {"$bytes": "aGk="})
    assert (said["event"]["type"], said["event"]["tags"]) == ("job.a", ["x"])


@pytest.mark.parametrize("packed", [False, True])
async def test_a_queue_s_events_are_answered_for_by_frames(sidecar: Sidecar, packed: bool) -> None:
    """`ref` comes back with the answer; what is not handled comes again."""
    events = sidecar.services.spell.events
    async with talking(sidecar, packed, durable="work", pattern="job.*", max_unacked="2") as talk:
        await events.publish_many(Event("job.n", n) for n in range(3))
        one, two = await talk.hear(), await talk.hear()
        assert [one["event"]["data"], two["event"]["data"]] == [0, 1]
        await talk.say(op="ack", receipts=[one["receipt"]], ref=7)
        heard = [await talk.hear(), await talk.hear()]
        assert {"op": "acked", "count": 1, "ref": 7} in heard
        assert [said["event"]["data"] for said in heard if said["op"] == "event"] == [2]
        await talk.say(op="nack", receipts=[two["receipt"]], delay=0, error="boom")
        heard = [await talk.hear(), await talk.hear()]
        assert {"op": "nacked", "lost": []} in heard
        again = next(said for said in heard if said["op"] == "event")
        assert (again["event"]["data"], again["deliveries"]) == (1, 2)


async def test_what_was_not_answered_for_goes_to_others_when_the_socket_ends(
    sidecar: Sidecar,
) -> None:
    """At once, not after the claim time."""
    async with talking(sidecar, durable="work", pattern="job.*") as talk:
        await sidecar.services.spell.events.publish("job.a", 1)
        await talk.hear()
    async with talking(sidecar, durable="work", pattern="job.*") as talk:
        assert (await talk.hear())["deliveries"] == 2


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("no json", "BODY"),
        ("[]", "BODY"),
        ('{"op": 1}', "BODY"),
        ('{"op": "ack"}', "BODY"),
        ('{"op": "ack", "receipts": ["x"]}', "INVALID_ARGUMENT"),
        ('{"op": "sing"}', "INVALID_ARGUMENT"),
    ],
)
async def test_a_frame_that_means_nothing_is_answered_and_ends_nothing(
    sidecar: Sidecar, frame: str, code: str
) -> None:
    """With a problem; the next one is heard."""
    async with talking(sidecar, durable="work", pattern="job.*") as talk:
        await talk.socket.send_str(frame)
        said = await talk.hear()
        assert (said["op"], said["problem"]["code"]) == ("problem", code)
        await talk.say(op="ack", receipts=[])
        assert await talk.hear() == {"op": "acked", "count": 0}


async def test_a_drain_ends_sockets_with_a_word(sidecar: Sidecar) -> None:
    """Code 1001: going away."""
    async with talking(sidecar) as talk:
        await until(lambda: len(sidecar.services.one(Streams)) == 1)
        await asyncio.sleep(0)
        sidecar.services.drain()
        assert await talk.hear() == {"op": "end", "reason": "draining"}
        assert await talk.ended() == 1001


async def test_a_quiet_socket_gets_a_sign_of_life(sidecar: Sidecar) -> None:
    """A frame, since a page in a browser sees no ping."""
    streams = sidecar.services.one(Streams)
    async with talking(sidecar) as talk:
        await until(lambda: any(place.beat for place in streams._places))
        await streams.tick()
        assert await talk.hear() == {"op": "beat"}


async def test_sockets_count_as_streams(start_sidecar: StartSidecar) -> None:
    """Over the limit the connection is refused."""
    sidecar = await start_sidecar(limits=Limits(client_streams=1))
    async with talking(sidecar):
        await until(lambda: len(sidecar.services.one(Streams)) == 1)
        with pytest.raises(aiohttp.WSServerHandshakeError):
            async with talking(sidecar):
                pass
    await until(lambda: len(sidecar.services.one(Streams)) == 0)


async def test_a_removed_subscription_ends_the_socket(sidecar: Sidecar) -> None:
    """With the problem, and its status in the code."""
    async with talking(sidecar, durable="work", pattern="job.*") as talk:
        await until(lambda: sidecar.services.spell.events._bells._heard)
        await sidecar.services.spell.events.remove("work")
        said = await talk.hear()
        assert (said["op"], said["problem"]["code"]) == ("problem", "SUBSCRIPTION_NOT_FOUND")
        assert await talk.ended() == 4404
