"""Transactions: what was read must still hold, and all changes happen together or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, Struct

from llmspell_dist.ack import Ack
from llmspell_dist.errors import (
    ConflictError,
    CrossShardError,
    InvalidArgumentError,
    LeaseRequiredError,
    LimitError,
    StaleFencingTokenError,
    WrongKindError,
)
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import Registry
from llmspell_dist.sidecar.reply import Reply, etag
from llmspell_dist.sidecar.routes.shapes import Keeping, KeptFor, keeping, parse_ttl

if TYPE_CHECKING:
    from llmspell_dist.state.manager import Transaction

__all__ = ["routes"]

routes = Registry("transactions", "Several keys, of several scopes, changed as one.")
_MOST: Final = 10_000


class ReadKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key that was read, and must not have changed since."""

    scope: str
    key: str
    revision: Annotated[
        str | None, Meta(description="What it was at; null: there must be no value still.")
    ]


class SetKey(
    Keeping, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op", tag="set"
):
    """Set a key."""

    scope: str
    key: str
    value: Any
    schema_version: Annotated[int, Meta(ge=0, le=65_535)] = 1

    def put(self, tx: Transaction) -> None:
        """Plan it."""
        version = self.schema_version
        tx.set(self.scope, self.key, self.value, schema_version=version, **keeping(self))


class SetAbsentKey(
    Keeping,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="op",
    tag="set_if_absent",
):
    """Set a key; nothing of the transaction happens if it has a value."""

    scope: str
    key: str
    value: Any

    def put(self, tx: Transaction) -> None:
        """Plan it."""
        tx.set_if_absent(self.scope, self.key, self.value, **keeping(self))


class DeleteKey(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op", tag="delete"
):
    """Remove a key, if it is there."""

    scope: str
    key: str

    def put(self, tx: Transaction) -> None:
        """Plan it."""
        tx.delete(self.scope, self.key)


class IncrementKey(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op", tag="increment"
):
    """Add to a number, which need not be read; a missing key counts as 0."""

    scope: str
    key: str
    by: int | float = 1
    ttl: KeptFor = None

    def put(self, tx: Transaction) -> None:
        """Plan it."""
        tx.increment(self.scope, self.key, self.by, ttl=parse_ttl(self.ttl))


class AppendKey(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op", tag="append"
):
    """Add elements to the end of a list, which need not be read."""

    scope: str
    key: str
    items: list[Any]
    ttl: KeptFor = None

    def put(self, tx: Transaction) -> None:
        """Plan it."""
        tx.append(self.scope, self.key, *self.items, ttl=parse_ttl(self.ttl))


class MergeKey(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op", tag="merge"
):
    """Set and remove fields of a dict, which need not be read."""

    scope: str
    key: str
    fields: dict[Any, Any] = {}
    remove: list[Any] = []
    ttl: KeptFor = None

    def put(self, tx: Transaction) -> None:
        """Plan it."""
        ttl = parse_ttl(self.ttl)
        tx.merge(self.scope, self.key, self.fields, remove=self.remove, ttl=ttl)


class ExpireKey(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op", tag="expire"
):
    """Let a key end after so many seconds from the commit on; null lets it stay."""

    scope: str
    key: str
    ttl: float | None

    def put(self, tx: Transaction) -> None:
        """Plan it."""
        tx.expire(self.scope, self.key, self.ttl)


Operation = SetKey | SetAbsentKey | DeleteKey | IncrementKey | AppendKey | MergeKey | ExpireKey
_VERBS: Final[dict[type, Verb]] = {DeleteKey: Verb.DELETE}


class TransactionBody(Struct, frozen=True, forbid_unknown_fields=True):
    """What must still hold, and what happens if it does."""

    reads: Annotated[list[ReadKey], Meta(max_length=_MOST)] = []
    operations: Annotated[
        list[Operation], Meta(max_length=_MOST, description="In their order, folded by key.")
    ] = []
    ack: str | None = None


class Committed(Struct, frozen=True):
    """The commit; null if there was nothing to write."""

    revision: str | None


@routes.route(
    "POST",
    "/v1/transactions",
    asks=(Verb.READ, Verb.WRITE, Verb.DELETE),
    body=TransactionBody,
    returns=Committed,
    errors=(
        ConflictError,
        CrossShardError,
        LeaseRequiredError,
        LimitError,
        StaleFencingTokenError,
        WrongKindError,
    ),
    headers=("LLMSpell-Lease", "Idempotency-Key"),
)
async def run_transaction(call: Call) -> Reply:
    """Change several keys as one commit, if what was read before has not changed since.

    Else nothing is changed, and the conflict names what had (409). The scopes must lie in one
    shard.
    """
    body: TransactionBody = call.body
    _check_rights(call, body)
    ack = None if body.ack is None else Ack.parse(body.ack)
    async with call.state.transaction(ack=ack) as tx:
        for read in body.reads:
            revision = None if read.revision is None else Revision.parse(read.revision)
            tx.expect(read.scope, read.key, revision)
        for operation in body.operations:
            operation.put(tx)
    if tx.revision is None:
        return Reply(Committed(None))
    return Reply(Committed(str(tx.revision)), headers=[etag(tx.revision)])


def _check_rights(call: Call, body: TransactionBody) -> None:
    """Refuse before anything is done, and before it is told what is there."""
    needed = {(Verb.READ, read.scope) for read in body.reads}
    needed |= {(_VERBS.get(type(one), Verb.WRITE), one.scope) for one in body.operations}
    if not needed:
        raise InvalidArgumentError("operations", None, "must be there, or reads to be checked")
    for verb, scope in sorted(needed):
        call.require(verb, Scope.parse(scope).text)
