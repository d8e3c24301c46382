"""Backup commands as real processes: on a terminal, on a pipe, interrupted."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fix_s3 import Place
from fix_s3_faults import S3Faults
from fix_state import Store

pytestmark = [pytest.mark.integration, pytest.mark.needs("process")]

COMMAND = [sys.executable, "-m", "llmspell_dist.cli", "backup"]
Environment = dict[str, str]


@pytest.fixture
def environment(
    process_environment: Environment,
    url: str,
    namespace: str,
    tmp_path: Path,
    prepare: Callable[..., None],
) -> Environment:
    """Where everything is, as a service would be told; one key is there."""
    prepare(lambda state: state.set("agent:alice", "mood", "curious"))
    return process_environment | {
        "LLMSPELL_URL": url,
        "LLMSPELL_NAMESPACE": namespace,
        "LLMSPELL_BACKUP_URL": f"file://{tmp_path}/backups",
    }


def _run(environment: Environment, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


def _on_a_terminal(environment: Environment, *words: str) -> tuple[int, str, str]:
    """Run with the standard error on a terminal; exit code, output, what the terminal showed."""
    master, slave = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # the last one who had it open is gone
                return
            shown.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            [*COMMAND, *words],
            env=environment | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "150"},
            stdout=subprocess.PIPE,
            stderr=slave,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(slave)
        reader.join(30)
        os.close(master)
    return done.returncode, done.stdout, b"".join(shown).decode()


def test_progress_is_shown_on_a_terminal_only(environment: Environment) -> None:
    """Phase, bytes, rate and records on the standard error; a pipe gets none of it."""
    code, out, shown = _on_a_terminal(environment, "create")
    assert code == 0
    assert "records" in shown
    assert "bytes" in shown
    assert out.count("\n") == 1
    for words in (("--quiet",), ("--json",)):
        code, _, shown = _on_a_terminal(environment, "create", *words)
        assert (code, shown) == (0, "")
    piped = _run(environment, "create")
    assert (piped.returncode, piped.stderr) == (0, "")


def test_s3_through_the_environment(environment: Environment, s3_place: Place) -> None:
    """Nothing but variables; no secret is in what is printed, with errors too."""
    there = environment | s3_place.environment | {"LLMSPELL_BACKUP_URL": s3_place.url}
    made = _run(there, "create")
    assert (made.returncode, made.stderr) == (0, "")
    listed = _run(there, "list", "--json")
    assert [one["id"] for one in json.loads(listed.stdout)["backups"]] == [made.stdout.strip()]
    wrong = there | {"LLMSPELL_BACKUP_URL": s3_place.url.replace(s3_place.bucket, "no-such-bucket")}
    failed = _run(wrong, "list")
    assert failed.returncode == 4
    assert "BACKUP_TARGET" in failed.stderr
    for secret in s3_place.environment.values():
        assert secret not in listed.stdout + failed.stderr


@pytest.mark.parametrize("words", [("create",), ("restore", "--confirm")], ids=lambda one: one[0])
def test_told_to_end_in_the_middle_it_clears_up(
    environment: Environment, s3_faults: S3Faults, store: Store, words: tuple[str, ...]
) -> None:
    """SIGTERM, as of a service that is stopped: no note, no hold, nothing laid down; code 143."""
    place = s3_faults.place
    there = environment | place.environment | {"LLMSPELL_BACKUP_URL": place.url}
    assert _run(there, "create").returncode == 0
    before, target = store.all_keys(), place.open()
    kept = {info.name for info in target.list("") if "/objects/" not in info.name}
    gate = s3_faults.hold("put" if words[0] == "create" else "get", match="/objects/", times=None)
    with subprocess.Popen([*COMMAND, *words, "--json"], env=there, stderr=subprocess.PIPE) as begun:
        assert s3_faults.waiting.acquire(timeout=60)
        lower = 10 if words[0] == "create" else 0  # backups let others go first, restores do not
        assert psutil.Process(begun.pid).nice() == min(psutil.Process().nice() + lower, 19)
        begun.send_signal(signal.SIGTERM)
        gate.set()
        _, said = begun.communicate(timeout=60)
    assert (begun.returncode, said) == (143, b"")
    assert {info.name for info in target.list("") if "/objects/" not in info.name} == kept
    target.close()
    new = [key for key in store.all_keys() if key not in before and b"ring:" not in key]
    assert new == []  # but what a client is known by
    held = store.raw("HKEYS", store.space.ctl("0"))
    assert [name for name in held if name.startswith((b"hold:", b"broken:"))] == []


def test_without_a_server_nothing_is_written(environment: Environment, tmp_path: Path) -> None:
    """Exit code 4, one line, and no trace of a backup."""
    away = environment | {"LLMSPELL_URL": f"unix://{tmp_path}/nobody.sock"}
    failed = _run(away, "create")
    assert (failed.returncode, failed.stdout) == (4, "")
    assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "backups").exists()
