"""Seeded defects: each patch takes one protection away, and its test must notice.

A fault test that stays green without the protection proves nothing. A patch begins with what it
breaks and with a line ``Test: FILE -k EXPRESSION``: the tests of which one must turn red. A line
``Server: NAME`` names the server where it can be seen, by the beginning of its row.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fix_servers
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATCHES = sorted(HERE.glob("*.patch"))
COPIED = ("llmspell_dist", "lua_scripts", "tests", "k8s", "pyproject.toml")
LEAST = 8


def named_test(patch: Path) -> list[str]:
    """Return pytest's arguments for the test that must notice a defect."""
    for line in patch.read_text(encoding="utf-8").splitlines():
        if line.startswith("Test: "):
            return shlex.split(line.removeprefix("Test: "))
    raise AssertionError(f"{patch.name} names no test")


def named_server(patch: Path) -> str:
    """Return how the row begins on which a defect can be seen; empty: on any."""
    for line in patch.read_text(encoding="utf-8").splitlines():
        if line.startswith("Server: "):
            return line.removeprefix("Server: ")
    return ""


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in a folder that need not be a repository."""
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project, in a folder of its own."""
    for name in COPIED:
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "defects")
            shutil.copytree(source, target, ignore=ignore)
        else:
            shutil.copy(source, target)
    return tmp_path


def run(folder: Path, arguments: list[str], server: str = "") -> subprocess.CompletedProcess[str]:
    """Run tests on the copy, on one server."""
    rows = [row.id for row in fix_servers.table().values() if "process" in row.capabilities]
    row = next((each for each in rows if each.startswith(server)), None)
    assert row is not None, f"no server here is {server}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        fix_servers.ENVIRONMENT: row,
        "PYTHONPATH": str(folder),
        "CI": "",
    }
    found = subprocess.run(
        [sys.executable, "-c", "import llmspell_dist; print(llmspell_dist.__file__)"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(folder), "it would test another copy"
    options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "--timeout=60"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.mark.unit
@pytest.mark.skipif(shutil.which("git") is None, reason="git applies the patches")
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_defect_still_applies(patch: Path, tmp_path: Path) -> None:
    """A patch that no longer fits would prove nothing: whoever changes the code renews it."""
    text = patch.read_text(encoding="utf-8")
    paths = [line[6:] for line in text.splitlines() if line.startswith("--- a/")]
    assert paths
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    check = git(tmp_path, "apply", "--check", "--verbose", str(patch))
    assert check.returncode == 0, check.stderr
    test, *_ = named_test(patch)
    assert (ROOT / test).is_file()


@pytest.mark.unit
def test_there_are_enough_defects() -> None:
    """The promises that matter most have a defect each."""
    assert len(PATCHES) >= LEAST


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_defect_is_noticed(patch: Path, copy: Path) -> None:
    """With the protection gone, the test that is there for it fails."""
    applied = git(copy, "apply", str(patch))
    assert applied.returncode == 0, applied.stderr
    result = run(copy, named_test(patch), named_server(patch))
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout[-3000:] + result.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_without_the_defect_the_same_test_passes(patch: Path, copy: Path) -> None:
    """It fails for the defect, and for nothing else."""
    result = run(copy, named_test(patch), named_server(patch))
    assert result.returncode == pytest.ExitCode.OK, result.stdout[-3000:] + result.stderr
