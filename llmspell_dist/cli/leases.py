"""Leases as JSON documents and table rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.cli.wording import spoken
from llmspell_dist.leases.model import LeaseHow

if TYPE_CHECKING:
    from llmspell_dist.leases.model import (
        LeaseHolder,
        LeaseInfo,
        LeasePast,
        LeaseWaiter,
        WaitEdge,
    )

__all__ = [
    "BROKEN_COLUMNS",
    "HOLDER_COLUMNS",
    "LEASE_COLUMNS",
    "PAST_COLUMNS",
    "WAITER_COLUMNS",
    "broken_row",
    "deadlock_text",
    "edge_document",
    "holder_document",
    "holder_row",
    "lease_document",
    "lease_fields",
    "lease_rows",
    "past_document",
    "past_row",
    "waiter_document",
    "waiter_row",
    "who",
]

LEASE_COLUMNS: Final = (
    *("SCOPE", "NAME", "MODE", "HOLDER", "TOKEN"),
    *("HELD FOR", "EXPIRES IN", "WAITING"),
)
HOLDER_COLUMNS: Final = ("", "MODE", "HOLDER", "TOKEN", "SINCE", "HELD FOR", "TTL", "EXPIRES")
WAITER_COLUMNS: Final = ("", "MODE", "WHO", "SINCE", "WAITED", "GIVES UP", "CONNECTED")
PAST_COLUMNS: Final = ("", "HOW", "MODE", "HOLDER", "TOKEN", "ENDED", "HELD FOR", "WHY")
BROKEN_COLUMNS: Final = ("REVISION", "HOLDER", "MODE", "TOKEN", "HELD FOR")


# --- documents ----------------------------------------------------------------------------------


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _cell(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")  # as exact as the server notes it, and short


def _seconds(start: datetime, end: datetime) -> float:
    return round(max(0.0, (end - start).total_seconds()), 3)


def who(one: LeaseHolder | LeaseWaiter) -> str:
    """Return a holder or waiter as people know it: label, else owner, and its process."""
    where = f" ({one.host}:{one.pid})" if one.host else ""
    return f"{one.label or one.owner}{where}"


def _identity(one: LeaseHolder | LeaseWaiter) -> dict[str, Any]:
    return {
        "owner": one.owner,
        "label": one.label,
        "host": one.host,
        "pid": one.pid,
        "mode": str(one.mode),
        "since": _iso(one.since),
    }


def holder_document(holder: LeaseHolder, now: datetime) -> dict[str, Any]:
    """Return all that is known about a holder; ages as of `now`, in seconds."""
    return _identity(holder) | {
        "token": holder.token,
        "age_s": _seconds(holder.since, now),
        "ttl_s": holder.ttl_s,
        "expires": _iso(holder.expires),
        "expires_in_s": _seconds(now, holder.expires),
        "holds": holder.holds,
    }


def waiter_document(waiter: LeaseWaiter, now: datetime) -> dict[str, Any]:
    """Return all that is known about a waiter."""
    return _identity(waiter) | {
        "waited_s": _seconds(waiter.since, now),
        "deadline": _iso(waiter.deadline),
        "connected": waiter.connected,
    }


def past_document(past: LeasePast) -> dict[str, Any]:
    """Return a hold that has ended, and how."""
    ended = {"how": str(past.how), "ended": _iso(past.ended), "held_s": round(past.held_s, 3)}
    if past.how is LeaseHow.BROKEN:
        ended |= {"reason": past.reason, "actor": past.actor}
    return _identity(past.holder) | {"token": past.holder.token} | ended


def lease_document(info: LeaseInfo) -> dict[str, Any]:
    """Return a lease with its holders, as of one moment of the server's clock."""
    return {
        "scope": info.scope,
        "name": info.name,
        "time": _iso(info.time),
        "held": info.held,
        "token": info.token or None,
        "holders": [holder_document(holder, info.time) for holder in info.holders],
        "waiting": info.waiting,
    }


def edge_document(edge: WaitEdge) -> dict[str, str]:
    """Return who waits for whom, by owners."""
    facts = {"waiter": edge.waiter, "scope": edge.scope, "name": edge.name}
    return facts | {"holder": edge.holder}


# --- rows ---------------------------------------------------------------------------------------


def lease_rows(info: LeaseInfo) -> Iterator[tuple[str, ...]]:
    """Return a row for each holder; one if there are only waiters."""
    waiting = str(info.waiting)
    for holder in info.holders:
        times = (holder.since, info.time), (info.time, holder.expires)
        held, left = (spoken(_seconds(*pair)) for pair in times)
        facts = (str(holder.mode), who(holder), str(holder.token), held, left, waiting)
        yield (info.scope, info.name, *facts)
    if not info.holders:
        yield (info.scope, info.name, *"-----", waiting)


def deadlock_text(cycle: Sequence[WaitEdge], names: dict[str, str]) -> str:
    """Return a deadlock in words; `names` has what people call the owners."""
    return "; ".join(
        f"{names.get(edge.waiter, edge.waiter)} waits for {edge.scope} {edge.name}, "
        f"held by {names.get(edge.holder, edge.holder)}"
        for edge in cycle
    )


def lease_fields(info: LeaseInfo, required: str | None, fence: int) -> list[tuple[str, object]]:
    """Return what there is to say about a lease besides holders, waiters and history."""
    return [
        ("scope", info.scope),
        ("name", info.name),
        ("held", _state(info)),
        ("token", info.token or None),
        ("waiting", info.waiting),
        ("required", f"{required}: every write must carry it" if required else "no"),
        ("fence", fence),
    ]


def _state(info: LeaseInfo) -> str:
    if not info.holders:
        return "nobody holds it"
    mode = str(info.holders[0].mode)
    return mode if len(info.holders) == 1 else f"{mode}, by {len(info.holders)}"


def holder_row(holder: LeaseHolder, now: datetime) -> tuple[str, ...]:
    """Return a holder as the cells of a table."""
    token = f"{holder.token}"
    held, ttl = spoken(_seconds(holder.since, now)), spoken(holder.ttl_s)
    since, expires = _cell(holder.since), _cell(holder.expires)
    return ("holder", str(holder.mode), who(holder), token, since, held, ttl, expires)


def waiter_row(waiter: LeaseWaiter, now: datetime) -> tuple[str, ...]:
    """Return a waiter as the cells of a table."""
    waited, end = (
        spoken(_seconds(waiter.since, now)),
        _cell(waiter.deadline) if waiter.deadline else "never",
    )
    listens = "yes" if waiter.connected else "no"
    since = _cell(waiter.since)
    return ("waiter", str(waiter.mode), who(waiter), since, waited, end, listens)


def past_row(past: LeasePast) -> tuple[str, ...]:
    """Return an ended hold as the cells of a table."""
    holder, ended = past.holder, _cell(past.ended)
    facts = (str(past.how), str(holder.mode), who(holder), str(holder.token), ended)
    why = " by ".join(part for part in (past.reason, past.actor) if part)
    return ("past", *facts, spoken(past.held_s), why)


def broken_row(holder: LeaseHolder, revision: str, now: datetime) -> tuple[str, ...]:
    """Return a hold that was broken as the cells of a table."""
    held = spoken(_seconds(holder.since, now))
    return (revision, who(holder), str(holder.mode), str(holder.token), held)
