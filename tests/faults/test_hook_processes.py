"""Hooks in real processes: the fleet, schedules, and history over a restart and a kill."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from fix_faults import environment
from fix_lease_faults import LeaseProcess
from fix_servers import Server

from llmspell_dist import connect

pytestmark = [pytest.mark.integration, pytest.mark.needs("process")]

WORKER = Path(__file__).parent / "hook_process.py"
AFTER, BEFORE = "AfterStateWrite", "BeforeStateWrite"


class HookProcess(LeaseProcess):
    """A process that works with hooks."""

    def __init__(self, url: str, namespace: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, WORKER, url, namespace],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        self._unread = b""
        self._events: list[dict[str, Any]] = []

    def all_of(self, event: str) -> list[dict[str, Any]]:
        """Return what was said so far of one kind."""
        self._take(0.0)
        return [one for one in self._events if one["event"] == event]

    def finish(self) -> None:
        """Let the process end in order."""
        self.tell("end")
        self.hears("ended_all")
        assert self._process.wait(20) == 0


Processes = Callable[[int], list[HookProcess]]


def first_to_say(event: str, *among: HookProcess, within_s: float = 30.0) -> HookProcess:
    """Return which of some living processes says something, as soon as one of them has."""
    deadline = monotonic() + within_s
    while True:
        for one in among:
            if one.said(event):
                return one
        left_s = deadline - monotonic()
        outputs: list[Any] = [one._process.stdout for one in among]
        assert left_s > 0, f"nobody said {event}"
        select.select(outputs, [], [], left_s)


@pytest.fixture
def processes(server: Server, namespace: str) -> Iterator[Processes]:
    """A factory of processes, which are ready; all end with the test."""
    made: list[HookProcess] = []

    def make(count: int) -> list[HookProcess]:
        started = [HookProcess(server.url, namespace) for _ in range(count)]
        made.extend(started)
        for one in started:
            one.hears_ready()
        return started

    yield make
    for process in made:
        process.close()


# --- the fleet ------------------------------------------------------------------------------------


def test_every_process_runs_a_hook_for_what_happens_in_one(processes: Processes) -> None:
    """And one that comes later takes part at once."""
    a, b = processes(2)
    for one in (a, b):
        one.ask("fleet", "has", point=AFTER)
    for one in (a, b):
        one.ask("knows", "known", processes=2, asks=1)
    a.ask("set", "set", key="first")
    assert [one.hears("ran")["key"] for one in (a, b)] == ["first", "first"]
    (c,) = processes(1)
    c.ask("join", "joined", labels={})
    c.ask("set", "set", key="late")
    for one in (a, b):
        ran = one.hears("ran")
        assert (ran["key"], ran["correlation"]) == ("late", f"by-{c.pid}")
        one.ask("knows", "known", processes=3, asks=1)
    assert c.all_of("ran") == []


def test_one_process_runs_a_hook_and_another_when_that_is_dead(processes: Processes) -> None:
    """Each time exactly one."""
    a, b, c = processes(3)
    for one in (a, b):
        one.ask("fleet", "has", point=AFTER, run="one", timeout=60)
    c.ask("join", "joined", labels={})
    c.ask("knows", "known", processes=3, asks=1)
    for number in range(10):
        c.ask("set", "set", key=f"k{number}")
    ran: list[str] = []
    while len(ran) < 10:
        ran.append(first_to_say("ran", a, b).hears("ran")["key"])
    assert sorted(ran) == sorted(f"k{number}" for number in range(10))
    a.kill()
    for number in range(10):
        c.ask("set", "set", key=f"l{number}")
    left = [b.hears("ran")["key"] for _ in range(10)]
    assert sorted(left) == sorted(f"l{number}" for number in range(10))


def test_what_a_process_was_killed_over_another_one_runs(processes: Processes) -> None:
    """A hook for one process runs at least once, to its end."""
    a, b, c = processes(3)
    a.ask("fleet", "has", point=AFTER, run="one", timeout=9, stalls=True)
    c.ask("join", "joined", labels={})
    c.ask("knows", "known", processes=3 - 1, asks=1)
    c.ask("set", "set", key="k")
    assert a.hears("ran")["key"] == "k"
    b.ask("fleet", "has", point=AFTER, run="one", timeout=9)
    a.kill()
    assert b.hears("ran")["key"] == "k"


def test_labels_choose_the_processes_and_a_veto_comes_from_there(processes: Processes) -> None:
    """Three processes; the guard says no to the others' writes."""
    guard, *others = processes(3)
    guard.ask("join", "joined", labels={"role": "guard"})
    how = {"labels": {"role": "guard"}, "veto": "not here", "await_remote": True}
    for one in (guard, *others):
        one.ask("fleet", "has", point=BEFORE, **how)
    for one in others:
        one.ask("knows", "known", processes=3, asks=1)
        one.tell("set", key="k")
        refused = one.hears("refused", "set")
        assert "cancelled by hook fleet:told at BeforeStateWrite: not here" in refused["error"]
        assert guard.hears("ran")["pid"] == guard.pid
        assert one.all_of("ran") == []


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_dead_process_holds_others_up_no_longer_than_said(
    processes: Processes, goes_on: bool
) -> None:
    """Killed, it cannot say that it leaves."""
    a, b = processes(2)
    how = {"await_remote": True, "timeout": 0.3, "continue_on_failure": goes_on}
    b.ask("fleet", "has", point=BEFORE, **how)
    a.ask("join", "joined", labels={})
    a.ask("knows", "known", processes=2, asks=1)
    b.kill()
    a.tell("set", key="k")
    heard = a.hears("set", "refused", within_s=10)
    assert heard["event"] == ("set" if goes_on else "refused")


# --- history --------------------------------------------------------------------------------------


def test_another_process_replays_what_one_has_recorded(processes: Processes) -> None:
    """After the first has ended."""
    (first,) = processes(1)
    first.ask("record", "recorded", count=250, correlation="run")
    first.finish()
    (second,) = processes(1)
    replayed = second.ask("replay", "replayed", correlation="run")
    assert (replayed["total"], replayed["identical"]) == (250, 250)
    assert replayed["first"] is None


@pytest.mark.parametrize("big", [0, 20_000])
async def test_what_a_killed_process_has_recorded_is_whole(
    processes: Processes, server: Server, namespace: str, big: int
) -> None:
    """Every execution that is there can be read, found by its id, and replayed."""
    (first,) = processes(1)
    first.tell("record", count=0, correlation="run", big=big)
    first.hears("hundred")
    first.ask("flush", "flushed")
    first.kill()
    async with connect(server.url, namespace=namespace) as spell:
        found = await spell.hooks.history.query(correlation_id="run", limit=10_000)
        count = await spell.hooks.history.count()
        assert len(found) == count
        assert len({one.id for one in found}) == len(found) >= 100
        values = [one.context["data"]["value"] for one in found if one.context]
        assert [value.rstrip("x") for value in values] == [str(n) for n in range(len(found))]
        for one in (found[0], found[-1]):
            assert await spell.hooks.history.get(one.id) == one
    (second,) = processes(1)
    replayed = second.ask("replay", "replayed", correlation="run")
    assert replayed["identical"] == replayed["total"] == len(found)


# --- schedules ------------------------------------------------------------------------------------


def test_schedules_go_on_in_another_process_when_theirs_is_killed(processes: Processes) -> None:
    """No moment is run to its end twice, and each runs in one process."""
    a, b, c = processes(3)
    a.ask("record", "recorded", count=5, correlation="run")
    a.ask("flush", "flushed")
    a.ask("schedule", "scheduled", every_s=0.15, correlation="run")
    for one in (b, c):
        # A busy machine may keep the holder from its renewal for a while.
        one.ask("serve", "serving", ttl=3)
    serving = first_to_say("ended", b, c)
    survivor = c if serving is b else b
    ended = [serving.hears("ended")["due"] for _ in range(3)]
    assert survivor.all_of("began") == []
    serving.kill()
    ended += [event["due"] for event in serving.all_of("ended")]
    for _ in range(3):
        event = survivor.hears("ended")
        assert (event["identical"], event["total"]) == (5, 5)
        ended.append(event["due"])
    assert ended == sorted(set(ended)), json.dumps(ended)
