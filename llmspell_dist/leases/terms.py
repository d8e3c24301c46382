"""On which terms a lease is wanted, checked before anything is sent; and when it is renewed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from inspect import iscoroutinefunction
from math import isfinite
from typing import Any, Final, NamedTuple

from llmspell_dist.errors import InvalidArgumentError, InvalidTTLError
from llmspell_dist.leases.model import LeaseMode
from llmspell_dist.scope import encode_part

__all__ = ["DEFAULT_NAME", "DEFAULT_TTL_S", "Terms", "check_name", "check_ttl", "make_terms"]

DEFAULT_NAME: Final = "main"
"""The lease of a scope whose token the scope remembers with every write."""
DEFAULT_TTL_S: Final = 10.0
MIN_TTL_MS, MAX_TTL_MS = 50, 86_400_000
MAX_WAIT_S: Final = 86_400.0 * 365
MAX_TEXT_BYTES: Final = 128
MAX_REASON_BYTES: Final = 1024
MAX_NAME_BYTES: Final = 128

OnLost = str | Callable[[Any], Any]
"""``cancel``, ``event``, or a function that is called with the lease."""


class Terms(NamedTuple):
    """How a lease is to be held."""

    mode: LeaseMode
    ttl_ms: int
    wait_s: float | None
    """0: try once; None: wait without end."""
    owner: str | None
    reentrant: bool
    label: str | None
    on_lost: OnLost
    renew: bool

    @property
    def ttl_s(self) -> float:
        """The time to live in seconds."""
        return self.ttl_ms / 1000


def check_name(name: str) -> str:
    """Return the printed name of a lease, as it stands in Redis."""
    printed = encode_part(name, "name")
    if len(printed.encode()) > MAX_NAME_BYTES:
        rule = f"must be at most {MAX_NAME_BYTES} bytes when percent-encoded"
        raise InvalidArgumentError("name", name, rule)
    return printed


def check_ttl(ttl: float | timedelta) -> int:
    """Return a time to live in milliseconds: from 50 ms to a day."""
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    fits = type(seconds) in (int, float) and isfinite(seconds)
    milliseconds = round(min(seconds, MAX_TTL_MS) * 1000) if fits else 0  # infinity has no int
    if not MIN_TTL_MS <= milliseconds <= MAX_TTL_MS:
        rule = "must be seconds or a timedelta from 0.05 (50 ms) to 86,400 (a day)"
        raise InvalidTTLError("ttl", ttl, rule)
    return milliseconds


def _check_wait(wait: float | timedelta | None) -> float | None:
    if wait is None:
        return None
    seconds = wait.total_seconds() if isinstance(wait, timedelta) else wait
    if type(seconds) not in (int, float) or not 0 <= seconds <= MAX_WAIT_S:
        rule = "must be seconds or a timedelta from 0 (try once) to a year, or None (without end)"
        raise InvalidArgumentError("wait", wait, rule)
    return float(seconds)


def _check_text(argument: str, text: str | None) -> None:
    if text is None:
        return
    fits = type(text) is str and text.isprintable()
    if not fits or not 0 < len(text.encode("utf-8", "replace")) <= MAX_TEXT_BYTES:
        rule = f"must be printable text of 1 to {MAX_TEXT_BYTES} bytes, or None"
        raise InvalidArgumentError(argument, text, rule)


def check_reason(reason: str) -> None:
    """Refuse what does not say why a lease is broken."""
    try:
        fits = isinstance(reason, str) and 0 < len(reason.encode()) <= MAX_REASON_BYTES
    except UnicodeEncodeError:
        fits = False
    if not fits:
        rule = f"must say why in 1 to {MAX_REASON_BYTES:,} bytes of valid Unicode"
        raise InvalidArgumentError("reason", reason, rule)


def make_terms(  # noqa: PLR0917 - `acquire` has the names, and gives them in this order
    ttl: float | timedelta = DEFAULT_TTL_S,
    wait: float | timedelta | None = None,
    mode: LeaseMode | str = LeaseMode.EXCLUSIVE,
    owner: str | None = None,
    reentrant: bool = False,
    label: str | None = None,
    on_lost: OnLost = "cancel",
    renew: bool = True,
) -> Terms:
    """Check what the caller wants; every wrong argument is named. Terms used lately are kept."""
    arguments = (ttl, wait, mode, reentrant, label, on_lost, renew)
    if on_lost in ("cancel", "event"):
        try:
            terms = _kept_terms(*arguments)
        except TypeError:  # what cannot be hashed is wrong, and is named here
            terms = _make_terms(*arguments)
    else:
        terms = _make_terms(*arguments)
    if owner is None:
        return terms
    _check_text("owner", owner)
    return terms._replace(owner=owner)


def _make_terms(  # noqa: PLR0917 - as above
    ttl: float | timedelta,
    wait: float | timedelta | None,
    mode: LeaseMode | str,
    reentrant: bool,
    label: str | None,
    on_lost: OnLost,
    renew: bool,
) -> Terms:
    try:
        wanted = LeaseMode(mode)
    except ValueError:
        rule = f"must be one of {', '.join(LeaseMode)}"
        raise InvalidArgumentError("mode", mode, rule) from None
    _check_text("label", label)
    for name, flag in (("reentrant", reentrant), ("renew", renew)):
        if type(flag) is not bool:
            raise InvalidArgumentError(name, flag, "must be a bool")
    # Nobody would await what a coroutine function gives.
    if on_lost not in ("cancel", "event") and (
        not callable(on_lost) or iscoroutinefunction(on_lost)
    ):
        rule = "must be 'cancel', 'event' or a function that is none of a coroutine"
        raise InvalidArgumentError("on_lost", on_lost, rule)
    return Terms(wanted, check_ttl(ttl), _check_wait(wait), None, reentrant, label, on_lost, renew)


_kept_terms = lru_cache(maxsize=256, typed=True)(_make_terms)


# --- when ----------------------------------------------------------------------------------------


def renew_after_s(ttl_s: float) -> float:
    """After how many seconds from the last renewal that was sent the next one is due."""
    return ttl_s / 3


def trusted_s(ttl_s: float) -> float:
    """How long after a renewal was sent its lease counts as held here.

    A little less than the server gives: the two clocks may run apart, and whoever asks must have
    time to act on the answer.
    """
    return ttl_s - min(ttl_s * 0.1, 0.25)


def retry_after_s(ttl_s: float) -> float:
    """How long after a renewal that failed the next one is tried."""
    return min(ttl_s / 10, 0.25)


HEAD_SLACK_S: Final = 0.002
_SECONDS_BY_PLACE: Final = (HEAD_SLACK_S, 0.3, 0.6)
_SECONDS_FURTHER_BACK: Final = 0.8
"""Under a second: a place is what it was when the waiter asked last. Many may have had their turn
since, and then been killed at once with the holder."""
_LEAST_S: Final = 1.05
"""Also at the shortest times to live nobody but the first three asks as often as once a second."""


def look_again_s(place: int, holder_s: float) -> float:
    """When a waiter looks whether the holder's time is over, if nobody wakes it before.

    The first in line does so at once, the next ones a little later in case it is gone, and
    everybody else when those are gone too: once in each time to live of a holder that lives.
    """
    if place < len(_SECONDS_BY_PLACE):
        return holder_s + _SECONDS_BY_PLACE[place]
    return max(holder_s + _SECONDS_FURTHER_BACK, _LEAST_S)
