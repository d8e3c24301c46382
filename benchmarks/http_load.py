"""Requests to one URL over so many connections: by wrk where it is installed, else by this module.

``python -m benchmarks.http_load URL CONNECTIONS SECONDS`` prints requests a second and the median
in microseconds. It runs in a process of its own, so that it does not share its peer's interpreter.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

import uvloop

__all__ = ["Load", "load", "loader"]

_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


@dataclass(frozen=True, slots=True)
class Load:
    """What was reached."""

    per_second: float
    median_us: float


def loader() -> str:
    """Return what makes the requests."""
    return "wrk" if shutil.which("wrk") else "asyncio"


def load(url: str, connections: int, seconds: float) -> Load:
    """Send requests for so long and return what was reached; an answer that is no 2xx fails."""
    if loader() == "wrk":
        return _wrk(url, connections, seconds)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.http_load", url, str(connections), str(seconds)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return Load(**json.loads(done.stdout))


def _wrk(url: str, connections: int, seconds: float) -> Load:
    whole = max(1, round(seconds))
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--latency", url],
        capture_output=True,
        text=True,
        check=True,
    )
    out = done.stdout
    assert "Non-2xx" not in out, out
    assert "Socket errors" not in out, out
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    middle = re.search(r"50%\s+([\d.]+)(us|ms|s)", out)
    assert rate is not None, out
    assert middle is not None, out
    return Load(float(rate[1]), float(middle[1]) * _UNITS[middle[2]])


async def _own(url: str, connections: int, seconds: float) -> Load:
    parts = urlsplit(url)
    request = f"GET {parts.path or '/'} HTTP/1.1\r\nhost: {parts.netloc}\r\n\r\n".encode()
    end = perf_counter() + seconds
    took: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while (started := perf_counter()) < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 2"), head
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length is not None, head
            await reader.readexactly(int(length[1]))
            took.append(perf_counter() - started)
        writer.close()

    await asyncio.gather(*[client() for _ in range(connections)])
    return Load(len(took) / seconds, statistics.median(took) * 1e6)


if __name__ == "__main__":
    _, asked, at_once, duration = sys.argv
    found = uvloop.run(_own(asked, int(at_once), float(duration)))
    print(json.dumps({"per_second": found.per_second, "median_us": found.median_us}))
