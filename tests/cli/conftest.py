"""Running the command: in this process for its answers, as a real one for pipes and signals."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import llmspell_dist
from llmspell_dist.cli.main import main


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what the developer has set."""
    for name in ("LLMSPELL_URL", "LLMSPELL_NAMESPACE", "LLMSPELL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Command:
    """A function that runs the command line in this process."""

    def run(*words: str) -> Result:
        capfd.readouterr()
        code = main(list(words))
        captured = capfd.readouterr()
        return Result(int(code), captured.out, captured.err)

    return run


@pytest.fixture
def here(run: Command, url: str, namespace: str) -> Command:
    """A function that runs the command line on the server and namespace of the test."""

    def here(*words: str) -> Result:
        return run("--url", url, "--namespace", namespace, *words)

    return here


@pytest.fixture
def prepare(url: str, namespace: str) -> Callable[..., None]:
    """A function that lets a coroutine function work on the state manager first."""

    def prepare(work: Callable[[Any], Awaitable[object]], **options: Any) -> None:
        async def connected() -> None:
            chosen = llmspell_dist.Options(namespace=namespace, **options)
            async with llmspell_dist.connect(url, options=chosen) as spell:
                await work(spell.state)

        asyncio.run(connected())

    return prepare


@pytest.fixture
def process_environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a real process of the command."""
    package = str(Path(llmspell_dist.__file__).parents[1])
    kept = {name: text for name, text in os.environ.items() if not name.startswith("LLMSPELL_")}
    return kept | {"PYTHONPATH": package, "HOME": str(tmp_path), "COLUMNS": "100"}


COMMAND = [sys.executable, "-m", "llmspell_dist.cli"]
