"""Every curl line of the sidecar's pages runs, and answers what stands below it."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from fix_sidecar_process import SidecarProcess, StartProcess

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```console\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_PAGES = sorted((ROOT / "docs" / "sidecar").glob("*.md"))
_ADDRESS = "127.0.0.1:8750"


def _curls(page: Path) -> list[tuple[str, list[str]]]:
    """Return each curl command of a page with the lines that it answers."""
    found: list[tuple[str, list[str]]] = []
    for block in _FENCE.finditer(page.read_text(encoding="utf-8")):
        answers: list[str] | None = None
        for line in block["body"].splitlines():
            if line.startswith("$ "):
                answers = []
                if line.startswith("$ curl "):
                    found.append((line[2:], answers))
            elif answers is not None:
                answers.append(line)
    return found


def _fits(said: str, wanted: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in wanted.split("…"))
    return re.fullmatch(pattern, said) is not None


@pytest.mark.one_server
@pytest.mark.needs("process")
@pytest.mark.parametrize("page", [page for page in _PAGES if _curls(page)], ids=lambda p: p.stem)
async def test_what_a_page_shows_is_what_curl_gets(
    page: Path, url: str, sidecar_process: StartProcess, short_folder: Path
) -> None:
    """The commands of a page run one after the other, against one sidecar.

    But for those that hold an id of the reader's own (``…``) or a secret (``$``).
    """
    if shutil.which("curl") is None:
        pytest.fail("the pages of the sidecar show curl, which is not installed")
    sidecar: SidecarProcess = await sidecar_process(url, "--backups", f"file://{short_folder}")
    address = sidecar.url.removeprefix("http://")
    for command, wanted in _curls(page):
        if "…" in command or "$" in command:
            continue
        words = shlex.split(command.replace(_ADDRESS, address))
        done = await asyncio.to_thread(_run, words)
        said = done.stdout.splitlines()
        assert len(said) >= len(wanted), (command, done.stdout, done.stderr)
        for line, expected in zip(said, wanted, strict=False):
            assert _fits(line, expected), (command, line, expected)


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
