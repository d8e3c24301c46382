"""WebSockets: frames that are documents, as JSON text or as MessagePack, either way.

Every frame is a map with ``op``. What the sidecar sends is in the form that the client asked for;
what the client sends is read as what it is: text is JSON, binary is MessagePack.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import SpellError
from llmspell_dist.sidecar.bodies import JSON, MESSAGEPACK, plain
from llmspell_dist.sidecar.errors import BodyError, BodyTooLargeError
from llmspell_dist.sidecar.problems import problem_of

if TYPE_CHECKING:
    from llmspell_dist.sidecar.call import Call
    from llmspell_dist.sidecar.streams import Place

__all__ = ["Socket"]

logger = logging.getLogger("llmspell_dist.sidecar")

_MAX_FRAME: Final = 1024 * 1024
_LAST_WORD_S: Final = 1.0
_NORMAL, _GOING_AWAY, _INTERNAL = 1000, 1001, 1011


class Socket:
    """One conversation: what comes from a source goes out, and what the client says is heard."""

    def __init__(self, call: Call, place: Place, *, packed: bool) -> None:
        self._call = call
        self._place = place
        self._packed = packed
        self._lock = asyncio.Lock()

    async def run(
        self,
        source: AsyncIterator[Any],
        hear: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> None:
        """Talk until somebody ends it; `hear` gets each frame, and what it returns is sent."""
        await self._call.receive()  # the request to connect
        await self._call.send({"type": "websocket.accept"})
        self._place.beat = self._beat
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._pump(source)), loop.create_task(self._listen(hear))]
        try:
            why = await self._place.over
        finally:
            self._place.beat = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if why != "gone":
            await self._finish(why)

    async def _pump(self, source: AsyncIterator[Any]) -> None:
        try:
            async for document in source:
                await self.send(document)
        except SpellError as error:
            self._place.end("error", error)
        except Exception as error:
            logger.exception("a WebSocket of %s failed", self._call.endpoint.path)
            self._place.end("error", error)
        else:
            self._place.end("done")

    async def _listen(self, hear: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
        try:
            while True:
                message = await self._call.receive()
                if message["type"] == "websocket.disconnect":
                    self._place.end("gone")
                    return
                answer = await self._heard(message, hear)
                if answer is not None:
                    await self.send(answer)
        except Exception as error:
            if not isinstance(error, SpellError):
                logger.exception("a frame of %s could not be handled", self._call.endpoint.path)
            self._place.end("error", error)

    async def _heard(self, message: Any, hear: Callable[[dict[str, Any]], Awaitable[Any]]) -> Any:
        text, frame = message.get("text"), message.get("bytes")
        body = frame if text is None else text.encode()
        if len(body) > _MAX_FRAME:
            raise BodyTooLargeError(len(body), _MAX_FRAME)
        ref = None
        try:
            media = MESSAGEPACK if text is None else JSON
            said = await self._call.services.bodies.read_aside(body, media)
            if not isinstance(said, dict) or type(said.get("op")) is not str:
                raise BodyError("frame", "it must be a map with an op")
            ref = said.pop("ref", None)
            answer = await hear(said)
        except SpellError as error:
            answer = {"op": "problem", "problem": problem_of(error).document}
        return answer if answer is None or ref is None else {**answer, "ref": ref}

    async def _beat(self) -> None:
        if not self._lock.locked():
            await self.send({"op": "beat"})

    async def send(self, document: Any) -> None:
        """Send a frame, when the client takes it."""
        async with self._lock:
            self._place.busy, self._place.quiet = True, False
            await self._call.send(self._frame(document))
            self._place.busy = False

    def _frame(self, document: Any) -> dict[str, Any]:
        body = self._call.services.bodies.write(
            plain(document), MESSAGEPACK if self._packed else JSON
        )
        if self._packed:
            return {"type": "websocket.send", "bytes": body}
        return {"type": "websocket.send", "text": body.decode()}

    async def _finish(self, why: str) -> None:
        error = self._place.error
        code: int = _NORMAL
        word: dict[str, Any] = {"op": "end", "reason": why}
        if error is not None:
            problem = problem_of(error)
            word = {"op": "problem", "problem": problem.document}
            code = 4000 + problem.status if isinstance(error, SpellError) else _INTERNAL
        elif why == "draining":
            code = _GOING_AWAY
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                await self._call.send(self._frame(word))
        except TimeoutError:
            pass
        await self._call.send({"type": "websocket.close", "code": code, "reason": why})
