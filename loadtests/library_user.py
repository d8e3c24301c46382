"""Locust's side of the engine: starts it, tells it of users, takes what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust.stats import RequestStats, StatsEntry, bucket_response_time

from loadtests.histogram import Histogram
from loadtests.ledger import Ledger
from loadtests.recorder import Recorder
from loadtests.settings import LoadSettings

__all__ = ["Engine", "EngineError"]

_READY_WITHIN_S = 30.0
_END_WITHIN_S = 15.0


class EngineError(Exception):
    """The process in which the library runs has ended."""


class Engine:
    """The process in which the library runs; its samples go into Locust's statistics."""

    def __init__(self, settings: LoadSettings, recorder: Recorder, stats: RequestStats) -> None:
        self._recorder = recorder
        self._stats = stats
        folder = str(Path(__file__).parent.parent)
        paths = [folder, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        variables = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "LLMSPELL_LOAD_RUN": settings.run,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | variables,
            text=True,
        )
        self._ready = Event()
        self._complete = False
        self._reading = gevent.spawn(self._read)
        if not self._ready.wait(_READY_WITHIN_S):
            self._process.kill()
            raise EngineError("the library's process did not become ready")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def start_user(self, role: str, number: int, name: str) -> None:
        """Let a user begin."""
        self._order({"do": "start", "role": role, "number": number, "name": name})

    def stop_user(self, name: str) -> None:
        """Let a user end."""
        self._order({"do": "stop", "name": name})

    def check(self) -> None:
        """Raise `EngineError` if it does not run any more."""
        if self._process.poll() is not None:
            raise EngineError(f"the library's process ended with {self._process.returncode}")

    def close(self) -> None:
        """End it; what it measured last is taken first."""
        self._order({"do": "end"})
        self._reading.join(_END_WITHIN_S)
        if self._process.poll() is None and not self._reading.ready():
            self._process.kill()
        self._process.wait()
        if not self._complete:
            self._recorder.failures["the library's process did not end as it should"] += 1

    def _order(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.check()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            self._ready.set()
            if "ledger" in told:
                self._recorder.ledger.merge(Ledger.from_json(told["ledger"]))
                self._complete = True
                return
            for name, data in told["names"].items():
                self._take(name, Histogram.from_json(data), told["failures"].get(name, {}))

    def _take(self, name: str, found: Histogram, failures: dict[str, int]) -> None:
        """Add as Locust's master adds what a worker reports."""
        self._recorder.add(name, found, failures)
        for text, count in failures.items():
            for _ in range(count):
                self._stats.log_error("library", name, text)
        entry = StatsEntry(self._stats, name, "library")
        second = int(time.time())
        entry.num_requests = found.count
        entry.total_response_time = found.total_ms  # type: ignore[assignment]
        entry.num_reqs_per_sec = {second: found.count}
        entry.last_request_timestamp = time.time()
        for number, count in found.classes.items():
            ms = Histogram.ms_of(number)
            entry.response_times[bucket_response_time(ms)] += count
            entry.max_response_time = max(entry.max_response_time, ms)  # type: ignore[assignment]
            least = ms if entry.min_response_time is None else entry.min_response_time
            entry.min_response_time = min(least, ms)  # type: ignore[assignment]
        self._stats.entries[name, "library"].extend(entry)
        self._stats.total.extend(entry)
