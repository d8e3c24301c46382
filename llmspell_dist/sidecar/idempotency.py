"""``Idempotency-Key``: a request that comes again gets the first one's answer and changes nothing.

As draft-ietf-httpapi-idempotency-key-header says: the first request with a key claims it; the same
request again is answered as the first was; another request with the key is refused (422); one that
comes while the first is under way is told so (409). What is remembered lies in Redis, so that any
sidecar of the fleet knows it, for a day.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.classes import StateClass
from llmspell_dist.codec import encode
from llmspell_dist.errors import InvalidArgumentError, SpellError, StoreUnavailableError
from llmspell_dist.sidecar.auth.grants import RESERVED, Verb
from llmspell_dist.sidecar.bodies import plain
from llmspell_dist.sidecar.errors import IdempotencyConflictError, IdempotencyPendingError
from llmspell_dist.sidecar.problems import Problem, problem_of
from llmspell_dist.sidecar.receiving import ClientGoneError
from llmspell_dist.sidecar.reply import Reply

if TYPE_CHECKING:
    from llmspell_dist.sidecar.call import Call
    from llmspell_dist.sidecar.services import Services

__all__ = ["Idempotency"]

SCOPE: Final = f"{RESERVED}idempotency"
KEPT_S: Final = 24 * 3600.0
MAX_KEY: Final = 255
MAX_ANSWER: Final = 256 * 1024
_READING: Final = frozenset({Verb.READ, Verb.LIST})
_HEADER: Final = b"idempotency-key"


class Idempotency:
    """Carries requests out once for each key."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def run(self, call: Call, body: bytes) -> Reply | None:
        """Carry a request out, or answer as it was answered the first time."""
        key = call.headers.get(_HEADER)
        handler = call.endpoint.handler
        if key is None or not self._counts(call):
            return await handler(call)
        place, print_ = self._place(call, key), _fingerprint(call, body)
        state = self._services.own_state
        claim = {"print": print_, "answer": None}
        revision = await state.set_if_absent(
            SCOPE, place, claim, ttl=KEPT_S, state_class=StateClass.EPHEMERAL
        )
        if revision is None:
            return await self._again(place, print_)
        try:
            reply = await handler(call)
        except asyncio.CancelledError:
            raise  # nobody knows: the claim stays, and says so
        except ClientGoneError:
            await self._forget(place, revision)  # who waited left its line: nothing was done
            raise
        except StoreUnavailableError as error:
            if not error.may_have_happened:
                await self._forget(place, revision)
            raise
        except SpellError as error:
            # Whatever it says, part of the work may be done: it is the answer from now on.
            await self._keep(place, claim, _of_problem(problem_of(error)))
            raise
        if reply is not None:
            await self._keep(place, claim, _of_reply(reply))
        return reply

    @staticmethod
    def _counts(call: Call) -> bool:
        """Return whether the route keeps answers; one that changes something and does not refuses.

        Reads keep none: whoever may only read must not fill the store.
        """
        endpoint = call.endpoint
        if "Idempotency-Key" in endpoint.headers:
            return True
        verbs = {*endpoint.asks, *(need.verb for need in endpoint.needs)}
        if endpoint.streams is None and not verbs <= _READING:
            rule = "is not taken by this route; nothing was changed"
            raise InvalidArgumentError("idempotency-key", None, rule)
        return False

    def _place(self, call: Call, key: bytes) -> str:
        text = key.decode("latin-1").strip().strip('"')
        if not 0 < len(text) <= MAX_KEY or not text.isprintable():
            rule = f"must be 1 to {MAX_KEY} printable characters"
            raise InvalidArgumentError("idempotency-key", text, rule)
        return sha256(f"{call.principal.label}\0{text}".encode()).hexdigest()

    async def _again(self, place: str, print_: str) -> Reply:
        kept = await self._services.own_state.get(SCOPE, place)
        if not isinstance(kept, dict) or kept["answer"] is None:
            if isinstance(kept, dict) and kept["print"] != print_:
                raise IdempotencyConflictError
            raise IdempotencyPendingError
        if kept["print"] != print_:
            raise IdempotencyConflictError
        answer = kept["answer"]
        if answer.get("too_large"):
            raise IdempotencyPendingError(
                "it was carried out, and its answer was too large to be kept"
            )
        headers = [(name, value) for name, value in answer["headers"]]
        headers.append((b"idempotency-replayed", b"true"))
        reply = Reply(status=answer["status"], headers=headers, media=answer["media"])
        if "document" in answer:
            reply.document = answer["document"]
            reply.problem = answer.get("problem", False)
        return reply

    async def _keep(self, place: str, claim: dict[str, Any], answer: dict[str, Any]) -> None:
        state = self._services.own_state
        if len(encode(answer.get("document"))) > MAX_ANSWER:
            answer = {"too_large": True}
        with suppress(SpellError):  # the claim stays: who asks again hears that it is not known
            await state.set(
                SCOPE,
                place,
                claim | {"answer": answer},
                ttl=KEPT_S,
                state_class=StateClass.EPHEMERAL,
            )

    async def _forget(self, place: str, revision: Any) -> None:
        with suppress(SpellError):  # it ends by itself
            await self._services.own_state.delete(SCOPE, place, expected=revision)


def _fingerprint(call: Call, body: bytes) -> str:
    scope = call.scope
    told = b"\0".join(
        [
            scope["method"].encode(),
            scope.get("raw_path") or scope["path"].encode(),
            scope["query_string"],
            call.headers.get(b"content-type", b""),
            call.headers.get(b"if-match", b""),
            call.headers.get(b"if-none-match", b""),
            body,
        ]
    )
    return sha256(told).hexdigest()


def _of_reply(reply: Reply) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "status": reply.status,
        "headers": [list(pair) for pair in reply.headers],
        "media": reply.media,
    }
    if not reply.empty:
        answer["document"] = plain(reply.document)
    return answer


def _of_problem(problem: Problem) -> dict[str, Any]:
    return {
        "status": problem.status,
        "headers": [list(pair) for pair in problem.headers],
        "media": None,
        "problem": True,
        "document": problem.document,
    }
