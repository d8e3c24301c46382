"""Who may use the sidecar: what the access file says now, and whom a request comes from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Final

from llmspell_dist.sidecar.auth.clocks import Clocks
from llmspell_dist.sidecar.auth.entries import Entries, KeySource
from llmspell_dist.sidecar.auth.errors import AccessFileError, UnsafeBindError
from llmspell_dist.sidecar.auth.files import FileWatch
from llmspell_dist.sidecar.auth.grants import ALL, Principal
from llmspell_dist.sidecar.auth.jwks import JWKSError
from llmspell_dist.sidecar.auth.keysets import KeySet
from llmspell_dist.sidecar.auth.peers import Peer
from llmspell_dist.sidecar.auth.reading import read_entries
from llmspell_dist.sidecar.auth.rules import Rules
from llmspell_dist.sidecar.auth.sources import is_loopback

__all__ = ["Access"]

logger = logging.getLogger("llmspell_dist.sidecar.auth")

_LOOK_EVERY_S: Final = 1.0


class Access:
    """Tells whom a request comes from, by an access file that is read again when it changes.

    `load` for a file, `open_on_loopback` for none. `check_bind` before an address is served; a
    later state of the file that would break that promise is not taken over. For one event loop.
    """

    def __init__(self, file: FileWatch | None, rules: Rules, *, clocks: Clocks) -> None:
        self._file = file
        self._rules = rules
        self._clocks = clocks
        self._looked = clocks.monotonic()
        self._bound: list[str] = []
        self._problem: str | None = None

    @classmethod
    def load(cls, path: str | PathLike[str], *, clocks: Clocks | None = None) -> Access:
        """Return the access that the file at `path` describes. Blocks.

        Raises AccessFileError, which names file, entry and rule, for any mistake in it. Keys behind
        a URL are fetched later: a sidecar starts whether or not the issuer is there.
        """
        clocks = clocks or Clocks()
        file = FileWatch(Path(path), now_ns=clocks.now_ns)
        rules = _rules(file.read(), file.path, {}, clocks)
        return cls(file, rules, clocks=clocks)

    @classmethod
    def open_on_loopback(cls) -> Access:
        """Return the access without a file: everybody may do everything, on this machine only."""
        return cls(None, Rules(Entries(anonymous=ALL), {}, clocks=Clocks()), clocks=Clocks())

    @property
    def is_open(self) -> bool:
        """Whether there is no access file: nobody has to say who they are."""
        return self._file is None

    @property
    def requires_credentials(self) -> bool:
        """Whether a request without credentials, from an unknown peer, is refused."""
        return self._rules.entries.anonymous is None

    @property
    def problem(self) -> str | None:
        """What is wrong now, while what was known before goes on working; None if all is well."""
        problems = [keys.problem for keys in self._rules.keysets.values()]
        found = [problem for problem in (self._problem, *problems) if problem]
        return "; ".join(found) or None

    # -- requests

    def cached(self, authorization: str | None, peer: Peer | None = None) -> Principal | None:
        """Return the principal if it can be told without waiting; None: `authenticate` knows."""
        if self._file is None:
            return ALL
        return self._rules.known(authorization, peer)

    async def authenticate(self, authorization: str | None, peer: Peer | None = None) -> Principal:
        """Return whom the request comes from.

        `authorization`: the header's one value, None if there is none. `peer`: of a unix socket.
        Raises UnauthenticatedError, whose message is for the client and `reason` for the log;
        KeysUnavailableError, a kind of it, if a JWT's keys cannot be had now.
        """
        while True:
            found = self.cached(authorization, peer)
            if found is not None:
                return found
            rules = self._rules
            principal = await rules.authenticate(authorization, peer)
            if rules is self._rules:
                return principal
            # The file changed while keys were fetched: what counts is what it says now.

    # -- where it may be served

    def check_bind(self, host: str) -> None:
        """Raise UnsafeBindError if strangers could reach `host` and need no credentials there.

        Loopback addresses, ``localhost`` and unix sockets (a path, or ``unix:`` and one) are never
        unsafe; every other host is taken for one that strangers reach.
        """
        self._check(host, self._rules.entries)
        self._bound.append(host)

    def _check(self, host: str, entries: Entries) -> None:
        if entries.anonymous is None or host.startswith(("/", "unix:")) or is_loopback(host):
            return
        if self._file is None:
            raise UnsafeBindError(host, "give it an access file, so that callers need credentials")
        raise UnsafeBindError(host, f"{self._file.path} grants rights to anonymous callers")

    # -- changes

    async def refresh_forever(
        self, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        """Call `refresh` each second until cancelled."""
        while True:
            try:
                await self.refresh()
            except Exception:  # or revoked tokens would be good until a restart
                logger.exception("looking for a new access file failed")
            await sleep(_LOOK_EVERY_S)

    async def refresh(self) -> None:
        """Take over what changed in the access file and in the issuers' keys, at most each second.

        A file that is broken, gone, or unsafe where it is served changes nothing: `problem` and the
        log tell of it.
        """
        now = self._clocks.monotonic()
        if self._file is None or now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        try:
            rules = await asyncio.to_thread(self._look, self._file)
            if rules is not None:
                for host in self._bound:
                    self._check(host, rules.entries)
                self._rules = rules
                self._problem = None
                logger.info("access file %s: read again", self._file.path)
        except (AccessFileError, UnsafeBindError) as error:
            if str(error) != self._problem:
                logger.error(  # noqa: TRY400 - the error says it all
                    "access file not taken over, the old one stays: %s", error
                )
            self._problem = str(error)
            # What is wrong may be another file that this one names: it is read until it is right.
            self._file.forget()
        for keys in tuple(self._rules.keysets.values()):
            await keys.refresh()

    def _look(self, file: FileWatch) -> Rules | None:
        content = file.changed()
        if content is None:
            return None
        return _rules(content, file.path, self._rules.keysets, self._clocks)


def _rules(content: bytes, path: Path, known: Mapping[KeySource, KeySet], clocks: Clocks) -> Rules:
    entries = read_entries(content, path)
    keysets: dict[KeySource, KeySet] = {}
    for at, issuer in enumerate(entries.issuers):
        if issuer.source in keysets:
            continue
        keys = known.get(issuer.source)
        if keys is None:
            keys = KeySet(issuer.source, clocks=clocks)
            try:
                keys.load_file()
            except JWKSError as error:
                raise AccessFileError(
                    str(path), f"jwt[{at}] ({issuer.name}).jwks", f"{issuer.source} {error}"
                ) from None
        keysets[issuer.source] = keys
    return Rules(entries, keysets, clocks=clocks)
