"""Two processes, one agent: the first is killed in the middle of a mail, the second goes on.

``python two_workers_one_agent.py [URL]``; without a URL a server is started for it, in a temporary
folder, because two processes need one that they can share.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic

import llmspell_dist
from llmspell_dist import AgentState, EffectUnknownError
from llmspell_dist.testing import embedded_server

AGENT = "example-newsletter"
READERS = ["ann", "bob", "cleo", "dan", "eve"]
KILLED_AT = "cleo"
TTL_S = 1.0


# --- what each worker does ------------------------------------------------------------------------


def send(outbox: Path, to: str) -> str:
    """Send a mail: this is the world outside, which no database can take back."""
    with outbox.open("a", encoding="utf-8") as file:
        file.write(f"{to}\n")
    return f"sent to {to}"


def read(outbox: Path) -> list[str]:
    """Return who got a mail."""
    return outbox.read_text(encoding="utf-8").split()


async def work(url: str, name: str, outbox: Path) -> None:
    """Be the agent's process, from where the last one stopped to the end of the list."""

    async def send_or_hang(to: str) -> str:
        said = send(outbox, to)
        if (name, to) == ("worker 1", KILLED_AT):
            print("in the middle", flush=True)
            await asyncio.Event().wait()  # hangs: the mail has gone, and nobody has noted that
        return said

    async with llmspell_dist.connect(url, namespace="example-agents") as spell:
        print("waits", flush=True)
        async with spell.agents.run(AGENT, ttl=TTL_S, label=name) as agent:
            print("runs", flush=True)
            for place in range(agent.state.context.get("next", 0), len(READERS)):
                to = READERS[place]
                effect = agent.effect(f"mail:{to}")
                try:
                    await effect.run(send_or_hang, to)
                except EffectUnknownError as unknown:
                    # Begun by one who died. The truth is outside: has the mail gone or not?
                    print(f"finds: {unknown}", flush=True)
                    if to in read(outbox):
                        await effect.resolve("found in the outbox")
                    else:
                        await effect.retry()
                        await effect.run(send_or_hang, to)
                await agent.add_message("assistant", f"{name}: {to}")
                await agent.set_context(next=place + 1)
            await agent.transition("completed")


# --- who starts and watches them ------------------------------------------------------------------


class Worker:
    """A process that works."""

    def __init__(self, url: str, name: str, outbox: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, url, name, str(outbox)],
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self, wanted: str) -> str:
        """Wait for a line that begins so, and return it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(wanted):
                return line.strip()
        raise AssertionError(f"the worker ended before it said {wanted!r}")

    def kill(self) -> None:
        """End it with SIGKILL: it can do nothing about it."""
        self._process.kill()
        self._process.wait()

    def end(self) -> int:
        """Wait for its end, or bring it about."""
        with self._process:
            try:
                return self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise


@contextmanager
def worker(url: str, name: str, outbox: Path) -> Iterator[Worker]:
    """Start a worker; it does not outlive the block."""
    process = Worker(url, name, outbox)
    try:
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        process.end()


def hand_over(url: str, outbox: Path) -> float:
    """Kill the first worker in the middle of a mail; seconds until the second one runs."""
    with worker(url, "worker 1", outbox) as first:
        first.says("runs")
        with worker(url, "worker 2", outbox) as second:
            second.says("waits")
            first.says("in the middle")
            first.kill()
            killed_at = monotonic()
            second.says("runs")
            took = monotonic() - killed_at
            print(second.says("finds"))
            assert second.end() == 0
    return took


async def check(spell: llmspell_dist.Spell, outbox: Path) -> None:
    """Read everything again: every mail went out once, nothing is missing."""
    state = await spell.agents.load(AGENT)
    done = [message.content for message in state.conversation]
    print(f"the agent says: {done}")
    assert [line.rpartition(" ")[2] for line in done] == READERS
    assert done[READERS.index(KILLED_AT)] == f"worker 2: {KILLED_AT}"
    assert state.status == "completed"
    assert read(outbox) == READERS
    effects = await spell.agents.agent(AGENT).effects()
    assert {effect.status.value for effect in effects} == {"committed"}
    assert len(effects) == len(READERS)


async def main(url: str, outbox: Path) -> None:
    """Let two workers share an agent, and prove what came of it."""
    async with llmspell_dist.connect(url, namespace="example-agents") as spell:
        await spell.agents.delete(AGENT)
        await spell.agents.save(AgentState.new(AGENT, "newsletter"))
        took = await asyncio.to_thread(hand_over, url, outbox)
        print(f"the second one ran {took:.2f} s after the kill")
        assert took < TTL_S + 1
        await check(spell, outbox)
        await spell.agents.delete(AGENT)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        asyncio.run(work(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
    else:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            given = sys.argv[1] if len(sys.argv) > 1 else ""
            address = given or stack.enter_context(embedded_server()).url
            asyncio.run(main(address, folder / "outbox.txt"))
