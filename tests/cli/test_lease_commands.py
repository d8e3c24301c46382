"""lease ls, show and break, on every server of the table."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import msgpack
import pytest
from fix_leases import Clients, LeaseStore, S, granted, in_line
from fix_state import until

from llmspell_dist.client import Spell
from llmspell_dist.errors import LeaseNotHeldError
from llmspell_dist.leases.model import LeaseHow

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-m", "llmspell_dist.cli"]
Here = Callable[..., Any]
Ask = Callable[..., Awaitable[Any]]
PID = os.getpid()


@pytest.fixture
def ask(here: Here) -> Ask:
    """The command line in a thread of its own, so that who waits here goes on waiting."""

    async def ask(*words: str) -> Any:
        return await asyncio.to_thread(here, *words)

    return ask


def _cells(out: str) -> list[list[str]]:
    return [line.split("\t") for line in out.splitlines()]


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    assert moment.utcoffset() == timedelta(0)
    return moment


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- ls -------------------------------------------------------------------------------------------


async def test_ls_has_a_row_for_each_holder(
    spell: Spell, ask: Ask, lease_store: LeaseStore
) -> None:
    """With mode, who it is, token, how long yet, and how many wait; nothing if there is none."""
    assert await ask("lease", "ls") == await ask("-q", "lease", "ls")
    assert (await ask("lease", "ls")).out == ""
    async with spell.leases.acquire(S, label="planner", ttl=60) as lease:
        waiter = await in_line(lease_store, spell.leases.acquire(S))
        first = await spell.leases.acquire("tool:t", name="x", mode="shared", owner="r1", ttl=120)
        second = await spell.leases.acquire("tool:t", name="x", mode="shared", owner="r2", ttl=240)
        done = await ask("lease", "ls")
        await _end(waiter)
        await first.release()
        await second.release()
    assert (done.code, done.err) == (0, "")
    rows = _cells(done.out)
    assert [row[:3] for row in rows] == [
        [S, "main", "exclusive"],
        ["tool:t", "x", "shared"],
        ["tool:t", "x", "shared"],
    ]
    assert rows[0][3].startswith("planner (")
    assert rows[0][3].endswith(f":{PID})")
    assert rows[0][4] == str(lease.token)
    assert rows[0][7] == "1"
    assert {row[3].split(" ")[0] for row in rows[1:]} == {"r1", "r2"}
    assert {row[4] for row in rows[1:]} == {str(first.token), str(second.token)}


async def test_ls_as_json_has_times_and_ages(spell: Spell, ask: Ask) -> None:
    """Times are ISO 8601 in UTC, ages are seconds by the server's clock."""
    async with spell.leases.acquire(S, label="planner", ttl=60, owner="me") as lease:
        document = json.loads((await ask("lease", "ls", "--json")).out)
    assert document["namespace"] == spell.namespace
    assert document["deadlocks"] == []
    assert document["more"] is False
    (found,) = document["leases"]
    assert (found["scope"], found["name"], found["held"], found["waiting"]) == (S, "main", True, 0)
    assert found["token"] == lease.token
    (holder,) = found["holders"]
    now, since, expires = (
        _time(text) for text in (found["time"], holder["since"], holder["expires"])
    )
    assert since <= now < expires
    assert holder["age_s"] == pytest.approx((now - since).total_seconds())
    assert holder["expires_in_s"] == pytest.approx((expires - now).total_seconds())
    said = {name: holder[name] for name in ("owner", "label", "pid", "mode", "token", "ttl_s")}
    assert said == {
        "owner": "me",
        "label": "planner",
        "pid": PID,
        "mode": "exclusive",
        "token": lease.token,
        "ttl_s": 60,
    }


async def test_ls_shows_a_lease_that_is_only_waited_for(
    spell: Spell, ask: Ask, lease_store: LeaseStore
) -> None:
    """Its holder's time is over, and the next one has not come yet."""
    held = await spell.leases.acquire(S, renew=False, on_lost="event")
    waiter = await in_line(lease_store, spell.leases.acquire(S))
    lease_store.expire()
    assert _cells((await ask("lease", "ls")).out) == [[S, "main", *"-----", "1"]]
    found = json.loads((await ask("lease", "ls", "--json")).out)["leases"][0]
    assert (found["held"], found["holders"], found["waiting"]) == (False, [], 1)
    shown = await ask("lease", "show", S)
    assert shown.code == 1
    assert "held\tnobody holds it\n" in shown.out
    assert "waiting\t1\n" in shown.out
    await _end(waiter)
    with pytest.raises(LeaseNotHeldError):
        await held.release()


async def test_ls_stops_at_its_limit_with_those_that_end_first(spell: Spell, ask: Ask) -> None:
    """And says that there may be more."""
    held = [await spell.leases.acquire(f"agent:a{i}", ttl=90 - i) for i in range(3)]
    document = json.loads((await ask("lease", "ls", "--limit", "2", "--json")).out)
    for lease in held:
        await lease.release()
    assert [lease["scope"] for lease in document["leases"]] == ["agent:a2", "agent:a1"]
    assert document["more"] is True


async def test_ls_looks_into_every_shard(clients: Clients, ask: Ask) -> None:
    """Soonest first over all of them."""
    (spell,) = await clients(1, shards=4)
    scopes = [f"agent:a{i}" for i in range(12)]
    held = [await spell.leases.acquire(scope, ttl=90 - i) for i, scope in enumerate(scopes)]
    shards = {lease.grant.claim.target.shard for lease in held}
    assert len(shards) > 1
    rows = _cells((await ask("lease", "ls")).out)
    few = json.loads((await ask("lease", "ls", "--limit", "3", "--json")).out)
    for lease in held:
        await lease.release()
    assert [row[0] for row in rows] == scopes[::-1]
    assert [lease["scope"] for lease in few["leases"]] == scopes[:-4:-1]


async def test_ls_names_a_deadlock(spell: Spell, ask: Ask, lease_store: LeaseStore) -> None:
    """One that no acquire could refuse, because a grant closed the circle."""
    one, two, acquire = "agent:one", "agent:two", spell.leases.acquire
    first = await acquire(one, owner="h")
    alices = await acquire(two, owner="a", label="alice")
    bob_gets = await in_line(lease_store, acquire(one, owner="b", label="bob"), scope=one)
    alice_waits = await in_line(lease_store, acquire(one, owner="a"), scope=one)
    bob_waits = await in_line(lease_store, acquire(two, owner="b"), scope=two)
    assert json.loads((await ask("lease", "ls", "--json")).out)["deadlocks"] == []
    await first.release()
    bobs = await granted(bob_gets)
    document = json.loads((await ask("lease", "ls", "--json")).out)
    text = await ask("lease", "ls")
    await _end(alice_waits, bob_waits)
    await alices.release()
    await bobs.release()
    (cycle,) = document["deadlocks"]
    assert sorted(cycle, key=lambda edge: edge["waiter"]) == [
        {"waiter": "a", "scope": one, "name": "main", "holder": "b"},
        {"waiter": "b", "scope": two, "name": "main", "holder": "a"},
    ]
    assert text.code == 0
    (said,) = [row[1] for row in _cells(text.out) if row[0] == "deadlock"]
    host = document["leases"][0]["holders"][0]["host"]
    alice, bob = f"alice ({host}:{PID})", f"bob ({host}:{PID})"
    assert f"{alice} waits for {one} main, held by {bob}" in said
    assert f"{bob} waits for {two} main, held by {alice}" in said


# --- show -----------------------------------------------------------------------------------------


async def test_show_says_that_nobody_holds_it(ask: Ask) -> None:
    """With exit code 1, for people and as JSON."""
    shown = await ask("lease", "show", S)
    assert (shown.code, shown.err) == (1, "")
    assert dict(_cells(shown.out)) == {
        "scope": S,
        "name": "main",
        "held": "nobody holds it",
        "token": "-",
        "waiting": "0",
        "required": "no",
        "fence": "0",
    }
    document = json.loads((await ask("lease", "show", S, "--json")).out)
    _time(document.pop("time"))
    assert document == {
        "scope": S,
        "name": "main",
        "held": False,
        "token": None,
        "holders": [],
        "waiting": 0,
        "waiters": [],
        "history": [],
        "required": None,
        "fence": 0,
    }


async def test_show_has_holder_waiters_and_history(
    spell: Spell, ask: Ask, lease_store: LeaseStore
) -> None:
    """Waiters in order with mode and deadline, ended holds newest first with how they ended."""
    acquire = spell.leases.acquire
    async with acquire(S, label="old") as old:
        pass
    async with acquire(S, label="new", ttl=60) as new:
        waiting = [
            await in_line(lease_store, acquire(S, label="w1", mode="shared")),
            await in_line(lease_store, acquire(S, label="w2", wait=600)),
        ]
        shown = await ask("lease", "show", S)
        document = json.loads((await ask("lease", "show", S, "--json")).out)
        cut = json.loads((await ask("lease", "show", S, "--waiters", "1", "--json")).out)
        await _end(*waiting)
    assert shown.code == 0
    rows = _cells(shown.out)
    assert ["held", "exclusive"] in rows
    assert [row[1:4:2] for row in rows if row[0] == "holder"] == [["exclusive", str(new.token)]]
    first, second = (row for row in rows if row[0] == "waiter")
    assert (first[1], first[2].split(" ")[0], first[5:]) == ("shared", "w1", ["never", "yes"])
    assert (second[1], second[2].split(" ")[0]) == ("exclusive", "w2")
    assert _time(second[5]) == _time(document["waiters"][1]["deadline"])
    (past,) = (row for row in rows if row[0] == "past")
    assert past[1:3] == ["released", "exclusive"]
    assert past[4] == str(old.token)

    assert [waiter["label"] for waiter in document["waiters"]] == ["w1", "w2"]
    assert document["waiters"][0]["deadline"] is None
    bound = _time(document["waiters"][1]["deadline"]) - _time(document["waiters"][1]["since"])
    assert timedelta(seconds=580) < bound <= timedelta(seconds=600)
    assert document["waiters"][1]["connected"] is True
    (ended,) = document["history"]
    assert (ended["label"], ended["token"], ended["how"]) == ("old", old.token, "released")
    assert ended["held_s"] == pytest.approx(
        (_time(ended["ended"]) - _time(ended["since"])).total_seconds()
    )
    assert ([w["label"] for w in cut["waiters"]], cut["waiting"]) == (["w1"], 2)


async def test_show_has_what_the_scope_demands_and_its_highest_fence(
    spell: Spell, ask: Ask
) -> None:
    """And a write of the command line, which carries no lease, is exit code 3."""
    await spell.leases.require(S, name="a:b")
    async with spell.leases.acquire(S, name="a:b") as demanded, spell.leases.acquire(S) as main:
        await demanded.state.set(S, "k", 1)
        document = json.loads((await ask("lease", "show", S, "--json")).out)
        refused = await ask("set", S, "k", "2", "--json")
        shown = await ask("lease", "show", S, "--name", "a:b")
    assert document["required"] == "a:b"
    assert document["holders"][0]["token"] == main.token
    assert document["fence"] == (await spell.state.stat(S)).fence
    assert "required\ta:b: every write must carry it\n" in shown.out
    assert f"token\t{demanded.token}\n" in shown.out
    assert refused.code == 3
    assert json.loads(refused.err)["error"]["code"] == "LEASE_REQUIRED"


async def test_show_has_the_token_of_the_last_fenced_write(spell: Spell, ask: Ask) -> None:
    """Under the name that fences a scope's own writes."""
    async with spell.leases.acquire(S) as lease:
        await lease.state.set(S, "k", 1)
        document = json.loads((await ask("lease", "show", S, "--json")).out)
    assert document["fence"] == lease.token


# --- break ----------------------------------------------------------------------------------------


async def test_break_takes_it_from_its_holder(spell: Spell, ask: Ask) -> None:
    """Who hears of it at once; the log has the reason, whose it was, and who did it."""
    lease = await spell.leases.acquire(S, label="stuck", on_lost="event")
    done = await ask("lease", "break", S, "--reason", "hangs", "--yes")
    assert (done.code, done.err) == (0, "")
    (row,) = _cells(done.out)
    assert row[1].startswith("stuck (")
    assert row[2:4] == ["exclusive", str(lease.token)]
    await asyncio.wait_for(lease.lost.wait(), 5)
    assert not lease.held
    (entry,) = await spell.log.entries(newest_first=True, limit=1)
    assert row[0] == str(entry.revision)
    payload = entry.changes[0].payload
    assert payload is not None
    said = msgpack.unpackb(payload)
    assert (said["reason"], said["lease"]) == ("hangs", "main")
    assert said["holders"] == [[lease.owner, "stuck", lease.token]]
    assert "@" in entry.meta["a"]
    (past,) = json.loads((await ask("lease", "show", S, "--json")).out)["history"]
    assert (past["how"], past["token"]) == ("broken", lease.token)


async def test_break_gives_it_to_the_next_in_line(
    spell: Spell, ask: Ask, lease_store: LeaseStore
) -> None:
    """As JSON with the holder that it was taken from; with -q nothing is printed."""
    lease = await spell.leases.acquire(S, label="stuck", on_lost="event")
    waiter = await in_line(lease_store, spell.leases.acquire(S, on_lost="event"))
    words = ("lease", "break", S, "--token", str(lease.token), "--reason", "hangs", "-y")
    document = json.loads((await ask(*words, "--json")).out)
    (broken,) = document.pop("broken")
    assert document == {"scope": S, "name": "main", "reason": "hangs"}
    assert (broken["label"], broken["token"]) == ("stuck", lease.token)
    (entry,) = await spell.log.entries(newest_first=True, limit=1)
    assert broken["revision"] == str(entry.revision)
    following = await granted(waiter)
    quiet = await ask("-q", "lease", "break", S, "--reason", "too", "-y")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    await asyncio.wait_for(following.lost.wait(), 5)


async def test_break_takes_it_from_every_reader(spell: Spell, ask: Ask) -> None:
    """Each with an entry of its own; with --token only from that one."""
    readers = [
        await spell.leases.acquire(S, name="r", mode="shared", owner=f"r{i}", on_lost="event")
        for i in range(3)
    ]
    words = ("lease", "break", S, "--name", "r", "--reason", "move", "--yes")
    one = _cells((await ask(*words, "--token", str(readers[1].token))).out)
    rest = _cells((await ask(*words)).out)
    for reader in readers:
        await asyncio.wait_for(reader.lost.wait(), 5)
    assert [row[3] for row in one] == [str(readers[1].token)]
    assert sorted(row[3] for row in rest) == sorted(str(readers[i].token) for i in (0, 2))
    entries = await spell.log.entries(newest_first=True, limit=3)
    assert {row[0] for row in one + rest} == {str(entry.revision) for entry in entries}


async def test_break_of_what_nobody_holds_is_exit_code_1(spell: Spell, ask: Ask) -> None:
    """Also if it is held with another token: nothing is changed, and the error says by whom."""
    words = ("lease", "break", S, "--reason", "hangs", "--yes", "--json")
    nobody = await ask(*words)
    assert (nobody.code, nobody.out) == (1, "")
    error = json.loads(nobody.err)["error"]
    assert (error["code"], error["current"]) == ("LEASE_NOT_HELD", None)
    async with spell.leases.acquire(S, label="fine") as lease:
        other = await ask(*words, "--token", str(lease.token - 1))
        lease.check()
        assert (await spell.leases.show(S)).history == ()
    assert other.code == 1
    assert "fine" in json.loads(other.err)["error"]["current"]
    assert await spell.log.entries() == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--reason", "hangs"), "--yes"),
        (("--reason", " ", "--yes"), "--reason"),
        (("--reason", "x" * 1025, "--yes"), "--reason"),
        (("--reason", "\udcff", "--yes"), "--reason"),
        (("--yes",), "--reason"),
        (("--reason", "hangs", "--token", "0", "--yes"), "--token"),
        (("--reason", "hangs", "--name", "", "--yes"), "--name"),
    ],
    ids=["no terminal", "blank", "long", "no text", "no reason", "no token", "no name"],
)
async def test_break_with_bad_words_changes_nothing(
    *, spell: Spell, ask: Ask, words: tuple[str, ...], named: str
) -> None:
    """Exit code 2 names the option; where nobody can be asked, --yes must be given."""
    async with spell.leases.acquire(S) as lease:
        done = await ask("lease", "break", S, *words)
        assert (await spell.leases.show(S)).holders[0].token == lease.token
    assert (done.code, done.out) == (2, "")
    assert named in done.err
    assert done.err.count("\n") == 1


class _Terminal:
    """A standard input at which somebody sits, who answers after something has happened."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self._happens = happens

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        self._happens()
        return "yes\n"


async def test_who_got_it_while_somebody_was_asked_is_not_hit(
    spell: Spell, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was about the holder that was shown."""
    loop = asyncio.get_running_loop()
    first = await spell.leases.acquire(S, label="first")
    new: list[Any] = []

    async def pass_on() -> None:
        await first.release()
        new.append(await spell.leases.acquire(S, label="second"))

    def happens() -> None:
        asyncio.run_coroutine_threadsafe(pass_on(), loop).result(10)

    monkeypatch.setattr(sys, "stdin", _Terminal(happens))
    done = await ask("lease", "break", S, "--reason", "hangs")
    new[0].check()
    assert (await spell.leases.show(S)).holders[0].token == new[0].token
    await new[0].release()
    assert done.code == 1
    assert "LEASE_NOT_HELD" in done.err
    assert "first" in done.err


@pytest.mark.needs("process")
@pytest.mark.parametrize(
    ("answer", "code"),
    [(b"n\n", 1), (b"\n", 1), (b"\x04", 1), (b"y\n", 0), (b"\x03", 130)],
    ids=["no", "enter", "end of input", "yes", "Ctrl-C"],
)
async def test_break_asks_on_a_terminal(
    *,
    spell: Spell,
    url: str,
    process_environment: dict[str, str],
    answer: bytes,
    code: int,
) -> None:
    """It says whose it is; only yes does it, anything else is exit code 1, Ctrl-C 130."""
    lease = await spell.leases.acquire(S, label="[red]stuck", on_lost="event")
    master, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("--url", url, "--namespace", spell.namespace, "lease", "break", S, "--reason", "hangs"),
        env=process_environment | {"TERM": "xterm", "NO_COLOR": "1"},
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_controlling_terminal,
    )
    try:
        assert process.stderr is not None
        asked = await asyncio.wait_for(process.stderr.readuntil(b"[y/N]"), 30)
        os.write(master, answer)
        out, _ = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)
        os.close(slave)
    assert process.returncode == code
    assert b"[red]stuck" in asked
    assert str(lease.token).encode() in asked
    info = await spell.leases.show(S)
    if code == 0:
        assert not info.held
        assert info.history[0].how is LeaseHow.BROKEN
        assert str(lease.token).encode() in out
        await until(lease.lost.is_set)
    else:
        assert info.holders[0].token == lease.token
        assert out == b""
        await lease.release()


def _controlling_terminal() -> None:
    """Let the keys of the standard input's terminal reach this process as signals."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


# --- on a terminal, and the group -----------------------------------------------------------------


@pytest.mark.needs("process")
async def test_on_a_terminal_there_are_tables(
    spell: Spell, url: str, process_environment: dict[str, str], lease_store: LeaseStore
) -> None:
    """With headings; brackets of a label are text; what a limit cut off is said."""

    async def shown(*words: str) -> str:
        master, slave = pty.openpty()
        try:
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                *("--url", url, "--namespace", spell.namespace, "lease", *words),
                env=process_environment | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "200"},
                stdin=subprocess.DEVNULL,
                stdout=slave,
                stderr=subprocess.PIPE,
            )
            _, errors = await asyncio.wait_for(process.communicate(), 30)
            assert errors == b""
            return os.read(master, 65536).decode()
        finally:
            os.close(master)
            os.close(slave)

    assert "no lease is held or waited for" in await shown("ls")
    async with spell.leases.acquire(S, label="[red]x", ttl=60):
        waiting = [await in_line(lease_store, spell.leases.acquire(S)) for _ in range(2)]
        listed, one = await shown("ls", "--limit", "1"), await shown("show", S, "--waiters", "1")
        await _end(*waiting)
    assert "EXPIRES IN" in listed
    assert "[red]x" in listed
    assert "see --limit" in listed
    assert "CONNECTED" in one
    assert "HOW" not in one
    assert "1 of 2 who wait are shown" in one


def test_the_group_alone_prints_its_help(here: Here) -> None:
    """With exit code 2, as the program alone."""
    done = here("lease")
    assert done.code == 2
    for word in ("ls", "show", "break"):
        assert word in done.out


def test_what_is_no_scope_or_number_is_exit_code_2(here: Here) -> None:
    """Named as it was typed."""
    for words, named in (
        (("show", "nonsense"), "SCOPE"),
        (("show", S, "--name", "n" * 200), "--name"),
        (("show", S, "--waiters", "1001"), "--waiters"),
        (("ls", "--limit", "0"), "--limit"),
    ):
        done = here("lease", *words)
        assert done.code == 2
        assert named in done.err
