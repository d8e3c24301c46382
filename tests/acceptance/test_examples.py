"""Every example runs alone; what it claims it asserts itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmspell_dist
from llmspell_dist.testing import embedded_server

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FOLDERS = (
    *("state_persistence", "leases", "agents", "events"),
    *("correlation", "hooks", "watch", "backup", "sidecar", "telemetry"),
)
EXAMPLES = sorted(
    example for folder in FOLDERS for example in (ROOT / "examples" / folder).glob("*.py")
)


def _run(example: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    package = str(Path(llmspell_dist.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-W", "error", str(example), *arguments],
        env=os.environ | {"PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_without_a_server(example: Path) -> None:
    """It needs no argument, prints something and leaves no warning."""
    done = _run(example)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    assert not done.stderr


@pytest.fixture(scope="module")
def one_server() -> Iterator[str]:
    """The URL of a server that all examples share."""
    with embedded_server() as server:
        yield server.url


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("time", ["first", "second"])
def test_all_examples_run_on_one_real_server_twice(
    one_server: str, example: Path, time: str
) -> None:
    """They clean up after themselves: a second run of all finds what the first one found."""
    done = _run(example, one_server)
    assert done.returncode == 0, time + done.stdout + done.stderr


def test_the_readme_lists_every_example() -> None:
    """A new example needs its line."""
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert [example.name for example in EXAMPLES if example.name not in text] == []
