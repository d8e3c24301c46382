"""CPU and memory of all that takes part, twice a second, and of everything else on the machine."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import psutil

__all__ = ["OTHERS", "Sample", "Sampler", "Usage", "usage"]

EVERY_S: Final = 0.5
OTHERS: Final = "everything else"
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process had used at one moment."""

    time: float
    process: str
    cpu_s: float
    thread_s: float
    """Of its busiest thread."""
    rss: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process used over a while."""

    cores: float
    busiest_thread: float
    """Part of a core."""
    rss_first: int
    rss_last: int

    @property
    def growth(self) -> float:
        """By which part its memory grew."""
        return self.rss_last / self.rss_first - 1 if self.rss_first else 0.0


class Sampler:
    """Samples in a thread of its own, until it is stopped."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._processes: dict[str, psutil.Process] = {}
        self._parents: dict[str, psutil.Process] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def add(self, name: str, pid: int | None) -> None:
        """Take a process into account, in place of the last one of this name."""
        if pid is not None:
            self._processes[name] = psutil.Process(pid)

    def add_child(self, name: str, parent: int) -> None:
        """Take the child of a process into account, once it is there."""
        self._parents[name] = psutil.Process(parent)
        self._processes.pop(name, None)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            self.take()

    def take(self) -> None:
        """Sample all of them now."""
        now = time.time()
        self._find_children()
        for name, process in [*self._processes.items()]:
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                with process.oneshot():
                    cpu = process.cpu_times()
                    rss = process.memory_info().rss
                threads = [thread.user_time + thread.system_time for thread in process.threads()]
                spent = cpu.user + cpu.system
                self.samples.append(Sample(now, name, spent, max(threads, default=0.0), rss))
        times = psutil.cpu_times()
        busy = (
            sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        )
        self.samples.append(Sample(now, OTHERS, busy, 0.0, 0))

    def _find_children(self) -> None:
        for name, parent in [*self._parents.items()]:
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                for child in parent.children():
                    self._processes[name] = child
                    del self._parents[name]
                    break

    def write(self, path: Path) -> None:
        """Write all samples as CSV."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["time", "process", "cpu_s", "busiest_thread_s", "rss_bytes"])
            for sample in self.samples:
                writer.writerow(
                    [
                        f"{sample.time:.2f}",
                        "machine" if sample.process == OTHERS else sample.process,
                        f"{sample.cpu_s:.2f}",
                        f"{sample.thread_s:.2f}",
                        sample.rss,
                    ]
                )


def usage(samples: Iterable[Sample], since: float, until: float) -> dict[str, Usage]:
    """Return what each process used in a span of time, and `OTHERS` besides them.

    Memory is the mean of the first and of the last tenth of the span: single samples jump.
    """
    spans: dict[str, list[Sample]] = {}
    for sample in samples:
        if since <= sample.time <= until:
            spans.setdefault(sample.process, []).append(sample)
    found = {name: _usage(span) for name, span in spans.items() if len(span) > 1}
    machine = found.pop(OTHERS, None)
    if machine is not None:
        ours = sum(one.cores for one in found.values())
        found[OTHERS] = Usage(max(0.0, machine.cores - ours), 0.0, 0, 0)
    return found


def _usage(span: list[Sample]) -> Usage:
    first, last = span[0], span[-1]
    seconds = last.time - first.time
    tenth = max(1, len(span) // 10)
    return Usage(
        cores=(last.cpu_s - first.cpu_s) / seconds,
        busiest_thread=(last.thread_s - first.thread_s) / seconds,
        rss_first=sum(sample.rss for sample in span[:tenth]) // tenth,
        rss_last=sum(sample.rss for sample in span[-tenth:]) // tenth,
    )
