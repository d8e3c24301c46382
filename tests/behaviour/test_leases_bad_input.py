"""Bad input to leases: the error names argument, value and rule, and nothing is sent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fix_leases import LeaseStore, S

from llmspell_dist.client import Spell
from llmspell_dist.errors import (
    InvalidArgumentError,
    InvalidScopeError,
    InvalidTTLError,
    LeaseNotHeldError,
    SpellError,
)
from llmspell_dist.leases.manager import Leases

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]

NAN, INF = float("nan"), float("inf")

Call = Callable[..., Any]
ACQUIRING: dict[str, Call] = {
    "acquire": lambda leases, **options: leases.acquire(S, **options),
    "acquire_all": lambda leases, **options: leases.acquire_all([S], **options),
    "holding": lambda leases, **options: leases.holding(S, **options),
}
BAD: dict[str, list[Any]] = {
    "ttl": [
        0, 0.049, 0.0494, -1, 86_401, 86_400.001, NAN, INF, -INF, None, "10", True, 10**30,
        timedelta(0), timedelta(milliseconds=49), timedelta(days=1, milliseconds=1), [10],
    ],
    "wait": [-0.001, -1, NAN, INF, "5", True, timedelta(seconds=-1), 86_400.0 * 366, [1], 10**30],
    "mode": ["", "Exclusive", "write", None, 1, b"shared", [], object()],
    "owner": ["", "x" * 129, "é" * 65, 5, b"me", "a\nb", "a\0b", "\ud800", [], True],
    "label": ["", "x" * 129, "é" * 65, 5, b"me", "a\nb", "\x1b[1m", "\ud800", []],
    "reentrant": [None, 1, "yes", []],
    "renew": [None, 0, "no", []],
    "on_lost": [None, "raise", 5, True, [], b"cancel"],
    "name": ["", 5, None, b"main", "x" * 129, "%" * 43, "\ud800", ("a",), [], True],
}  # fmt: skip
NOT_FOR: dict[str, set[str]] = {
    "acquire_all": {"reentrant", "renew", "name"},
    "holding": {"owner", "reentrant", "renew", "on_lost"},
}


async def later(_: Any) -> None:
    """Be a coroutine function."""


@pytest.mark.parametrize("argument", BAD)
async def test_a_bad_argument_is_named_and_nothing_is_sent(
    spell: Spell, lease_store: LeaseStore, argument: str
) -> None:
    """At the call, before anything is awaited."""
    before = lease_store.store.dump(without=())
    tried = 0
    for call, value in itertools.product(ACQUIRING, BAD[argument]):
        if argument in NOT_FOR.get(call, ()):
            continue
        with pytest.raises(InvalidArgumentError) as caught:
            ACQUIRING[call](spell.leases, **{argument: value})
        assert caught.value.argument == argument, (call, value)
        assert caught.value.rule
        assert len(str(caught.value)) < 400
        assert isinstance(caught.value, InvalidTTLError) == (argument == "ttl")
        tried += 1
    assert tried >= len(BAD[argument])
    assert lease_store.store.dump(without=()) == before


async def test_a_coroutine_function_is_no_reaction_to_a_loss(spell: Spell) -> None:
    """Nobody would await it."""
    with pytest.raises(InvalidArgumentError) as caught:
        spell.leases.acquire(S, on_lost=later)
    assert caught.value.argument == "on_lost"


async def test_the_limits_themselves_are_allowed(spell: Spell, lease_store: LeaseStore) -> None:
    """50 ms and a day, 128 bytes, no wait and a year."""
    good: list[dict[str, Any]] = [
        {"ttl": 0.05}, {"ttl": timedelta(milliseconds=50)}, {"ttl": 86_400},
        {"ttl": timedelta(days=1)}, {"ttl": 1}, {"wait": 0}, {"wait": 86_400 * 365},
        {"wait": timedelta(0)}, {"owner": "é" * 64}, {"label": "x" * 128}, {"name": "x" * 128},
        {"name": "a b:c/*"}, {"mode": "shared"}, {"on_lost": "event"},
    ]  # fmt: skip
    for options in good:
        async with spell.leases.acquire(S, renew=False, **options) as lease:
            (holder,) = (await spell.leases.show(S, name=lease.name)).holders
            assert holder.token == lease.token
            assert holder.owner == options.get("owner", holder.owner)
            assert holder.label == options.get("label")


CALLS: dict[str, Callable[[Leases, Any, Any], Any]] = {
    "acquire": lambda leases, scope, name: leases.acquire(scope, name=name),
    "acquire_all": lambda leases, scope, name: leases.acquire_all([(scope, name)]),
    "holding": lambda leases, scope, name: leases.holding(scope, name=name),
    "show": lambda leases, scope, name: leases.show(scope, name=name),
    "break": lambda leases, scope, name: leases.break_lease(scope, name=name, reason="x"),
    "require": lambda leases, scope, name: leases.require(scope, name=name),
    "renew": lambda leases, scope, name: leases.renew(scope, name=name, owner="o", token=1),
    "release": lambda leases, scope, name: leases.release(scope, name=name, owner="o", token=1),
}


@pytest.mark.parametrize("call", CALLS)
async def test_bad_scopes_and_names_are_refused_by_every_call(
    spell: Spell, lease_store: LeaseStore, call: str
) -> None:
    """As those of the state are."""

    async def run(scope: Any, name: Any) -> None:
        result = CALLS[call](spell.leases, scope, name)
        if call not in ("acquire", "acquire_all", "holding"):
            await result

    before = lease_store.store.dump(without=())
    for scope in ("", "agent", "agent:", "Agent:a", "agent:a b", "agent:*", 5, None, b"agent:a"):
        with pytest.raises(InvalidScopeError):
            await run(scope, "main")
    for name in BAD["name"]:
        with pytest.raises(InvalidArgumentError) as caught:
            await run(S, name)
        assert caught.value.argument == "name"
    assert lease_store.store.dump(without=()) == before


async def test_numbers_that_limit_what_is_shown(spell: Spell) -> None:
    """How many waiters, how many leases."""
    for bad in (-1, 1001, 1.5, None, True, "5"):
        value: Any = bad
        with pytest.raises(InvalidArgumentError) as caught:
            await spell.leases.show(S, waiters=value)
        assert caught.value.argument == "waiters"
    for bad in (0, -1, 1001, 1.5, None, True, "5"):
        value = bad
        with pytest.raises(InvalidArgumentError) as caught:
            await spell.leases.list(limit=value)
        assert caught.value.argument == "limit"


async def test_facts_that_cannot_be_those_of_a_lease(spell: Spell, lease_store: LeaseStore) -> None:
    """Owner and token as they were told when it was granted."""
    async with spell.leases.acquire(S, owner="job") as lease:
        before = lease_store.holder()
        for operation in (spell.leases.renew, spell.leases.release):
            call: Any = operation
            for token in (0, -1, 2**53, 1.5, None, True, str(lease.token)):
                with pytest.raises(InvalidArgumentError) as caught:
                    await call(S, owner="job", token=token)
                assert caught.value.argument == "token"
            for owner in ("", None, 5, b"job"):
                with pytest.raises(InvalidArgumentError) as caught:
                    await call(S, owner=owner, token=lease.token)
                assert caught.value.argument == "owner"
        with pytest.raises(InvalidTTLError):
            await spell.leases.renew(S, owner="job", token=lease.token, ttl=0.01)
        assert lease_store.holder() == before


async def test_a_bad_time_to_live_renews_nothing(spell: Spell, lease_store: LeaseStore) -> None:
    """The lease stays as it was."""
    async with spell.leases.acquire(S) as lease:
        before = lease_store.holder()
        for ttl in BAD["ttl"]:
            if ttl is not None:  # which means: as before
                with pytest.raises(InvalidTTLError):
                    await lease.renew(ttl)
        assert lease_store.holder() == before
        assert lease.ttl_s == 10


async def test_releasing_another_s_lease_is_refused(spell: Spell, lease_store: LeaseStore) -> None:
    """With its token too: the owner must be right; the error says who holds it."""
    async with spell.leases.acquire(S, owner="theirs", label="worker 7") as lease:
        for token in (lease.token, lease.token - 1):
            with pytest.raises(LeaseNotHeldError, match="worker 7") as caught:
                await spell.leases.release(S, owner="mine", token=token)
            assert caught.value.operation == "release it"
            assert caught.value.current.owner == "theirs"
            with pytest.raises(LeaseNotHeldError, match="worker 7"):
                await spell.leases.renew(S, owner="mine", token=token)
        assert lease_store.holder() is not None


async def test_renewing_a_dead_one_says_what_to_do(spell: Spell, lease_store: LeaseStore) -> None:
    """Expired, released, forgotten by the server: acquire it again."""
    for how, message in (
        ("expire", "its time was over"),
        ("release", "it was released at"),
        ("forget", "data was lost"),
    ):
        lease = await spell.leases.acquire(S, owner="job", on_lost="event")
        match how:
            case "expire":
                lease_store.expire()
            case "release":
                await spell.leases.release(S, owner="job", token=lease.token)
            case _:
                lease_store.raw("DEL", lease_store.key(S))
        with pytest.raises(LeaseNotHeldError, match=message) as caught:
            await lease.renew()
        assert "acquire it again" in str(caught.value)
        with pytest.raises(LeaseNotHeldError):
            await spell.leases.renew(S, owner="job", token=lease.token)
        assert lease.lost.is_set()
        assert isinstance(caught.value, SpellError)
