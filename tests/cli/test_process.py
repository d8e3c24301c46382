"""The command as a real process: pipes, signals, the embedded server, what is imported."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-m", "llmspell_dist.cli"]
Environment = dict[str, str]


def _run(
    environment: Environment, *words: str, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_version_needs_no_terminal_library(process_environment: Environment) -> None:
    """So that it is quick, and works where the extra is not installed."""
    code = (
        "import sys; from llmspell_dist.cli.main import main; code = main(['--version']);"
        "sys.exit(code or any(name in sys.modules for name in ('typer', 'rich', 'redis')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=process_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("llmspell-dist 0.")


def test_without_the_extra_one_line_says_what_to_install(
    process_environment: Environment, tmp_path: Path
) -> None:
    """Not a traceback."""
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('no', name='typer')")
    path = os.pathsep.join([str(tmp_path), process_environment["PYTHONPATH"]])
    done = _run(process_environment | {"PYTHONPATH": path}, "scopes")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "llmspell-dist[cli]" in done.stderr


def test_without_fakeredis_one_line_says_what_to_install(
    process_environment: Environment, tmp_path: Path
) -> None:
    """Of a memory:// server; neither a traceback nor a bug."""
    code = (
        "import sys; sys.modules['fakeredis'] = None; from llmspell_dist.cli.main import main;"
        "sys.exit(main(['--url', 'memory://x', 'scopes']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=process_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "pip install 'llmspell-dist[memory]'" in done.stderr


def test_a_data_folder_that_cannot_be_used_is_named(
    process_environment: Environment, tmp_path: Path
) -> None:
    """With what the system says of it."""
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        done = _run(process_environment, "server", "start", "--folder", str(folder))
        assert done.returncode == 4
        assert str(folder) in done.stderr
        assert "STORE_UNAVAILABLE" in done.stderr


def test_the_servers_folder_is_that_of_the_url(
    process_environment: Environment, tmp_path: Path
) -> None:
    """Of the option or the environment; a URL of another kind is refused, not passed over."""
    folder = tmp_path / "data"
    env = process_environment | {"LLMSPELL_URL": f"embedded://{folder}"}
    assert str(folder) in _run(env, "server", "status").stdout
    done = _run(env, "server", "status", "--url", "redis://localhost")
    assert done.returncode == 2
    assert "--url" in done.stderr


def test_the_help_lists_commands_and_exit_codes(process_environment: Environment) -> None:
    """Of the program; a command's help has the common options too."""
    done = _run(process_environment, "--help")
    assert done.returncode == 0
    for word in ("get", "doctor", "server", "Exit codes", "141"):
        assert word in done.stdout
    assert "--namespace" in _run(process_environment, "server", "start", "--help").stdout
    nothing = _run(process_environment)
    assert nothing.returncode == 2
    assert "doctor" in nothing.stdout


@pytest.mark.needs("process")
def test_the_environment_names_server_and_namespace(
    process_environment: Environment, url: str, namespace: str
) -> None:
    """And options go before it."""
    chosen = process_environment | {"LLMSPELL_URL": url, "LLMSPELL_NAMESPACE": namespace}
    assert _run(chosen, "set", "agent:a", "k", "-", given='{"a": 1}').returncode == 0
    shown = _run(chosen, "get", "agent:a", "k", "--json")
    assert json.loads(shown.stdout)["value"] == {"a": 1}
    other = _run(chosen, "get", "agent:a", "k", "--namespace", f"{namespace}-2")
    assert other.returncode == 1


@pytest.mark.needs("process")
def test_a_reader_that_goes_away_is_no_noise(
    process_environment: Environment,
    url: str,
    namespace: str,
    prepare: Callable[..., None],
) -> None:
    """As in `ls | head -1`: nothing on stderr, exit code 141."""
    prepare(lambda state: state.set_many("agent:a", {f"{i:0200d}": i for i in range(900)}))
    with subprocess.Popen(
        [*COMMAND, "ls", "agent:a", "--url", url, "--namespace", namespace],
        env=process_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


@pytest.mark.needs("process")
def test_ctrl_c_ends_quietly(
    process_environment: Environment,
    url: str,
    namespace: str,
    prepare: Callable[..., None],
) -> None:
    """With exit code 130 and nothing on stderr."""
    prepare(lambda state: state.set_many("agent:a", {f"{i:0200d}": i for i in range(900)}))
    # It cannot finish: nobody reads on, and the pipe is full.
    with subprocess.Popen(
        [*COMMAND, "ls", "agent:a", "--values", "--url", url, "--namespace", namespace],
        env=process_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.stderr.read() == b""
        assert process.wait(30) == 130
        assert rest


@pytest.mark.needs("process")
def test_on_a_terminal_there_are_tables_without_markup_of_others(
    process_environment: Environment, url: str, namespace: str, prepare: Callable[..., None]
) -> None:
    """A key in brackets is text, escapes are visible, and there is a heading."""
    prepare(lambda state: state.set("agent:a", "[red]x\x1b[2J", {"a": "[blink]"}))
    master, slave = pty.openpty()
    parts: list[bytes] = []
    try:
        try:
            done = subprocess.run(
                [*COMMAND, "ls", "agent:a", "--values", "--url", url, "--namespace", namespace],
                env=process_environment | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "150"},
                stdout=slave,
                stderr=subprocess.PIPE,
                timeout=60,
                check=False,
            )
        finally:
            os.close(slave)
        with suppress(OSError):  # the last one who had it open is gone
            while part := os.read(master, 65536):
                parts.append(part)
    finally:
        os.close(master)
    shown = b"".join(parts).decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert "REVISION" in shown
    assert "[red]x\\x1b[2J" in shown
    assert '{"a": "[blink]"}' in shown
    assert "\x1b[2J" not in shown


def test_the_embedded_server_is_started_used_and_stopped(
    process_environment: Environment, short_folder: Path
) -> None:
    """Every answer as JSON; a second start and a second stop do no harm."""
    folder = ("--folder", str(short_folder), "--json")
    assert _run(process_environment, "server", "status", *folder).returncode == 1
    started = _run(process_environment, "server", "start", *folder)
    try:
        assert started.returncode == 0, started.stderr
        first = json.loads(started.stdout)
        assert first["started"] is True
        second = json.loads(_run(process_environment, "server", "start", *folder).stdout)
        assert (second["started"], second["pid"]) == (False, first["pid"])
        assert _run(process_environment, "--url", first["url"], "set", "global", "k", "1").stdout
        status = _run(process_environment, "server", "status", "--folder", str(short_folder))
        assert status.returncode == 0
        assert f"pid\t{first['pid']}" in status.stdout
    finally:
        stopped = _run(process_environment, "server", "stop", *folder)
    assert json.loads(stopped.stdout)["stopped"] is True
    again = _run(process_environment, "server", "stop", *folder)
    assert (again.returncode, json.loads(again.stdout)["stopped"]) == (0, False)
    assert _run(process_environment, "server", "status", *folder).returncode == 1


def test_a_binary_that_is_no_server_is_bad_input(
    process_environment: Environment, short_folder: Path
) -> None:
    """Exit code 2, and nothing runs."""
    words = ("server", "start", "--folder", str(short_folder), "--binary", "no-such-server")
    done = _run(process_environment, *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
