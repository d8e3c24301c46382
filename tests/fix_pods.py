"""Containers of `k8s/` as processes: with the arguments and the environment of the manifests.

Only addresses, files and secrets are the test's own.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from k8s_rules.model import Container, Manifests, Workload

if TYPE_CHECKING:
    from fix_servers import Server

STARTS_S = 60


class Running(NamedTuple):
    """A container that runs."""

    process: subprocess.Popen[bytes]
    container: Container
    data: int
    health: int
    token: str
    """Of somebody who may do everything, if it asks for tokens."""

    def ask(self, path: str, *, port: int | None = None) -> int:
        """Return the status of an answer; 0 if nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.health, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def probe(self, name: str) -> int:
        """Ask as the kubelet does."""
        asked = self.container.spec[name]["httpGet"]
        assert self.container.ports[asked["port"]] == 8751
        return self.ask(asked["path"])

    def wait_started(self) -> None:
        """Wait for what the startup probe waits for."""
        self._wait_for("startupProbe")

    def wait_ready(self) -> None:
        """Wait for what the readiness probe waits for, as whoever sends requests does."""
        self._wait_for("readinessProbe")

    def _wait_for(self, name: str) -> None:
        deadline = time.monotonic() + STARTS_S
        while self.probe(name) != 200:
            assert self.process.poll() is None, "it ended"
            assert time.monotonic() < deadline, "it does not start"
            time.sleep(0.05)


Run = Callable[..., Running]


# Every mount below the first folder is a copy that cannot be written, but for the second one.
_READ_ONLY = """
set -eu
root=$1 scratch=$2; shift 2
mount --rbind / "$root"
for mounted in $(awk '{ print $5 }' /proc/self/mountinfo | grep "^$root"); do
    mount -o remount,ro,bind "$mounted" 2>/dev/null || true
done
mount -t tmpfs tmpfs "$root$scratch"
if touch "$root$PWD/written" 2>/dev/null; then exit 9; fi
exec chroot "$root" "$@"
"""


@pytest.fixture
def read_only(tmp_path: Path) -> tuple[list[str], Path]:
    """What a command is put behind to see a read-only root, and the folder that it may write to."""
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    unshare = ["unshare", "--mount", "--propagation", "private"]
    behind = [*unshare, "/bin/sh", "-c", _READ_ONLY, "sh", str(root), str(scratch)]
    try:
        tried = subprocess.run([*behind, "true"], cwd=tmp_path, capture_output=True, check=False)
    except OSError:
        pytest.skip("needs unshare")
    assert tried.returncode != 9, "the root can be written"
    if tried.returncode:
        pytest.skip("needs the right to mount")
    return behind, scratch


@pytest.fixture
def run_container(
    server: Server, namespace: str, tmp_path: Path, free_port: Callable[[], int]
) -> Iterator[Run]:
    """Starts the first of our containers of a workload."""
    from llmspell_dist.sidecar.auth.minting import new_token

    started: list[subprocess.Popen[bytes]] = []

    def run(manifests: Manifests, name: str, *, within: Sequence[str] = (), **more: str) -> Running:
        one = Workload(manifests.get(name))
        container = next(each for each in one.containers if each.ours)
        data, health = free_port(), free_port()
        # Of its own environment nothing is taken over that would tell it something.
        inherited = {
            key: text for key, text in os.environ.items() if not key.startswith("LLMSPELL_")
        }
        told = {key: container.value(key) for key in container.env}
        local: dict[str, Any] = {
            "LLMSPELL_URL": server.url,
            "LLMSPELL_NAMESPACE": namespace,
            "LLMSPELL_SIDECAR_BIND": f"127.0.0.1:{data}",
            "LLMSPELL_SIDECAR_HEALTH": f"127.0.0.1:{health}",
        }
        token, digest = new_token()
        if "LLMSPELL_SIDECAR_ACCESS" in told:
            local["LLMSPELL_SIDECAR_ACCESS"] = str(_access_file(tmp_path, digest))
        environment = {key: text for key, text in (told | local | more).items() if text is not None}
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "llmspell_dist.cli", *container.spec["args"]],
            env=inherited | environment,
            cwd=tmp_path,
        )
        started.append(process)
        return Running(process, container, data, health, token)

    yield run
    for process in started:
        process.kill()
        process.wait()


def _access_file(folder: Path, digest: str) -> Path:
    file = folder / "access.toml"
    grants = 'grants = [{ scopes = ["*"], verbs = ["*"] }]'
    file.write_text(f'[[token]]\nname = "test"\nsha256 = "{digest}"\n{grants}\n')
    file.chmod(0o440)  # as a Secret's volume has it
    return file
