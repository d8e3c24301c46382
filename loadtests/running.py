"""Runs one load: a Locust process with its report and CSV, sampled, ended in time, checked."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import llmspell_dist
from loadtests.criteria import Measured
from loadtests.ledger import Ledger, LostUpdateError
from loadtests.profiles import Plan
from loadtests.recorder import Window
from loadtests.rig import NAMESPACE, Rig
from loadtests.sampling import Sampler, usage
from loadtests.stages import format_stages, total_s

__all__ = ["RunError", "compare", "run_plan"]

HERE: Final = Path(__file__).parent
_SLACK_S: Final = 60.0
"""For Locust's start, its reports, and users that finish what they do."""
_STOP_S: Final = 15


class RunError(Exception):
    """Locust measured nothing; the end of its log says why."""


def run_plan(plan: Plan, rig: Rig, sampler: Sampler, folder: Path, data: Path | None) -> Measured:
    """Run one load and return what it gave; its files lie in a folder of its own."""
    place = folder / plan.name
    place.mkdir(parents=True, exist_ok=True)
    facts, log = place / "facts.json", place / "locust.log"
    facts.unlink(missing_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(rig, place),
            env=os.environ | _variables(plan, rig, facts, data),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        sampler.add("locust", process.pid)
        if plan.target == "library":
            sampler.add_child("library", process.pid)
        try:
            process.wait(total_s(plan.stages) + _SLACK_S)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if not facts.exists():
        raise RunError(f"{plan.name}: {log.read_text(encoding='utf-8')[-2000:]}")
    measured = _measured(plan, json.loads(facts.read_text(encoding="utf-8")), ended=ended)
    ledger = Ledger.from_json(json.loads(facts.read_text(encoding="utf-8"))["ledger"])
    asyncio.run(compare(ledger, rig.url, NAMESPACE))
    measured.problems, measured.checked = ledger.problems, ledger.checked
    _sampled(measured, sampler)
    return measured


def _command(rig: Rig, place: Path) -> list[str]:
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless"]
    command += ["--host", rig.http, "--only-summary", "--stop-timeout", str(_STOP_S)]
    command += ["--csv", str(place / "locust"), "--csv-full-history"]
    return [*command, "--html", str(place / "locust.html"), "--exit-code-on-error", "0"]


def _variables(plan: Plan, rig: Rig, facts: Path, data: Path | None) -> dict[str, str]:
    given = {
        "LLMSPELL_LOAD_MIX": plan.mix,
        "LLMSPELL_LOAD_TARGET": plan.target,
        "LLMSPELL_LOAD_STAGES": format_stages(plan.stages),
        "LLMSPELL_LOAD_RUN": plan.name,
        "LLMSPELL_LOAD_FACTS": str(facts),
        "LLMSPELL_LOAD_DATA": "" if data is None else str(data),
        "LLMSPELL_URL": rig.url,
        "LLMSPELL_NAMESPACE": NAMESPACE,
        "PYTHONUNBUFFERED": "1",
    }
    # A variable of Locust's own that lies about would change what is measured.
    for name in os.environ:
        if name.startswith("LOCUST_"):
            given[name] = ""
    return given


def _measured(plan: Plan, facts: dict[str, Any], *, ended: bool) -> Measured:
    windows = [Window.from_json(data) for data in facts["windows"]]
    return Measured(
        plan=replace(plan, stages=plan.stages[: len(windows)]),
        windows=windows,
        requests=facts["requests"],
        failures=facts["failures"],
        problems=[],
        checked=0,
        ended=ended,
    )


async def compare(ledger: Ledger, url: str, namespace: str) -> None:
    """Compare what was acknowledged with what is there, through the library, not the sidecar."""
    async with llmspell_dist.connect(url, namespace=namespace) as spell:
        for scope, key in [*ledger.tallies]:
            found = await spell.state.get(scope, key, 0)
            try:
                ledger.check(scope, key, len(found) if isinstance(found, list) else found)
            except LostUpdateError:
                continue  # it stands among the ledger's problems
        for scope in ledger.banks:
            ledger.check_bank(scope, await spell.state.get_all(scope))


def _sampled(measured: Measured, sampler: Sampler) -> None:
    for window in measured.windows:
        measured.usages.append(usage(sampler.samples, window.since, window.until))
    if measured.windows:
        last = measured.windows[-1]
        since = last.since + measured.plan.warm_up_s
        measured.steady = usage(sampler.samples, since, last.until)
