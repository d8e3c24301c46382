"""Reading through a sidecar: the library's reading steps, asked of it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.remote.documents import change_of, found_of, record_of, revision_of
from llmspell_dist.remote.driver import Ask, asked
from llmspell_dist.revision import Revision
from llmspell_dist.state.core import checked_keys, field_of
from llmspell_dist.state.history import MAX_ENTRIES, History, moment_of
from llmspell_dist.state.model import Change, Record, ScopeStat, Snapshot
from llmspell_dist.state.reads import Found, Reads
from llmspell_dist.typed import from_builtin

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.remote.transport import Answer
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.steps import Steps

__all__ = ["RemoteHistory", "RemoteReads", "key_path", "scope_path"]

GONE: Final = frozenset({"NOT_FOUND"})


def key_path(scope: ScopeKey, key: str, *more: str) -> tuple[str, ...]:
    """Return the path of a key, which is checked."""
    field_of(scope, key)
    return ("v1", "state", scope.scope.text, key, *more)


def scope_path(scope: ScopeKey, *more: str) -> tuple[str, ...]:
    """Return the path of a scope."""
    return ("v1", "scopes", scope.scope.text, *more)


def is_absent(answer: Answer) -> bool:
    """Whether there is no value."""
    return answer.status == 404


class RemoteReads(Reads):
    """The reading operations, asked of a sidecar."""

    # --- one key

    def get_request(self, scope: str | Scope, key: str) -> Any:
        """Return the request whose answer `plain` or `get` read."""
        return Ask("GET", key_path(self.core.scope_key(scope), key), accept=GONE)

    def plain(self, raw: Any) -> Any:
        """Return the value that was answered."""
        return raw.document

    def get(
        self,
        scope: str | Scope,  # noqa: ARG002 - as the parent's
        key: str,  # noqa: ARG002
        raw: Any,
        default: Any,  # noqa: ARG002
        as_type: type | None,
    ) -> Steps[Any]:
        """Return the value that was answered, as its type."""
        yield from ()
        return raw.document if as_type is None else from_builtin(as_type, raw.document)

    def get_record(
        self, scope: str | Scope, key: str, as_type: type | None
    ) -> Steps[Record | None]:
        """Return the value of a key with all that is known about it."""
        answer = yield from self._record(scope, key)
        if is_absent(answer):
            return None
        document = answer.document
        if as_type is not None:
            document = document | {"value": from_builtin(as_type, document["value"])}
        return record_of(document, key)

    def find(self, scope: str | Scope, key: str) -> Steps[Found | None]:
        """Return the live record of a key."""
        answer = yield from self._record(scope, key)
        return None if is_absent(answer) else found_of(answer.document)

    def _record(self, scope: str | Scope, key: str) -> Steps[Answer]:
        path = key_path(self.core.scope_key(scope), key)
        return (yield from asked(Ask("GET", path, {"record": True}, accept=GONE)))

    def exists(self, scope: str | Scope, key: str) -> Steps[bool]:
        """Whether a key has a value."""
        path = key_path(self.core.scope_key(scope), key)
        answer = yield from asked(Ask("HEAD", path, accept=GONE))
        return not is_absent(answer)

    def get_slice(
        self, scope: str | Scope, key: str, start: int, stop: int | None
    ) -> Steps[list[Any]]:
        """Return some elements of a list, without reading the others."""
        path = key_path(self.core.scope_key(scope), key, "slice")
        for name, value in (("start", start), ("stop", stop)):
            if value is not None and type(value) is not int:
                raise InvalidArgumentError(name, value, "must be an int")
        answer = yield from asked(Ask("GET", path, {"start": start, "stop": stop}))
        items: list[Any] = answer.document
        return items

    # --- many keys

    def get_many(
        self, scope: str | Scope, keys: Iterable[str], as_type: type | None
    ) -> Steps[dict[str, Any]]:
        """Return the values of those of the keys that have one."""
        scope_key = self.core.scope_key(scope)
        fields = checked_keys(scope_key, keys)
        if not fields:
            return {}
        document = yield from self._many(scope_key, fields, False)
        values: dict[str, Any] = document["values"]
        if as_type is None:
            return values
        return {key: from_builtin(as_type, value) for key, value in values.items()}

    def find_many(self, scope: ScopeKey, fields: dict[str, bytes]) -> Steps[dict[str, Found]]:
        """Return the live records of a batch of keys."""
        if not fields:
            return {}
        document = yield from self._many(scope, fields, True)
        return {key: found_of(one) for key, one in document["records"].items()}

    def _many(self, scope: ScopeKey, fields: dict[str, bytes], records: bool) -> Steps[Any]:
        body = {"keys": list(fields), "records": records}
        path = scope_path(scope, "get-many")
        answer = yield from asked(Ask("POST", path, document=body, idempotent=True))
        return answer.document

    # --- whole scopes

    def get_all(self, scope: str | Scope) -> Steps[dict[str, Any]]:
        """Everything in a scope of at most 1,000 keys and 1 MiB, as of one moment."""
        path = scope_path(self.core.scope_key(scope), "values")
        answer = yield from asked(Ask("GET", path))
        values: dict[str, Any] = answer.document["values"]
        return values

    def snapshot(self, scope: str | Scope) -> Steps[Snapshot]:
        """As `get_all`, with the revision of that moment."""
        scope_key = self.core.scope_key(scope)
        document = (yield from asked(Ask("GET", scope_path(scope_key)))).document
        revision = Revision.parse(document["revision"])
        return Snapshot(scope_key.scope.text, revision, document["values"])

    def count(self, scope: str | Scope) -> Steps[int]:
        """How many keys a scope has."""
        path = scope_path(self.core.scope_key(scope), "count")
        return int((yield from asked(Ask("GET", path))).document["count"])

    def stat(self, scope: str | Scope) -> Steps[ScopeStat]:
        """How much lies in a scope."""
        path = scope_path(self.core.scope_key(scope), "stat")
        found = (yield from asked(Ask("GET", path))).document
        return ScopeStat(
            found["scope"],
            found["keys"],
            found["bytes"],
            revision_of(found["revision"]),
            found["schema_version"],
            found["fence"],
        )


class RemoteHistory(History):
    """The past, asked of a sidecar."""

    def history(self, scope: str | Scope, key: str, limit: int) -> Steps[list[Change]]:
        """Return the last changes of a key, newest first."""
        if type(limit) is not int or not 1 <= limit <= MAX_ENTRIES:
            raise InvalidArgumentError("limit", limit, f"must be an int from 1 to {MAX_ENTRIES:,}")
        path = key_path(self.core.scope_key(scope), key, "history")
        answer = yield from asked(Ask("GET", path, {"limit": limit}))
        return [change_of(one) for one in answer.document["changes"]]

    def get_at(
        self, scope: str | Scope, key: str, at: Revision | datetime, default: Any
    ) -> Steps[Any]:
        """Return the value that a key had at a revision or (server) time."""
        moment_of(at)
        text = str(at) if isinstance(at, Revision) else cast("Any", at).astimezone(UTC).isoformat()
        path = key_path(self.core.scope_key(scope), key)
        answer = yield from asked(Ask("GET", path, {"at": text}, accept=GONE))
        return default if is_absent(answer) else answer.document
