"""The demo as its users run it: processes, a kill, proofs, and sabotage that the proofs catch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmspell_dist

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with the examples and nothing else of the checkout: tox tests the wheel."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def _demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    package = str(Path(llmspell_dist.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", "--plain", "--agents", "3", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def _recording(folder: Path, name: str, content: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_the_demo_proves_its_outcome_although_an_agent_is_killed(folder: Path) -> None:
    """All proofs hold, the killed agent's tasks were taken over, latencies are printed."""
    done = _demo(folder, "--laps", "15")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all proofs hold" in done.stdout
    assert "FAILED" not in done.stdout
    assert "worker-2 was killed, it held" in done.stdout
    assert "p99.9" in done.stdout


@pytest.mark.parametrize(
    ("sabotage", "caught_by"),
    [
        ("lost-update", "no lost update in a counter"),
        ("double-claim", "no task done twice, none left out"),
        ("drop", "every message in place and in order"),
    ],
)
def test_a_broken_rule_is_caught(folder: Path, sabotage: str, caught_by: str) -> None:
    """The proof of exactly that rule fails, and the demo exits with 1."""
    done = _demo(folder, "--sabotage", sabotage, "--laps", "10")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"FAILED  {caught_by}" in done.stdout


def test_uneven_recordings_are_replayed(folder: Path) -> None:
    """No trajectory, a state as text, no info, more steps than messages, another alphabet."""
    data = folder / "data"
    message = {"role": "assistant", "content": "Grüße, 東京", "agent": "main"}
    _recording(data, "bare", {"history": [message] * 3})
    _recording(data, "nulls", {"history": [{"role": "user"}], "trajectory": None, "info": None})
    steps = [{"action": "ls", "state": '{"cwd": "/"}'}, {"action": "cd", "state": "not JSON"}]
    _recording(data, "odd name %: (1)", {"history": [message], "trajectory": steps * 2})
    done = _demo(folder, "--data", str(data), "--laps", "40")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("content", [{}, {"history": []}, ["history"], "text"])
def test_a_file_that_is_no_recording_is_named(folder: Path, content: object) -> None:
    """Exit code 2, and the message says which file."""
    _recording(folder / "data", "broken", content)
    done = _demo(folder, "--data", str(folder / "data"))
    assert done.returncode == 2
    assert "broken.json has no history" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("--agents", "1"), ("--url", "memory://x"), ("--data", "/nonexistent")]
)
def test_a_wrong_argument_is_refused(folder: Path, arguments: tuple[str, str]) -> None:
    """Nothing is started; the exit code is 2."""
    assert _demo(folder, *arguments).returncode == 2
