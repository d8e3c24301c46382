"""The other process of the row archive_lag: writes so many commits a second for so many seconds.

Run as ``python -m benchmarks.archive_worker URL RATE SECONDS``; at the end it prints how many.
"""

from __future__ import annotations

import asyncio
import sys
from time import monotonic

import llmspell_dist
from benchmarks.ours import NAMESPACE

_VALUE = {"role": "assistant", "content": "x" * 180, "turn": 1}
_AT_ONCE = 200


async def main(url: str, rate: int, seconds: float) -> None:
    """Write, behind the clock by at most one batch as long as the machine keeps up."""
    async with llmspell_dist.connect(url, namespace=NAMESPACE) as spell:
        began, written = monotonic(), 0
        while (passed := monotonic() - began) < seconds:
            due = min(_AT_ONCE, int(passed * rate) - written)
            if due <= 0:
                await asyncio.sleep(0.002)
                continue
            numbers = range(written, written + due)
            await asyncio.gather(
                *(spell.state.set(f"agent:a{n % 50}", f"k{n % 20}", _VALUE) for n in numbers)
            )
            written += due
        sys.stdout.write(f"{written}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
