"""The change log through a sidecar: how long it is, who holds it; its entries come by watches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.log import LogStat, check_hold
from llmspell_dist.remote.documents import revision_of
from llmspell_dist.remote.errors import NotThroughSidecarError
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.remote.transport import Transport

__all__ = ["ABSENT", "RemoteLog"]

_ADMIN: Final = ("v1", "admin")
_GONE: Final = frozenset({"NOT_FOUND"})
ABSENT: Final[Mapping[str, str]] = {
    "entries": "watch scopes from a revision on instead, which shows what the caller may read",
    "hold": "it is for who ships the log; the sidecar itself does so with --archive",
}
"""What a `ChangeLog` has and a client of a sidecar has not, and why."""


class RemoteLog:
    """The change log of a namespace, through a sidecar; it needs the right to administer."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __repr__(self) -> str:
        return f"<{type(self).__name__} through {self._transport.server}>"

    def __getattr__(self, name: str) -> Any:
        if name in ABSENT:
            raise NotThroughSidecarError(f"log.{name}", ABSENT[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    async def stat(self, *, shard: str = "0") -> LogStat:
        """Return how much the log holds, where it begins, and who holds it."""
        found = (await self._transport.request("GET", (*_ADMIN, "stat"))).document["log"]
        for one in found:
            if one["shard"] == shard:
                return _stat_of(one)
        rule = f"must be one of {', '.join(one['shard'] for one in found)}"
        raise InvalidArgumentError("shard", shard, rule)

    async def release(self, name: str) -> None:
        """Let entries be trimmed again."""
        check_hold(name)
        await self._transport.request("DELETE", (*_ADMIN, "log-holds", name), accept=_GONE)

    async def trim(self) -> int:
        """Shorten the log to its retention now; return how many entries went.

        What has expired is removed with it. Some process of the fleet does both every second
        anyway.
        """
        answer = await self._transport.request("POST", (*_ADMIN, "housekeeping"))
        trimmed: int = answer.document["trimmed"]
        return trimmed


def _stat_of(document: Mapping[str, Any]) -> LogStat:
    return LogStat(
        document["shard"],
        document["entries"],
        revision_of(document["floor"]),
        revision_of(document["last"]),
        _by_name(document["holds"]),
        _by_name(document["broken"]),
    )


def _by_name(document: Mapping[str, str]) -> dict[str, Revision]:
    return {name: Revision.parse(at) for name, at in document.items()}
