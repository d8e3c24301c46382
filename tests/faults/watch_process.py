"""A process that watches one scope and writes down what it saw, until it is killed.

Run by the tests of watches as ``watch_process.py URL NAMESPACE SCOPE FILE``. Each change is one
line of the file: revision, key and value, written before the next one is asked for; the process
goes on after the last whole line that it finds there.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import llmspell_dist
from llmspell_dist import Options, Revision


def opened(name: str) -> tuple[Any, Revision]:
    """Return the file, without a line that a kill cut off, and up to where it has everything."""
    file = Path(name).open("a+b", buffering=0)  # noqa: SIM115 - for the life of the process
    file.seek(0)
    whole = file.read()
    file.truncate(whole.rfind(b"\n") + 1)
    lines = whole.split(b"\n")[:-1]
    last = Revision.parse(json.loads(lines[-1])["revision"]) if lines else Revision(0, 0)
    return file, last


async def main(url: str, namespace: str, scope: str, name: str) -> None:
    """Watch until the end."""
    out, last = opened(name)
    options = Options(namespace=namespace, housekeeping=False)
    async with llmspell_dist.connect(url, options=options) as spell:
        async for change in spell.state.watch(scope, since=last):
            seen = {"revision": str(change.revision), "key": change.key, "value": change.value}
            out.write(json.dumps(seen).encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
