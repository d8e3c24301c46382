"""On which terms leases are held, and when they are looked after."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from llmspell_dist.errors import InvalidArgumentError, InvalidTTLError
from llmspell_dist.leases.model import LeaseMode
from llmspell_dist.leases.terms import (
    check_name,
    check_ttl,
    look_again_s,
    make_terms,
    renew_after_s,
    retry_after_s,
    trusted_s,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("ttl", "milliseconds"),
    [
        (0.05, 50),
        (1, 1000),
        (2.5, 2500),
        (86_400, 86_400_000),
        (timedelta(milliseconds=50), 50),
        (timedelta(days=1), 86_400_000),
        (0.0501, 50),
    ],
)
def test_a_time_to_live_is_in_milliseconds(ttl: Any, milliseconds: int) -> None:
    """From 50 ms to a day, both included."""
    assert check_ttl(ttl) == milliseconds


@pytest.mark.parametrize(
    "ttl", [0.0494, 0, -1, 86_400.001, float("nan"), float("inf"), True, None, "1", 1j, [1]]
)
def test_a_time_to_live_outside_of_it_is_refused(ttl: Any) -> None:
    """So is what is no number."""
    with pytest.raises(InvalidTTLError) as caught:
        check_ttl(ttl)
    assert caught.value.argument == "ttl"


def test_names_are_encoded_and_bounded() -> None:
    """So that no name reaches into another key."""
    assert check_name("main") == "main"
    assert check_name("a:q") == "a%3Aq"
    assert check_name("x" * 128) == "x" * 128
    for bad in ("", "x" * 129, ":" * 43):
        with pytest.raises(InvalidArgumentError) as caught:
            check_name(bad)
        assert caught.value.argument == "name"


def test_terms_say_what_was_wanted() -> None:
    """With the defaults of the documentation."""
    terms = make_terms()
    assert (terms.mode, terms.ttl_ms, terms.ttl_s) == (LeaseMode.EXCLUSIVE, 10_000, 10.0)
    assert (terms.wait_s, terms.owner, terms.label) == (None, None, None)
    assert (terms.reentrant, terms.renew, terms.on_lost) == (False, True, "cancel")
    terms = make_terms(
        ttl=timedelta(minutes=1), wait=timedelta(seconds=2), mode="shared", owner="o", label="l"
    )
    assert (terms.mode, terms.ttl_ms, terms.wait_s) == (LeaseMode.SHARED, 60_000, 2.0)
    assert (terms.owner, terms.label) == ("o", "l")
    assert make_terms(wait=0).wait_s == 0


def test_equal_looking_arguments_of_other_types_are_not_mixed_up() -> None:
    """Terms used lately are kept: 1 is a time, True is none, whatever came before."""
    several: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"ttl": 1}, {"ttl": True}),
        ({"wait": 1}, {"wait": True}),
    ]
    for good, bad in several:
        make_terms(**good)
        with pytest.raises(InvalidArgumentError):
            make_terms(**bad)
    make_terms(reentrant=True)
    with pytest.raises(InvalidArgumentError):
        make_terms(reentrant=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("ttl_s", [0.05, 0.1, 0.3, 1, 3, 10, 600, 86_400])
def test_a_lease_is_renewed_and_given_up_in_time(ttl_s: float) -> None:
    """Two renewals can fail before it counts as lost, which is before the server's time is over."""
    assert renew_after_s(ttl_s) * 2 + retry_after_s(ttl_s) < trusted_s(ttl_s) < ttl_s
    assert ttl_s - trusted_s(ttl_s) <= 0.25
    assert 0 < retry_after_s(ttl_s) <= 0.25
    assert trusted_s(ttl_s) > 0.8 * ttl_s


@pytest.mark.parametrize("holder_s", [0.0, 0.05, 0.3, 10.0, 86_400.0])
def test_waiters_look_again_one_after_the_other_and_within_a_second(holder_s: float) -> None:
    """The first in line as soon as the holder's time is over; the others if that one is gone."""
    looks = [look_again_s(place, holder_s) for place in range(1000)]
    assert looks == sorted(looks)
    assert holder_s < looks[0] < holder_s + 0.01
    assert looks[-1] < max(holder_s + 1, 1.1)
    assert sum(1 / look for look in looks[3:]) < 1000, "more than one command a waiter and second"
