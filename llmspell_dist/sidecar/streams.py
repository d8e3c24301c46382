"""Server-sent events: what lasts, counted, kept alive by one clock, and ended when it must end.

A stream is text of blocks (https://html.spec.whatwg.org/multipage/server-sent-events.html). A slow
client holds its source up and nobody else. One task tends all streams of a sidecar: it sends
comments through quiet ones, ends those whose client takes nothing any more, and those whose caller
may no longer listen. An idle stream costs three small tasks and what its source holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmspell_dist.errors import SpellError
from llmspell_dist.jsonable import to_json
from llmspell_dist.sidecar.auth.errors import (
    ForbiddenError,
    KeysUnavailableError,
    UnauthenticatedError,
)
from llmspell_dist.sidecar.bodies import plain
from llmspell_dist.sidecar.errors import DrainingError, TooManyRequestsError
from llmspell_dist.sidecar.problems import problem_of

if TYPE_CHECKING:
    from llmspell_dist.sidecar.auth.grants import Verb
    from llmspell_dist.sidecar.call import Call
    from llmspell_dist.sidecar.services import Services

__all__ = ["BEAT", "EVENT_STREAM", "Place", "Streams", "block", "raw_block", "send_events"]

logger = logging.getLogger("llmspell_dist.sidecar")

EVENT_STREAM: Final = "text/event-stream"
BEAT: Final = b":\n\n"
"""A comment: it says that the stream lives, and lets a connection that is dead be noticed."""
BEAT_S: Final = 15.0
STALLED_TICKS: Final = 2
"""A client that takes nothing for so many ticks is let go."""
RETRY_MS: Final = 1000
_LAST_WORD_S: Final = 1.0
_AT_ONCE: Final = 100
_HEADERS: Final = [
    (b"content-type", EVENT_STREAM.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]

Rights = Iterable[tuple["Verb", str]]


def block(document: Any, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """Return one event of a stream; its data is the document, in the sidecar's JSON."""
    return raw_block(msgspec.json.encode(to_json(plain(document))), event=event, event_id=event_id)


def raw_block(data: bytes, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """Return one event of a stream; `data` is on one line, as JSON is."""
    head = b"" if event_id is None else b"id: %s\n" % event_id.encode()
    if event is not None:
        head += b"event: %s\n" % event.encode()
    return b"%sdata: %s\n\n" % (head, data)


class Place:
    """One stream's place among those of a sidecar."""

    __slots__ = ("_behind", "_call", "_rights", "beat", "busy", "error", "over", "quiet")

    def __init__(self, call: Call, rights: Rights) -> None:
        self._call = call
        self._rights = tuple(rights)
        self._behind = 0
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Why the stream is to end: ``gone``, ``slow``, ``draining``, ``done``, ``error``."""
        self.error: Exception | None = None
        """What it ends with."""
        self.busy = False
        """Whether something is on its way to the client."""
        self.quiet = True
        """Whether nothing was sent since the last tick."""
        self.beat: Callable[[], Any] | None = None
        """Sends a sign of life; a coroutine function."""

    def end(self, why: str, error: Exception | None = None) -> None:
        """Have the stream end; the first one who says so is right."""
        if not self.over.done():
            self.error = error
            self.over.set_result(why)

    async def check(self) -> None:
        """End the stream if its caller could not begin it now."""
        call = self._call
        access = call.services.access
        authorization, peer = call.header(b"authorization"), call.scope.get("llmspell.peer")
        principal = access.cached(authorization, peer)
        try:
            if principal is None:
                principal = await access.authenticate(authorization, peer)
            for verb, target in self._rights:
                principal.require(verb, target)
        except KeysUnavailableError:
            return  # nobody knows: what was decided holds
        except (UnauthenticatedError, ForbiddenError) as error:
            self.end("error", error)

    def tick(self) -> bool:
        """Let time pass; return whether a sign of life is due."""
        if self.busy:
            self._behind += 1
            if self._behind >= STALLED_TICKS:
                self.end("slow")
            return False
        self._behind = 0
        due, self.quiet = self.quiet, True
        return due and self.beat is not None


class Streams:
    """All streams of one sidecar, WebSockets among them."""

    def __init__(self, services: Services, *, beat_s: float = BEAT_S) -> None:
        self._services = services
        self._beat_s = beat_s
        self._places: set[Place] = set()
        self._of_client: Counter[str] = Counter()
        self._tending: asyncio.Task[None] | None = None
        self._beats: set[asyncio.Task[None]] = set()
        services.ending.append(self.close)

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def place(self, call: Call, rights: Rights | None = None) -> Iterator[Place]:
        """Hold a place inside the block, of which there are so many.

        `rights` must hold as long as the stream lasts; by default what the route needs. Raises
        `TooManyRequestsError`, and `DrainingError` once the sidecar stops.
        """
        services, limits = self._services, self._services.settings.limits
        if services.draining:
            raise DrainingError
        client = _client_of(call)
        if len(self._places) >= limits.streams:
            raise TooManyRequestsError(limits.streams, "streams are open already")
        if self._of_client[client] >= limits.client_streams:
            raise TooManyRequestsError(limits.client_streams, "streams of this client are open")
        if rights is None:
            needs = call.endpoint.needs
            rights = [(need.verb, need.target.format_map(call.parameters)) for need in needs]
        place = Place(call, rights)
        self._places.add(place)
        self._of_client[client] += 1
        services.observer.streams(1)
        if self._tending is None:
            self._tending = asyncio.get_running_loop().create_task(self._tend())
        try:
            yield place
        finally:
            self._places.discard(place)
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]
            services.observer.streams(-1)

    # --- time

    async def _tend(self) -> None:
        stopping = self._services.stopping
        while not stopping.is_set():
            try:
                async with asyncio.timeout(self._beat_s):
                    await stopping.wait()
            except TimeoutError:
                await self.tick()
        for place in tuple(self._places):
            place.end("draining")

    async def tick(self) -> None:
        """Look after every stream once."""
        for number, place in enumerate(tuple(self._places), 1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # what else there is to do comes in between
            try:
                await place.check()
            except Exception:
                logger.exception("a stream's rights could not be looked at")
            if place.tick() and place.beat is not None and not place.over.done():
                task = asyncio.get_running_loop().create_task(place.beat())
                self._beats.add(task)
                task.add_done_callback(self._beats.discard)

    async def close(self) -> None:
        """End the clock."""
        tasks = [*self._beats, *([] if self._tending is None else [self._tending])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tending = None


async def send_events(
    call: Call,
    place: Place,
    blocks: AsyncIterator[bytes],
    *,
    first: bytes = b"",
    beat: Callable[[], bytes] = lambda: BEAT,
) -> None:
    """Send what `blocks` gives, each piece one or more whole blocks, until somebody ends it.

    `first` is sent at once. `beat` gives what is sent through a quiet stream. An error of the
    source is sent as ``event: problem``. Who is told ``event: end`` may come back at once.
    """
    await call.send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    stream = _Stream(call, place, beat)
    if call.scope["method"] == "HEAD":
        await stream.finish(b"")
        return
    await stream.write(b"retry: %d\n%s\n" % (RETRY_MS, first))
    place.beat = stream.beat
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(stream.pump(blocks)), loop.create_task(stream.listen())]
    try:
        why = await place.over
    finally:
        place.beat = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if why not in {"gone", "slow"}:
        await stream.finish(_last_word(why, place.error))


def _last_word(why: str, error: Exception | None) -> bytes:
    if error is not None:
        return block(problem_of(error).document, event="problem")
    return block({"reason": why}, event="end")


class _Stream:
    """The way to one client."""

    __slots__ = ("_beat", "_call", "_lock", "_place")

    def __init__(self, call: Call, place: Place, beat: Callable[[], bytes]) -> None:
        self._call = call
        self._place = place
        self._beat = beat
        self._lock = asyncio.Lock()

    async def pump(self, blocks: AsyncIterator[bytes]) -> None:
        """Bring everything from the source to the client; it is asked for more as that goes."""
        try:
            async for piece in blocks:
                await self.write(piece)
        except SpellError as error:
            self._place.end("error", error)
        except Exception as error:
            logger.exception("a stream of %s failed", self._call.endpoint.path)
            self._place.end("error", error)
        else:
            self._place.end("done")

    async def listen(self) -> None:
        """Wait until the client goes away."""
        while (await self._call.receive())["type"] != "http.disconnect":
            pass
        self._place.end("gone")

    async def beat(self) -> None:
        """Send a sign of life, unless something else has been sent meanwhile."""
        if not self._lock.locked():
            await self.write(self._beat())

    async def write(self, piece: bytes) -> None:
        async with self._lock:
            self._place.busy, self._place.quiet = True, False
            message = {"type": "http.response.body", "body": piece, "more_body": True}
            await self._call.send(message)
            self._place.busy = False

    async def finish(self, piece: bytes) -> None:
        """Send the last block, if the client takes it, and end the answer."""
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                await self._call.send({"type": "http.response.body", "body": piece})
        except TimeoutError:
            pass


def _client_of(call: Call) -> str:
    peer = call.scope.get("client")
    if call.principal.kind == "anonymous" and peer:
        return f"{call.principal.label} {peer[0]}"
    return call.principal.label
