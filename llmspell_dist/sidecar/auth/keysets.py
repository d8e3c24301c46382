"""The keys of an issuer, kept and renewed without ever blocking the loop.

Keys are asked for again when a token names an unknown one, at most every 30 s however many do, and
every 5 minutes anyhow, so that a key that its issuer took back stops working. While the source is
away the keys that are known go on working, for a day.
"""

from __future__ import annotations

import asyncio
import logging
from hashlib import sha256
from typing import Final

from llmspell_dist.errors import mask_secrets
from llmspell_dist.sidecar.auth.clocks import Clocks
from llmspell_dist.sidecar.auth.entries import KeySource
from llmspell_dist.sidecar.auth.errors import AccessFileError, KeysUnavailableError
from llmspell_dist.sidecar.auth.fetching import fetch
from llmspell_dist.sidecar.auth.files import FileWatch
from llmspell_dist.sidecar.auth.jwks import JWKSError, PublicKey, parse_jwks

__all__ = ["KeySet"]

logger = logging.getLogger("llmspell_dist.sidecar.auth")

_AGAIN_S: Final = 30.0
_AGAIN_WITHOUT_KEYS_S: Final = 2.0
_AGAIN_FILE_S: Final = 0.5
_RENEW_S: Final = 300.0
_KEEP_S: Final = 86_400.0


class KeySet:
    """The public keys of one source."""

    def __init__(self, source: KeySource, *, clocks: Clocks) -> None:
        self.source = source
        self.generation = 0
        """Grows when the keys change: what an earlier one verified is verified again."""
        self.problem: str | None = None
        """Why the source was of no use the last time that it was asked."""
        self._clocks = clocks
        self._keys: tuple[PublicKey, ...] = ()
        self._content = b""
        self._asked = self._confirmed = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._file = None
        if source.path is not None:
            self._file = FileWatch(source.path, now_ns=clocks.now_ns)

    def load_file(self) -> None:
        """Read the keys if they lie in a file; `JWKSError` or `AccessFileError`. Blocks."""
        if self._file is not None:
            self._asked = self._clocks.monotonic()
            self._take(self._file.read())

    async def candidates(self, kid: str | None, algorithm: str) -> tuple[PublicKey, ...]:
        """Return the keys that a token may have been signed with; the source is asked if need be.

        Raises KeysUnavailableError if there are no keys at all.
        """
        found = self._matching(kid, algorithm)
        if found and not self._too_old():
            return found
        await self.ask()
        if not self._keys or self._too_old():
            raise KeysUnavailableError(f"keys: {self.problem or 'not there yet'}")
        return self._matching(kid, algorithm)

    async def refresh(self) -> None:
        """Ask the source if it is time to. Only a file is waited for."""
        due = self._clocks.monotonic() - self._confirmed >= _RENEW_S
        if self._file is not None:
            await self.ask()
        elif due:
            self._ask()

    async def ask(self) -> None:
        """Ask the source, unless it was asked just now; callers at the same time share it."""
        task = self._ask()
        if task is not None:
            # A caller that goes away must not take the answer with it from those that wait too.
            await asyncio.shield(task)

    def _ask(self) -> asyncio.Task[None] | None:
        if self._asking is not None:
            return self._asking
        now = self._clocks.monotonic()
        if now - self._asked < self._interval():
            return None
        self._asked = now
        self._asking = asyncio.create_task(self._ask_once(), name="llmspell-jwks")
        return self._asking

    def _interval(self) -> float:
        if self._file is not None:
            return _AGAIN_FILE_S
        return _AGAIN_S if self._keys else _AGAIN_WITHOUT_KEYS_S

    async def _ask_once(self) -> None:
        try:
            if self._file is not None:
                content = await asyncio.to_thread(self._file.changed)
            else:
                content = await asyncio.to_thread(
                    fetch, self.source, monotonic=self._clocks.monotonic
                )
            if content is not None:
                self._take(content)
            elif self.problem is None:
                self._confirmed = self._clocks.monotonic()
        except (JWKSError, AccessFileError) as error:
            self._complain(error)
        finally:
            self._asking = None

    def _complain(self, error: Exception) -> None:
        text = error.rule if isinstance(error, AccessFileError) else str(error)
        problem = mask_secrets(f"{self.source} {text}")
        if problem != self.problem:
            logger.error("JWT keys: %s", problem)
        self.problem = problem

    def _take(self, content: bytes) -> None:
        digest = sha256(content).digest()
        if digest != self._content:
            self._keys = parse_jwks(content)
            self._content = digest
            self.generation += 1
            logger.info("JWT keys: %d from %s", len(self._keys), mask_secrets(str(self.source)))
        self._confirmed = self._clocks.monotonic()
        self.problem = None

    def _too_old(self) -> bool:
        return self._clocks.monotonic() - self._confirmed > _KEEP_S

    def _matching(self, kid: str | None, algorithm: str) -> tuple[PublicKey, ...]:
        fitting = tuple(key for key in self._keys if algorithm in key.algorithms)
        if kid is None:  # only where there is no choice
            return fitting if len(fitting) == 1 else ()
        return tuple(key for key in fitting if key.kid == kid)
