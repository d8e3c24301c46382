"""``python -m examples.demo``: run the fleet, show it, prove the outcome.

Exit code 0 if every proof holds, 1 if one fails, 2 if the demo could not be run at all.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path

import llmspell_dist
from examples.demo import plan, recordings
from examples.demo.fleet import Fleet, WorkerFailedError, prepare
from examples.demo.measure import latency_lines
from examples.demo.proofs import Proof, Run, prove
from examples.demo.view import Progress, View, look, view_for, watch
from examples.demo.worker import SABOTAGES, Job
from llmspell_dist import SpellError
from llmspell_dist.testing import embedded_server

_WANTED_MESSAGES = 1_200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    options = _parser().parse_args(arguments)
    # A polite end by `kill` or `timeout` must not leave the server and the agents behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        found = recordings.load(options.data)
        if options.url:
            return asyncio.run(_demo(options, options.url, found))
        with embedded_server() as server:
            return asyncio.run(_demo(options, server.url, found))
    except (recordings.RecordingError, WorkerFailedError, SpellError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


async def _demo(options: argparse.Namespace, url: str, found: list[recordings.Recording]) -> int:
    messages = sum(len(recording.turns) for recording in found)
    laps = options.laps or -(-_WANTED_MESSAGES // messages)
    tasks = plan.tasks_of(found, laps)
    namespace = f"demo-{secrets.token_hex(4)}"
    data = str(options.data.resolve()) if options.data else None
    jobs = [
        Job(url, namespace, data, laps, number, options.agents, options.sabotage)
        for number in range(options.agents)
    ]
    async with llmspell_dist.connect(url, namespace=namespace, client_name="demo") as spell:
        state = spell.state
        if spell.server is not None:
            print(f"{spell.server.flavour} {spell.server.version} at {spell.server.address}")
        print(
            f"{len(found)} recordings with {messages:,} messages, replayed {laps} times by "
            f"{options.agents} processes; namespace {namespace}"
        )
        try:
            await prepare(state, tasks, options.agents)
            fleet = Fleet(state, jobs, tasks)
            with view_for(plain=options.plain) as view:
                seconds = await _watched(fleet, view)
            run = Run(tasks, options.agents, fleet.killed, fleet.taken_over)
            proofs = await prove(state, run)
            await _print_story(state, fleet)
        finally:
            if options.url:
                await _clean_up(state)
    print("\n".join(["", *latency_lines(fleet.samples, seconds), ""]))
    return _verdict(proofs)


async def _watched(fleet: Fleet, view: View) -> float:
    """Run the fleet beside its live view and return the seconds that it took."""

    def look_now() -> Awaitable[Progress]:
        return look(fleet.state, fleet.tasks, len(fleet.jobs))

    watching = asyncio.create_task(watch(view, look_now))
    try:
        return await fleet.run()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        view.show(await look_now())


async def _print_story(state: llmspell_dist.StateManager, fleet: Fleet) -> None:
    """Tell what the change log knows about a task that changed hands."""
    for task in fleet.taken_over[:1]:
        print(f"\nhow {task} went on after worker-{fleet.killed} was killed:")
        for change in reversed(await state.history(plan.BOARD, plan.claim_key(task))):
            claim = change.value
            print(f"  {change.revision}  {claim['state']:<8} {claim['owner'] or ''}")


async def _clean_up(state: llmspell_dist.StateManager) -> None:
    """Leave somebody else's server without our scopes."""
    for scope in [scope async for scope in state.scopes()]:
        await state.clear(scope)


def _verdict(proofs: list[Proof]) -> int:
    for proof in proofs:
        print(f"{'proved' if proof.holds else 'FAILED':<8}{proof.claim}: {proof.facts}")
    failed = sum(not proof.holds for proof in proofs)
    print(f"\n{failed} of {len(proofs)} proofs failed" if failed else "\nall proofs hold")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of recordings (default: the shipped)")
    parser.add_argument("--agents", type=_agents, default=4, help="worker processes, at least 2")
    parser.add_argument("--url", type=_url, help="use this server (default: start one)")
    parser.add_argument("--laps", type=int, help="replay every recording so often")
    parser.add_argument("--sabotage", choices=SABOTAGES, help="break a rule; a proof must see it")
    parser.add_argument("--plain", action="store_true", help="lines instead of a live table")
    return parser


def _agents(text: str) -> int:
    number = int(text)
    if not 2 <= number <= 64:
        raise argparse.ArgumentTypeError("between 2 and 64: one of them is killed")
    return number


def _url(text: str) -> str:
    if text.startswith("memory:"):
        raise argparse.ArgumentTypeError("memory:// lives in one process; the demo has several")
    return text


if __name__ == "__main__":
    sys.exit(main())
