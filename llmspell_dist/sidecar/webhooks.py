"""Webhook hooks: a hook in another program, asked over HTTP what is to become of an operation.

They run in this sidecar, for what is done through it, or for the whole fleet. A registration lasts
as long as the sidecar; an app registers its own when it starts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.hooks.errors import HookNotFoundError
from llmspell_dist.hooks.points import point_of
from llmspell_dist.hooks.secrets import SecretRule
from llmspell_dist.jsonable import from_json, to_json
from llmspell_dist.sidecar.webhook_documents import context_document, result_from
from llmspell_dist.sidecar.webhook_errors import WebhookError
from llmspell_dist.sidecar.webhook_urls import check_url, public_part
from llmspell_dist.state.driver import driver_of

if TYPE_CHECKING:
    from llmspell_dist.hooks import HookContext, HookResult, RegisteredHook
    from llmspell_dist.sidecar.services import Services
    from llmspell_dist.sidecar.webhook_calls import WebhookCalls

__all__ = ["Webhook", "WebhookTerms", "Webhooks"]

logger = logging.getLogger("llmspell_dist.sidecar")

SIGNATURE: Final = "LLMSpell-Signature"
DELIVERY: Final = "LLMSpell-Delivery"
_RETRY_AFTER_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class WebhookTerms:
    """Where a webhook goes and how."""

    name: str
    point: str
    url: str = field(repr=False)
    secret: str | None = field(default=None, repr=False)
    timeout: float = 2.0
    on_failure: str = "ignore"
    priority: int = 0
    queued: bool = False
    retries: int = 0
    secrets: bool = False
    """Whether values of keys of an encrypted class are sent too."""

    @property
    def where(self) -> str:
        """Scheme and host, which are no secret."""
        return public_part(self.url)


class Webhook:
    """The hook itself: sends the context, and returns what is answered."""

    def __init__(
        self,
        terms: WebhookTerms,
        calls: WebhookCalls,
        is_secret: Callable[[HookContext], bool],
        *,
        now: Callable[[], float] = time,
    ) -> None:
        self.terms = terms
        self._calls = calls
        self._is_secret = is_secret
        self._now = now
        self._sent = 0
        self._retried = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.terms.name!r} at {self.terms.point}>"

    def stats(self) -> dict[str, int]:
        """Return what it counts beside what every hook does."""
        return {"sent": self._sent, "retried": self._retried}

    async def execute(self, context: HookContext) -> HookResult:
        """Ask the receiver. Raises `WebhookError`: what that means is the hook's policy."""
        terms = self.terms
        secret = not terms.secrets and self._is_secret(context)
        document = context_document(terms.name, context, secret=secret)
        body = msgspec.json.encode(to_json(document))
        answer = await self._asked(context.id, body)
        if not answer.strip():
            return result_from(None)
        try:
            return result_from(from_json(msgspec.json.decode(answer)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise WebhookError(terms.where, "did not answer with JSON") from None
        except (InvalidArgumentError, TypeError) as error:
            raise WebhookError(terms.where, f"answered what is no result: {error}") from None

    async def _asked(self, delivery: str, body: bytes) -> bytes:
        left = self.terms.retries
        while True:
            self._sent += 1
            try:
                return await self._calls.post(self.terms.url, body, self._headers(delivery, body))
            except WebhookError as error:
                if not left or not error.worth_retrying:
                    raise
            left -= 1
            self._retried += 1
            await asyncio.sleep(_RETRY_AFTER_S)

    def _headers(self, delivery: str, body: bytes) -> dict[str, str]:
        headers = {
            "content-type": "application/json",
            "user-agent": "llmspell-dist",
            DELIVERY: delivery,
        }
        if self.terms.secret is not None:
            from llmspell_dist.sidecar.webhook_calls import signature  # noqa: PLC0415 - as below

            headers[SIGNATURE] = signature(self.terms.secret, int(self._now()), body)
        return headers


class Webhooks:
    """The webhooks of one sidecar."""

    def __init__(self, services: Services) -> None:
        self._spell = services.spell
        self._allowed = services.settings.webhook_hosts
        self._calls: WebhookCalls | None = None
        self._hooks: dict[tuple[str, str], tuple[RegisteredHook, bool]] = {}
        self._lock = asyncio.Lock()
        self._is_secret = SecretRule(driver_of(services.spell).core.rules)
        services.ending.append(self.close)

    def all(self) -> list[tuple[WebhookTerms, RegisteredHook, bool]]:
        """Return each with its hook, and whether it runs for the fleet."""
        return [(hook.hook.terms, hook, fleet) for hook, fleet in self._hooks.values()]

    async def put(self, terms: WebhookTerms, *, fleet: dict[str, Any] | None) -> RegisteredHook:
        """Register a webhook, in place of the one of that name at that point."""
        place = point_of(terms.point), terms.name
        check_url(terms.url, self._allowed)
        hooks = self._spell.hooks
        how: dict[str, Any] = {
            "name": terms.name,
            "priority": terms.priority,
            "timeout": terms.timeout,
            "on_failure": terms.on_failure,
            "queued": terms.queued,
            "language": "http",
        }
        async with self._lock:
            webhook = Webhook(terms, self._opened(), self._is_secret)
            async with self._replacing(place):
                if fleet is None:
                    hook = hooks.register(place[0], webhook, **how)
                else:
                    how["timeout"] = max(terms.timeout, fleet.pop("timeout", terms.timeout))
                    hook = await hooks.fleet.add(place[0], webhook, **how, **fleet)
            self._hooks[place] = hook, fleet is not None
        return hook

    async def remove(self, point: str, name: str) -> bool:
        """Take a webhook away; return whether there was one."""
        place = point_of(point), name
        async with self._lock:
            found = self._hooks.pop(place, None)
            if found is None:
                return False
            await self._take_away(place, *found)
        return True

    async def _take_away(self, place: tuple[str, str], hook: RegisteredHook, fleet: bool) -> None:
        point, name = place
        try:
            if fleet:
                await self._spell.hooks.fleet.remove(name, point)
                there = True
            else:  # what the program put in its place stays
                there = self._spell.hooks.discard(hook)
        except HookNotFoundError:
            there = False
        except SpellError as error:
            said = "webhook %s at %s is away, but the fleet could not be told: %s"
            logger.warning(said, hook.name, point, error)
            return
        if not there:
            logger.info("webhook %s at %s was away already", hook.name, point)

    @asynccontextmanager
    async def _replacing(self, place: tuple[str, str]) -> AsyncIterator[None]:
        """Have the webhook of a place away, if there is one; if the block raises it is back."""
        (point, name), hooks = place, self._spell.hooks
        async with AsyncExitStack() as stack:
            hook, fleet = self._hooks.get(place, (None, False))
            if fleet:
                with suppress(HookNotFoundError):  # the program took it away
                    await stack.enter_async_context(hooks.fleet.replacing(name, point))
            elif hook is not None and hooks.find(name, point) is hook:
                stack.enter_context(hooks.replacing(name, point))
            yield

    def _opened(self) -> WebhookCalls:
        # Loaded where somebody uses it: it takes memory.
        from llmspell_dist.sidecar.webhook_calls import WebhookCalls  # noqa: PLC0415

        if self._calls is None:
            self._calls = WebhookCalls(self._allowed)
        return self._calls

    async def close(self) -> None:
        """Take all of them away."""
        for point, name in tuple(self._hooks):
            await self.remove(point, name)
        calls, self._calls = self._calls, None
        if calls is not None:
            await calls.close()
