"""Transactions through a sidecar: reads are asked of it, and one request commits.

What a transaction sees of its own changes is worked out here, as in the library. The commit carries
the revision of all that was read, and the changes as they were made: all of them or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llmspell_dist.classes import StateClass
from llmspell_dist.remote.documents import pack_list, pack_map, revision_of
from llmspell_dist.remote.driver import Ask, asked
from llmspell_dist.remote.writes import keeping, said_ack, said_ttl
from llmspell_dist.revision import Revision
from llmspell_dist.state.transactions import TransactionSteps

if TYPE_CHECKING:
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.partial import Partial
    from llmspell_dist.state.reads import Reads
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.state.writes import Writes
    from llmspell_dist.ttl import TTL

__all__ = ["RemoteTransactionSteps"]


class RemoteTransactionSteps(TransactionSteps):
    """One transaction, asked of a sidecar."""

    def __init__(self, core: Core, reads: Reads, writes: Writes, partial: Partial) -> None:
        super().__init__(core, reads, writes, partial)
        self._encode = core.values.codec.encode
        self._made: list[dict[str, bytes]] = []
        """The changes in their order, their parts encoded: what is changed later is another."""

    def set(
        self,
        scope: str | Scope,
        key: str,
        value: Any,
        ttl: TTL,
        state_class: StateClass | None,
        schema_version: int,
    ) -> None:
        """Set a key at the commit; a value that cannot be stored raises here."""
        super().set(scope, key, value, ttl, state_class, schema_version)
        scope_key = self.core.scope_key(scope)
        said = keeping(self.core, scope_key, key, ttl, state_class)
        resolved = self.core.rules.resolve(scope_key.scope, key, state_class)
        packed = self.core.values.encode_element(value, resolved, scope_key.scope.text, key)
        self._note("set", scope, key, {"schema_version": schema_version} | said, value=packed)

    def set_if_absent(
        self, scope: str | Scope, key: str, value: Any, ttl: TTL, state_class: StateClass | None
    ) -> None:
        """Set a key, and let the commit fail if it has a value by then."""
        super().set_if_absent(scope, key, value, ttl, state_class)  # which notes a set
        self._made[-1]["op"] = self._encode("set_if_absent")
        del self._made[-1]["schema_version"]

    def delete(self, scope: str | Scope, key: str) -> None:
        """Remove a key at the commit."""
        super().delete(scope, key)
        self._note("delete", scope, key, {})

    def increment(self, scope: str | Scope, key: str, by: float, ttl: TTL) -> None:
        """Add to a number at the commit, without reading it."""
        super().increment(scope, key, by, ttl)
        self._note("increment", scope, key, {"by": by} | _said(ttl))

    def append(self, scope: str | Scope, key: str, items: tuple[Any, ...], ttl: TTL) -> None:
        """Add elements to a list at the commit, without reading it."""
        super().append(scope, key, items, ttl)
        scope_key = self.core.scope_key(scope)
        elements = self.partial.elements(scope_key, key, items, StateClass.STANDARD)
        self._note("append", scope, key, _said(ttl), items=pack_list(elements))

    def merge(
        self,
        scope: str | Scope,
        key: str,
        mapping: Mapping[Any, Any],
        remove: Iterable[Any],
        ttl: TTL,
    ) -> None:
        """Set and remove fields of a map at the commit, without reading it."""
        remove = remove if isinstance(remove, str | bytes) else list(remove)
        super().merge(scope, key, mapping, remove, ttl)
        scope_key = self.core.scope_key(scope)
        fields = pack_map(self.partial.fields(scope_key, key, mapping, StateClass.STANDARD))
        removed = pack_list(self.partial.removals(remove))
        self._note("merge", scope, key, _said(ttl), fields=fields, remove=removed)

    def expire(self, scope: str | Scope, key: str, ttl: TTL) -> None:
        """Let a key end after `ttl` from the commit on; None lets it stay."""
        super().expire(scope, key, ttl)
        seconds = said_ttl(ttl)
        self._note("expire", scope, key, {"ttl": None if seconds == "none" else seconds})

    def _note(
        self, op: str, scope: str | Scope, key: str, said: Mapping[str, Any], **packed: bytes
    ) -> None:
        """Remember a change as it was made."""
        text = self.core.scope_key(scope).scope.text
        whole = {"op": op, "scope": text, "key": key, **said}
        self._made.append({part: self._encode(value) for part, value in whole.items()} | packed)

    def commit(self) -> Steps[Revision | None]:
        """Carry everything out, or raise and change nothing."""
        self._check_open()
        self.closed = True
        if not self._made and not self._expected:
            return None
        encode = self._encode
        reads = [
            {"scope": scope.scope.text, "key": key, "revision": revision and str(revision)}
            for (scope, key), revision in self._expected.items()
        ]
        body = {encode(name): encode(value) for name, value in said_ack(self.ack).items()}
        body[encode("reads")] = encode(reads)
        made = [pack_map({encode(part): one for part, one in op.items()}) for op in self._made]
        body[encode("operations")] = pack_list(made)
        ask = Ask("POST", ("v1", "transactions"), packed=pack_map(body))
        answer = yield from asked(ask)
        self.revision = revision_of(answer.document["revision"])
        return self.revision


def _said(ttl: TTL) -> dict[str, Any]:
    seconds = said_ttl(ttl)
    return {} if seconds is None else {"ttl": seconds}
