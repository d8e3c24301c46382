"""What a sidecar tells of leases, back to what the library gives."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from llmspell_dist.errors import LeaseNotHeldError, LeaseUnavailableError
from llmspell_dist.leases.model import (
    LeaseHolder,
    LeaseHow,
    LeaseInfo,
    LeaseMode,
    LeasePast,
    LeaseWaiter,
    WaitEdge,
    WaitGraph,
)
from llmspell_dist.remote.problems import register_facts

__all__ = ["graph_of", "holder_of", "info_of"]

Document = Mapping[str, Any]


def _moment(said: Any) -> Any:
    return datetime.fromisoformat(said) if isinstance(said, str) else said


def holder_of(document: Document) -> LeaseHolder:
    """Return who holds a lease."""
    facts = dict(document)
    facts["mode"] = LeaseMode(facts["mode"])
    facts["since"], facts["expires"] = _moment(facts["since"]), _moment(facts["expires"])
    return LeaseHolder(**facts)


def _waiter_of(document: Document) -> LeaseWaiter:
    return LeaseWaiter(**{**document, "mode": LeaseMode(document["mode"])})


def _past_of(document: Document) -> LeasePast:
    holder, how = holder_of(document["holder"]), LeaseHow(document["how"])
    return LeasePast(holder, how, document["ended"], document["reason"], document["actor"])


def info_of(document: Document) -> LeaseInfo:
    """Return what is known about a lease."""
    return LeaseInfo(
        document["scope"],
        document["name"],
        document["time"],
        document["token"],
        tuple(map(holder_of, document["holders"])),
        tuple(map(_waiter_of, document["waiters"])),
        document["waiting"],
        tuple(map(_past_of, document["history"])),
    )


def graph_of(document: Document) -> WaitGraph:
    """Return who waits for whom."""
    return WaitGraph(tuple([WaitEdge(**edge) for edge in document["edges"]]))


register_facts(LeaseUnavailableError, holders=lambda found: [holder_of(one) for one in found])
register_facts(LeaseNotHeldError, current=holder_of)
