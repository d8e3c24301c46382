"""Whole scopes through a sidecar: pages of keys and scopes, clearing, copying, moving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.remote.driver import Ask, asked
from llmspell_dist.remote.reads import scope_path
from llmspell_dist.scope import Scope, ScopeKind
from llmspell_dist.state.model import Page
from llmspell_dist.state.scopes import Scopes, glob_of, kind_of, split_cursor

if TYPE_CHECKING:
    from llmspell_dist.state.steps import Steps

__all__ = ["RemoteScopes"]


class RemoteScopes(Scopes):
    """The operations on whole scopes, asked of a sidecar."""

    def keys_page(
        self,
        scope: str | Scope,
        cursor: str | None,
        limit: int,
        prefix: str | None,
        match: str | None,
    ) -> Steps[Page[str]]:
        """Return some keys of a scope, in no order."""
        document = yield from self._page("keys", scope, cursor, limit, prefix, match)
        return Page(document["keys"], document["cursor"])

    def items_page(
        self,
        scope: str | Scope,
        cursor: str | None,
        limit: int,
        prefix: str | None,
        match: str | None,
    ) -> Steps[Page[tuple[str, Any]]]:
        """Return some keys of a scope with their values, in no order."""
        document = yield from self._page("items", scope, cursor, limit, prefix, match)
        return Page([(key, value) for key, value in document["items"]], document["cursor"])

    def _page(
        self,
        what: str,
        scope: str | Scope,
        cursor: str | None,
        limit: int,
        prefix: str | None,
        match: str | None,
    ) -> Steps[Any]:
        path = scope_path(self.core.scope_key(scope), what)
        split_cursor(cursor, limit)
        glob_of(prefix, match)
        query = {"cursor": cursor, "limit": limit, "prefix": prefix, "match": match}
        return (yield from asked(Ask("GET", path, query))).document

    def every_page(
        self, cursor: str | None, limit: int, kind: ScopeKind | str | None, prefix: str | None
    ) -> Steps[Page[Scope]]:
        """Return some scopes that have keys, in no order."""
        split_cursor(None, limit)
        glob_of(prefix, None)
        if cursor is not None and not isinstance(cursor, str):
            raise InvalidArgumentError("cursor", cursor, "must be one that a page returned")
        wanted = None if kind is None else str(kind_of(kind))
        query = {"cursor": cursor, "limit": limit, "kind": wanted, "prefix": prefix}
        document = (yield from asked(Ask("GET", ("v1", "scopes"), query))).document
        return Page([Scope.parse(text) for text in document["scopes"]], document["cursor"])

    # --- clearing, copying, moving

    def clear(self, scope: str | Scope) -> Steps[int]:
        """Remove every key of a scope in one step; how many there were."""
        path = scope_path(self.core.scope_key(scope), "clear")
        return int((yield from asked(Ask("POST", path))).document["count"])

    def transfer(self, source: str | Scope, target: str | Scope, move: bool) -> Steps[int]:
        """Copy or move every key of a scope to another of its shard; how many."""
        path = scope_path(self.core.scope_key(source), "move" if move else "copy")
        body = {"target": self.core.scope_key(target).scope.text}
        return int((yield from asked(Ask("POST", path, document=body))).document["count"])
