"""What operators are told through a sidecar: its doctor, what there is, recorded runs of hooks.

As documents, which the command line prints. A `Spell` has no such methods: there `doctor` asks the
server itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from llmspell_dist.remote.client import RemoteSpell

__all__ = ["Operators"]

_ADMIN: Final = ("v1", "admin")
_HISTORY: Final = ("v1", "hooks", "history")
_PAGE: Final = 1000
_DIAGNOSIS_S: Final = 30.0


class Operators:
    """Asks a sidecar what it tells operators only: that needs the right to administer."""

    def __init__(self, spell: RemoteSpell) -> None:
        self._transport = spell._transport  # noqa: SLF001 - a part of that client

    @property
    def server(self) -> str:
        """The sidecar's address."""
        return self._transport.server

    async def doctor(self) -> dict[str, Any]:
        """Return what is wrong with the server behind the sidecar, as the sidecar finds it."""
        return await self._asked(*_ADMIN, "doctor", patience_s=_DIAGNOSIS_S)

    async def stat(self) -> dict[str, Any]:
        """Return how much the namespace holds, and how long its change log is."""
        return await self._asked(*_ADMIN, "stat")

    async def hook_runs(self, limit: int, **query: Any) -> list[dict[str, Any]]:
        """Return up to `limit` recorded runs, the newest first, page by page."""
        wanted = {name: value for name, value in query.items() if value is not None}
        wanted["newest_first"] = "true"
        found: list[dict[str, Any]] = []
        while len(found) < limit:
            size = min(limit - len(found), _PAGE)
            page = (await self._asked(*_HISTORY, query=wanted | {"limit": size}))["executions"]
            found += page
            if len(page) < size:
                break
            wanted["after"] = page[-1]["entry"]
        return found

    async def hook_run(self, execution_id: str) -> dict[str, Any]:
        """Return one recorded run; `ExecutionNotFoundError` if there is none."""
        return await self._asked(*_HISTORY, execution_id)

    async def _asked(self, *path: str, **how: Any) -> dict[str, Any]:
        answer = await self._transport.request("GET", path, **how)
        document: dict[str, Any] = answer.document
        return document
