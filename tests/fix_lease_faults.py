"""What the fault tests of leases share: worker processes, a look at one lease, a wrong clock.

A worker is `faults/lease_process.py`; it is told what to do and tells what happened, over pipes.
Times that workers tell are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import msgpack
import pytest
from fix_faults import environment, raw_to
from fix_leases import EXPIRES
from fix_state import Raw, until

from llmspell_dist.changes import unpack_entry
from llmspell_dist.keys import KeySpace
from llmspell_dist.leases.model import LeaseHolder
from llmspell_dist.leases.wire import read_holder
from llmspell_dist.scope import Scope

LEASED = "agent:leased"
NAME = "main"
WORKER = Path(__file__).parent / "faults" / "lease_process.py"
SHIM = Path(__file__).parent / "faults" / "lease_clock.c"
SEED_VARIABLE = "LLMSPELL_TEST_SEED"


def chance(what: str) -> random.Random:
    """Return random numbers, the same in each run unless LLMSPELL_TEST_SEED gives a seed.

    ``LLMSPELL_TEST_SEED=random`` draws one, as campaigns do; it is printed, to repeat a run.
    """
    seed = os.environ.get(SEED_VARIABLE) or "1"
    if seed == "random":
        seed = secrets.token_hex(4)
    sys.stdout.write(f"{what}: {SEED_VARIABLE}={seed}\n")
    return random.Random(f"{what} {seed}")


def report(what: str, /, **figures: Any) -> None:
    """Print the figures of a campaign as one line of JSON."""
    sys.stdout.write(json.dumps({"campaign": what, **figures}) + "\n")


def at_most(rounds: int) -> str:
    """Return how often something can happen at most that was seen 0 times of `rounds`."""
    return f"0 of {rounds}, at most {3 / rounds:.4f} with 95 % confidence"


def wait_until(
    holds: Callable[[], bool], within_s: float = 10.0, *, every_s: float = 0.001
) -> None:
    """Wait for something that time brings, and fail if it does not come."""
    asyncio.run(until(holds, within_s=within_s, every_s=every_s))


# --- worker processes -----------------------------------------------------------------------------


class LeaseProcess:
    """A process that works with leases. It belongs to the test and is ended by its pid."""

    def __init__(self, url: str, namespace: str, scope: str, clock: str, env: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, WORKER, url, namespace, scope, clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment(), **env},
        )
        self._unread = b""
        self._events: list[dict[str, Any]] = []

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def tell(self, do: str, **arguments: Any) -> None:
        """Give a command; it is not waited for. A new `hold` lets be forgotten what was said."""
        assert self._process.stdin is not None
        if do == "hold":
            self._take(0.0)
            self._events = [event for event in self._events if event["event"] == "error"]
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def hears(self, *events: str, within_s: float = 20.0) -> dict[str, Any]:
        """Return the next of the named events; what else is said is kept for later."""
        deadline = monotonic() + within_s
        while True:
            for place, event in enumerate(self._events):
                assert event["event"] != "error", event["text"]
                if event["event"] in events:
                    return self._events.pop(place)
            self._read(deadline, events)

    def hears_ready(self) -> None:
        """Wait until it is there; a busy machine takes its time to start a Python process."""
        self.hears("ready", within_s=60)

    def takes(self) -> int | None:
        """Return the token that it is granted; None if that was over when it heard of it."""
        granted = self.hears("granted", "lost")
        return int(granted["token"]) if granted["event"] == "granted" else None

    def holds_in_front(self, view: LeaseView, waiters: int) -> bool:
        """Wait until it has made its writes and so many wait for it; whether it holds it still."""
        if self.hears("reached", "lost")["event"] == "lost":
            return False
        wait_until(lambda: view.waiting() == waiters or self.said("told"))
        if self.said("told"):
            self.hears("lost")
            return False
        return True

    def said(self, event: str) -> bool:
        """Return whether an event is there already; it is not taken away."""
        self._take(0.0)
        return any(found["event"] == event for found in self._events)

    def _read(self, deadline: float, events: tuple[str, ...]) -> None:
        left_s = deadline - monotonic()
        names = " or ".join(events)
        assert left_s > 0, f"process {self.pid} did not say {names}, but {self._events}"
        assert self._take(left_s), f"process {self.pid} ended before it said {names}"

    def _take(self, within_s: float) -> bool:
        """Take in what was said; False at the end of the output."""
        assert self._process.stdout is not None
        file = self._process.stdout.fileno()
        if not select.select([file], [], [], within_s)[0]:
            return True
        data = os.read(file, 1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        self._events += [json.loads(line) for line in lines]
        return bool(data)

    def ask(self, do: str, answer: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and return the event that answers it."""
        self.tell(do, **arguments)
        return self.hears(answer)

    def stop(self) -> None:
        """Hold the process where it is."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a stopped process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> float:
        """End the process as a crash would; return the moment before."""
        at = monotonic()
        self._process.kill()
        self._process.wait(10)
        return at

    def end(self) -> None:
        """Let the process end by itself, without an error."""
        self.tell("end")
        self.hears("ended")
        assert self._process.wait(20) == 0

    def close(self) -> None:
        """End the process, whatever state it is in."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # a line that nobody will read
                    pipe.close()


Workers = Callable[..., LeaseProcess]


@pytest.fixture
def workers(namespace: str) -> Iterator[Workers]:
    """A factory of processes: `workers(server)`; any with `.url` will do. All end with the test.

    They are not waited for: `hears_ready` is the caller's.
    """
    made: list[LeaseProcess] = []

    def make(
        server: Any,
        *,
        scope: str = LEASED,
        clock: str = "right",
        env: Mapping[str, str] | None = None,
    ) -> LeaseProcess:
        made.append(LeaseProcess(server.url, namespace, scope, clock, env or {}))
        return made[-1]

    yield make
    for process in made:
        process.close()


# --- a look at the lease --------------------------------------------------------------------------


class LeaseView:
    """One lease as it lies in Redis, and who wrote under it."""

    def __init__(self, raw: Raw, namespace: str, scope: str = LEASED) -> None:
        self.raw = raw
        space, parsed = KeySpace(namespace), Scope.parse(scope)
        self._log, self._waits = space.log(space.shard(parsed)), space.waits(space.shard(parsed))
        self._lease = space.lease(parsed, NAME)
        self._queue = space.lease_queue(parsed, NAME)
        self._readers = space.lease_readers(parsed, NAME)

    def waiting(self) -> int:
        """How many are in the queue."""
        return int(self.raw("ZCARD", self._queue))

    def wait_for_waiters(self, count: int) -> None:
        """Wait until so many are in the queue."""
        wait_until(lambda: self.waiting() == count)

    @property
    def record(self) -> LeaseHolder | None:
        """What the server has about a holder, be its time over or not."""
        found = self.raw("HGET", self._lease, "x")
        return read_holder(found) if found else None

    def last_entry(self) -> bytes:
        """The id of the newest entry of the log; ``0`` if there is none."""
        found = self.raw("XREVRANGE", self._log, "+", "-", "COUNT", 1)
        return bytes(found[0][0]) if found else b"0"

    def tokens_since(self, entry: bytes) -> list[int]:
        """The tokens of the holders who wrote after an entry of the log, in order."""
        entries = self.raw("XRANGE", self._log, b"(" + entry, "+")
        changes = [change for entry in entries for change in unpack_entry(*entry).changes]
        written = [msgpack.unpackb(one.payload) for one in changes if one.key == "written"]
        return [int(text.partition(":")[0]) for text in written]

    def expire(self) -> None:
        """Let the time of who holds it exclusively be over."""
        record = self.raw("HGET", self._lease, "x")
        over = (self.raw.now_ms() - 1).to_bytes(EXPIRES.stop - EXPIRES.start, "big")
        self.raw("HSET", self._lease, "x", record[: EXPIRES.start] + over + record[EXPIRES.stop :])

    def wait_for_renewals(self, holder: LeaseProcess, count: int = 1) -> None:
        """Let a process renew what it holds, and wait until the server has prolonged it so often.

        A renewal within the millisecond of the one before prolongs nothing, so it is asked again.
        """
        for _ in range(count):
            record = self.record
            assert record is not None
            before = record.expires

            def prolonged() -> bool:
                holder.tell("renew")
                now = self.record
                return now is not None and now.expires > before  # noqa: B023

            wait_until(prolonged, every_s=0.05)

    def forget(self) -> None:
        """Take the lease away from the server, with all it knows of it."""
        self.raw("DEL", self._lease, self._queue, self._readers)

    def check_nothing_left(self) -> None:
        """Fail unless nobody holds the lease, nobody waits, and no trace of a waiter is left."""
        assert self.record is None
        assert self.raw("EXISTS", self._queue, self._readers, self._waits) == 0
        fields = self.raw("HKEYS", self._lease)
        assert not [field for field in fields if field.startswith(b"w:")]


@contextmanager
def looking_at(server: Any, namespace: str) -> Iterator[LeaseView]:
    """Look at the lease of a server that a test has started itself; not over a restart."""
    raw = raw_to(server)
    yield LeaseView(raw, namespace)
    raw.close()


def in_line(view: LeaseView, *waiters: LeaseProcess, ttl: float) -> None:
    """Let processes wait for the lease, in this order."""
    before = view.waiting()
    for place, waiter in enumerate(waiters, before + 1):
        waiter.tell("hold", ttl=ttl)
        view.wait_for_waiters(place)


@pytest.fixture
def view(raw: Raw, namespace: str) -> LeaseView:
    """The lease that workers of `server` take, as it lies in Redis."""
    return LeaseView(raw, namespace)


# --- clocks ---------------------------------------------------------------------------------------


class Clock:
    """The time of day of the processes that are started with it, which a test can set."""

    def __init__(self, shim: Path, folder: Path) -> None:
        self._file = folder / f"clock-{secrets.token_hex(4)}"
        self.jump(0)
        self.environment = {"LD_PRELOAD": str(shim), "LLMSPELL_TEST_CLOCK": str(self._file)}

    def jump(self, seconds: float) -> None:
        """Let it be off by so much, at once."""
        self._file.touch()
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", round(seconds * 1e9)))

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """Let every process that is started meanwhile have this clock."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            yield


@pytest.fixture(scope="session")
def clock_shim() -> Iterator[Path]:
    """A library that gives a process another time of day; needs a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        what = "no C compiler for Linux: whole processes cannot be given a wrong clock"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must cover wrong clocks: {what}")
        pytest.skip(what)
    with tempfile.TemporaryDirectory(prefix="llmspell-clock-") as folder:
        library = Path(folder) / "lease_clock.so"
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(SHIM)]
        subprocess.run(command, check=True, timeout=60)
        yield library


@pytest.fixture
def clock(clock_shim: Path, tmp_path: Path) -> Clock:
    """A clock for processes of this test."""
    return Clock(clock_shim, tmp_path)
