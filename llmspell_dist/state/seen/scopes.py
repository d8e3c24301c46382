"""Operations on whole scopes, looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmspell_dist.scope import Scope
from llmspell_dist.state.interception import StateCall, arguments_of
from llmspell_dist.state.model import Page
from llmspell_dist.state.scopes import Scopes
from llmspell_dist.state.seen.seam import Seam, listing, looked_at

if TYPE_CHECKING:
    from llmspell_dist.scope import ScopeKind
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.interception import Interceptor
    from llmspell_dist.state.seen.reads import SeenReads
    from llmspell_dist.state.steps import Steps

__all__ = ["SeenScopes"]


class SeenScopes(Scopes):
    """Operations on whole scopes, looked at."""

    def __init__(self, core: Core, reads: SeenReads, interceptor: Interceptor) -> None:
        super().__init__(core, reads.plain_reads)
        self._plain = Scopes(core, reads.plain_reads)
        self.seam = Seam(core, interceptor, self._plain)

    clear = looked_at(writes=True)(Scopes.clear)

    def keys_page(
        self,
        scope: str | Scope,
        cursor: str | None,
        limit: int,
        prefix: str | None,
        match: str | None,
    ) -> Steps[Page[str]]:
        """Return some keys of a scope, in no order."""
        plain = self._plain.keys_page
        if not self.seam.reads():
            return plain(scope, cursor, limit, prefix, match)
        given = {"scope": scope, "cursor": cursor, "limit": limit}
        given |= {"prefix": prefix, "match": match}
        call = self.seam.call("keys_page", False, plain, given)
        call.seen, call.put, call.fits = _items_of, _with_items, _are_keys
        return self.seam.interceptor.around(call)

    def items_page(
        self,
        scope: str | Scope,
        cursor: str | None,
        limit: int,
        prefix: str | None,
        match: str | None,
    ) -> Steps[Page[tuple[str, Any]]]:
        """Return some keys of a scope with their values, in no order."""
        plain = self._plain.items_page
        if not self.seam.reads():
            return plain(scope, cursor, limit, prefix, match)
        given = {"scope": scope, "cursor": cursor, "limit": limit}
        given |= {"prefix": prefix, "match": match}
        return self._items_page(self.seam.call("items_page", False, plain, given))

    def _items_page(self, call: StateCall) -> Steps[Page[tuple[str, Any]]]:
        following: list[str | None] = []

        def items(page: Page[tuple[str, Any]]) -> list[tuple[str, Any]]:
            following.append(page.cursor)
            return page.items

        found = yield from listing(self.seam, call, items, list)
        if not following:  # it was not carried out
            return found if isinstance(found, Page) else Page(list(found), None)
        return Page(found, following[-1])

    def scopes_page(
        self,
        shard: str,
        cursor: str | None,
        limit: int,
        kind: ScopeKind | str | None,
        prefix: str | None,
    ) -> Steps[Page[Scope]]:
        """Return some scopes of a shard that have keys, in no order."""
        plain = self._plain.scopes_page
        if not self.seam.reads():
            return plain(shard, cursor, limit, kind, prefix)
        data = {"shard": shard, "cursor": cursor, "limit": limit, "kind": kind, "prefix": prefix}
        call = StateCall(
            *("scopes", False, dict(data), lambda given: plain(*arguments_of(given, data))),
            self.seam.perform,
        )
        call.seen, call.put, call.fits = _items_of, _with_items, _are_scopes
        return self.seam.interceptor.around(call)

    def transfer(self, source: str | Scope, target: str | Scope, move: bool) -> Steps[int]:
        """Copy or move every key of a scope to another of its shard; how many."""
        plain = self._plain.transfer
        if not self.seam.writes():
            return plain(source, target, move)
        to = self.core.scope_key(target).scope.text

        def transferred(scope: str, target: str) -> Steps[int]:
            return plain(scope, target, move)

        name = "move_scope" if move else "copy_scope"
        given = {"scope": source, "target": to}
        return self.seam.interceptor.around(self.seam.call(name, True, transferred, given))


def _items_of(page: Page[Any]) -> list[Any]:
    return page.items


def _with_items(page: Page[Any] | None, items: Any) -> Page[Any]:
    return Page(items, None if page is None else page.cursor)


def _are_keys(answer: Any) -> str | None:
    fits = isinstance(answer, list) and all(type(one) is str for one in answer)
    return None if fits else "a list of keys"


def _are_scopes(answer: Any) -> str | None:
    fits = isinstance(answer, list) and all(isinstance(one, Scope) for one in answer)
    return None if fits else "a list of Scope"
