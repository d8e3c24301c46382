"""Leases for threads: the same promises, kept by the calling thread and one in the background."""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fix_leases import LeaseStore, S, renewals

from llmspell_dist import blocking
from llmspell_dist.blocking.leases import Lease as BlockingLease
from llmspell_dist.blocking.leases import LeaseGroup as BlockingGroup
from llmspell_dist.blocking.leases import Leases as BlockingLeases
from llmspell_dist.errors import (
    ClosedError,
    DeadlockError,
    InvalidArgumentError,
    LeaseAlreadyHeldError,
    LeaseLostError,
    LeaseNotHeldError,
    LeaseRequiredError,
    LeaseUnavailableError,
    StaleFencingTokenError,
)
from llmspell_dist.leases.group import LeaseGroup
from llmspell_dist.leases.holding import Lease
from llmspell_dist.leases.manager import Leases

pytestmark = pytest.mark.integration

Clients = Callable[[], blocking.Spell]
WITHIN_S = 10.0


@pytest.fixture
def clients(url: str, namespace: str) -> Iterator[Clients]:
    """A function that opens a blocking client; all are closed at the end."""
    opened: list[blocking.Spell] = []

    def start() -> blocking.Spell:
        opened.append(blocking.connect(url, namespace=namespace))
        return opened[-1]

    yield start
    for spell in opened:
        spell.close()


class Running:
    """A thread whose result or error is asked for later."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._result


def in_line(spell: blocking.Spell, count: int, scope: str = S) -> None:
    """Return when so many wait."""
    waited = threading.Event()
    for _ in range(10_000):
        if spell.leases.show(scope).waiting == count:
            return
        waited.wait(0.001)
    raise AssertionError("they do not come")


# --- the surface ----------------------------------------------------------------------------------


def _public(cls: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(cls) if name[0] != "_"}


@pytest.mark.parametrize(
    ("ours", "twin", "only_async"),
    [
        (
            Leases,
            BlockingLeases,
            {"give_back", "give_all_back", "drop", "abandon", "leave", "check_loop"},
        ),
        (Lease, BlockingLease, set()),
        (LeaseGroup, BlockingGroup, set()),
    ],
)
def test_every_method_has_its_blocking_twin(ours: type, twin: type, only_async: set[str]) -> None:
    """With the same parameters and defaults."""
    there = _public(twin)
    for name, member in _public(ours).items():
        if name in only_async:
            continue
        assert name in there, name
        if inspect.isfunction(member) and name != "state_of":
            assert (
                inspect.signature(member).parameters == inspect.signature(there[name]).parameters
            ), name


# --- holding --------------------------------------------------------------------------------------


def test_a_block_holds_and_gives_back(clients: Clients, lease_store: LeaseStore) -> None:
    """Writes through the lease are fenced; afterwards they are refused."""
    spell = clients()
    with spell.leases.acquire(S, label="me") as lease:
        lease.state.set(S, "v", 1)
        assert lease.held
        assert spell.state.stat(S).fence == lease.token
        assert spell.leases.show(S).holders[0].label == "me"
    assert not lease.held
    assert not spell.leases.show(S).held
    with pytest.raises(StaleFencingTokenError):
        lease.state.set(S, "v", 2)
    assert spell.state.get(S, "v") == 1


def test_by_hand_and_by_decorator(clients: Clients) -> None:
    """Each call of a decorated function has a grant of its own."""
    spell = clients()
    lease = spell.leases.acquire(S)
    assert lease.renew(20) == 20
    lease.release()
    with pytest.raises(LeaseNotHeldError):
        lease.release()

    @spell.leases.holding(lambda agent: f"agent:{agent}", pass_as="lease")
    def token_of(agent: str, lease: Any = None) -> int:
        assert str(lease.scope) == f"agent:{agent}"
        return int(lease.token)

    assert token_of("x") < token_of("x")


def test_a_thread_is_an_owner(clients: Clients) -> None:
    """The same one cannot take it twice unless it says so; another one can only wait."""
    spell = clients()
    with spell.leases.acquire(S) as lease:
        with pytest.raises(LeaseAlreadyHeldError):
            spell.leases.acquire(S, wait=0)
        with spell.leases.acquire(S, reentrant=True) as again:
            assert again.token == lease.token
        other = Running(lambda: spell.leases.acquire(S, wait=0))
        with pytest.raises(LeaseUnavailableError):
            other.result()
        assert lease.held


def test_a_lease_is_renewed_for_as_long_as_it_is_held(
    clients: Clients, lease_store: LeaseStore
) -> None:
    """Again and again, by the thread in the background."""
    spell, other = clients(), clients()
    with spell.leases.acquire(S, ttl=60) as lease:
        asyncio.run(renewals(lease_store, spell))
        with pytest.raises(LeaseUnavailableError):
            other.leases.acquire(S, wait=0)
        lease.check()
        lease.state.set(S, "v", 1)


# --- waiting --------------------------------------------------------------------------------------


def test_threads_of_several_clients_are_served_in_order(clients: Clients) -> None:
    """First come, first served; the lease goes from hand to hand."""
    spells = [clients() for _ in range(3)]
    order: list[int] = []

    def take(number: int) -> None:
        with spells[number % 3].leases.acquire(S) as lease:
            lease.check()
            order.append(number)

    waiting: list[Running] = []
    with spells[0].leases.acquire(S):
        for number in range(9):
            waiting.append(Running(lambda number=number: take(number)))  # type: ignore[misc]
            in_line(spells[0], number + 1)
    for one in waiting:
        one.result()
    assert order == list(range(9))


def test_a_wait_that_is_over_leaves_nothing_in_line(
    clients: Clients, lease_store: LeaseStore
) -> None:
    """The error names the holder."""
    spell, other = clients(), clients()
    with spell.leases.acquire(S, label="busy"):
        with pytest.raises(LeaseUnavailableError) as caught:
            other.leases.acquire(S, wait=0.1)
        assert caught.value.holders[0].label == "busy"
        assert caught.value.waited_s >= 0.1
        assert spell.leases.show(S).waiting == 0


def test_a_circle_of_threads_is_refused(clients: Clients) -> None:
    """The one that closes it hears of it, the other gets its lease."""
    spell, other = clients(), clients()
    first = spell.leases.acquire("agent:p")

    def cross() -> None:
        with other.leases.acquire("agent:q"), other.leases.acquire("agent:p"):
            pass

    waiting = Running(cross)
    in_line(spell, 1, "agent:p")
    with pytest.raises(DeadlockError) as caught:
        spell.leases.acquire("agent:q")
    assert len(caught.value.cycle) == 2
    first.release()
    waiting.result()


def test_closing_a_client_ends_what_waits(clients: Clients) -> None:
    """And gives back what it holds."""
    spell, other = clients(), clients()
    lease = other.leases.acquire("agent:held")
    with spell.leases.acquire(S):
        waiting = Running(lambda: other.leases.acquire(S))
        in_line(spell, 1)
        other.close()
        with pytest.raises(ClosedError):
            waiting.result()
        assert not spell.leases.show("agent:held").held
    assert not lease.held
    with pytest.raises(ClosedError):
        other.leases.acquire(S)


# --- losing ---------------------------------------------------------------------------------------


def test_a_lost_lease_fires_and_the_block_raises(clients: Clients, lease_store: LeaseStore) -> None:
    """No thread can be cancelled: `check` and the end of the block tell."""
    spell = clients()
    called: queue.Queue[Any] = queue.Queue()  # the call comes from a thread of its own
    with pytest.raises(LeaseLostError):  # noqa: PT012, SIM117 - the loss comes at its end
        with spell.leases.acquire(S, ttl=0.3, on_lost=called.put) as lease:
            lease_store.expire()
            assert lease.lost.wait(WITHIN_S)
            with pytest.raises(LeaseLostError):
                lease.check()
            with pytest.raises(StaleFencingTokenError):
                lease.state.set(S, "v", 1)
    assert called.get(timeout=WITHIN_S) is lease


def test_an_error_of_the_block_goes_before_the_loss(
    clients: Clients, lease_store: LeaseStore
) -> None:
    """It is what the caller has to see."""
    spell = clients()
    with pytest.raises(ZeroDivisionError), spell.leases.acquire(S, ttl=0.3) as lease:  # noqa: PT012
        lease_store.expire()
        assert lease.lost.wait(WITHIN_S)
        raise ZeroDivisionError


# --- several, demanded, broken, forked ------------------------------------------------------------


def test_several_leases_are_held_together(clients: Clients) -> None:
    """A transaction over scopes that demand their leases carries them all."""
    spell = clients()
    spell.leases.require("agent:1")
    spell.leases.require("agent:2")
    with spell.leases.acquire_all(["agent:1", "agent:2"]) as group:
        with group.state.transaction() as tx:
            tx.set("agent:1", "v", 1)
            tx.set("agent:2", "v", 2)
        with pytest.raises(LeaseRequiredError):
            spell.state.set("agent:1", "v", 3)
        spell.leases.unrequire("agent:1", lease=group[0])
    spell.state.set("agent:1", "v", 3)
    with pytest.raises(InvalidArgumentError):
        spell.leases.unrequire("agent:2", lease=None)  # type: ignore[arg-type]


def test_a_broken_lease_goes_to_the_next_thread(clients: Clients) -> None:
    """With the reason in its history."""
    spell, other = clients(), clients()
    lease = spell.leases.acquire(S)
    waiting = Running(lambda: other.leases.acquire(S))
    in_line(spell, 1)
    other.leases.break_lease(S, reason="it hangs", token=lease.token)
    assert waiting.result().token > lease.token
    assert spell.leases.show(S).history[0].reason == "it hangs"
    with pytest.raises(LeaseNotHeldError, match=r"it hangs|granted to another"):
        lease.renew()
    assert lease.lost.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_does_not_write_under_its_parents_lease(clients: Clients) -> None:
    """It counts as not held there, and the store refuses; the parent's goes on."""
    spell = clients()
    with spell.leases.acquire(S) as lease:
        lease.state.set(S, "v", 1)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert not lease.held
                with pytest.raises(StaleFencingTokenError):
                    lease.state.set(S, "v", 2)
                with pytest.raises(LeaseUnavailableError):
                    spell.leases.acquire(S, wait=0)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        lease.state.set(S, "v", 3)
    assert spell.state.get(S, "v") == 3


@pytest.mark.parametrize("script", ["lease_acquire", "lease_release"])
def test_closing_a_client_waits_for_what_is_being_granted_or_given_back(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """Another thread closes it between the call and its answer: the lease is free then."""
    spell, other = clients(), clients()
    execute = other.leases.execute
    closing = threading.Thread(target=other.close)

    def closed_meanwhile(call: Any) -> Any:
        if call.name != script or closing.ident is not None:
            return execute(call)
        reply = execute(call) if script == "lease_acquire" else None
        closing.start()
        closing.join(0.3)
        return reply or execute(call)

    monkeypatch.setattr(other.leases, "execute", closed_meanwhile)
    if script == "lease_acquire":
        with pytest.raises(ClosedError):
            other.leases.acquire(S, ttl=60)
    else:
        other.leases.acquire(S, ttl=60).release()
    closing.join(WITHIN_S)
    assert not spell.leases.show(S).held
