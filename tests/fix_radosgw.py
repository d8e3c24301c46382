"""Ceph's RADOS gateway: a real S3 server, which checks what moto's does not. Data in memory.

It takes about 20 s to start, so all workers of a run share one. A process of its own (this file,
run as a program) starts Ceph's daemons and holds them; each worker keeps a connection to it, and
when the last of these is gone, by whatever end of its worker, it ends the daemons by pid and
removes their folder. Where the programs are missing tests are skipped, and fail in CI.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fix_ports import HeldPort

PROGRAMS = (
    "ceph",
    "ceph-authtool",
    "ceph-mgr",
    "ceph-mon",
    "ceph-osd",
    "monmaptool",
    "radosgw",
    "radosgw-admin",
)
PACKAGES = "ceph-mon ceph-mgr ceph-osd radosgw ceph-common"

_FSID = "11111111-1111-1111-1111-111111111111"
_ACCESS, _SECRET = "AKTEST", "SKTEST-not-shown"
_CONFIG = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
osd objectstore = memstore
memstore device bytes = 8589934592
ms bind ipv6 = false
public addr = 127.0.0.1
osd max object name len = 256
run dir = {folder}/run
log file = {folder}/log/$name.log
admin socket = {folder}/run/$name.asok
mon data = {folder}/mon
mgr data = {folder}/mgr
osd data = {folder}/osd
rgw data = {folder}/rgw
"""


def missing() -> list[str]:
    """Return the programs that are not here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


# --- in a worker ----------------------------------------------------------------------------------


@contextmanager
def gateway(shared: Path) -> Iterator[dict[str, str]]:
    """Share the gateway of all workers that name the same folder; starts it if need be."""
    with _mutex(shared):
        joined = _join(shared / "radosgw") or _start(shared / "radosgw")
    connection, told = joined
    try:
        yield told
    finally:
        with connection:
            # Says that we go; the answer comes at once, or after the end if we are the last.
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(30)
            with suppress(ConnectionError):
                connection.recv(1)


@contextmanager
def _mutex(shared: Path) -> Iterator[None]:
    folder = os.open(shared, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _join(note: Path) -> tuple[socket.socket, dict[str, str]] | None:
    try:
        address = note.read_text()
    except FileNotFoundError:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        line = connection.makefile("rb").readline()
    except OSError:
        line = b""
    if not line:  # the last worker of before has just gone
        connection.close()
        return None
    return connection, json.loads(line)


def _start(note: Path) -> tuple[socket.socket, dict[str, str]]:
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) <= 40 else "/tmp"
    folder = tempfile.mkdtemp(prefix="llmspell-rgw-", dir=short)
    run = subprocess.run(
        [sys.executable, __file__, folder], capture_output=True, text=True, timeout=110, check=False
    )
    if run.returncode:
        raise AssertionError(f"radosgw did not start:\n{run.stdout}\n{run.stderr}")
    note.write_text(f"{folder}/control")
    joined = _join(note)
    assert joined is not None, "the gateway ended at once"
    return joined


# --- the holder -----------------------------------------------------------------------------------


class Holder:
    """Starts Ceph's daemons in a folder, and ends them when nobody is connected any more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.log = (folder / "start.log").open("ab")
        self.ports = [HeldPort() for _ in range(3)]
        self.port = 0

    def start(self) -> None:
        """Start everything; CalledProcessError or TimeoutExpired if something does not."""
        mon_v2, mon_v1, self.port = (port.number for port in self.ports)
        for name in ("run", "log", "mon", "mgr", "osd", "rgw"):
            (self.folder / name).mkdir(exist_ok=True)
        text = _CONFIG.format(folder=self.folder, mon_v1=mon_v1, mon_v2=mon_v2, fsid=_FSID)
        (self.folder / "ceph.conf").write_text(text)
        os.environ["CEPH_CONF"] = str(self.folder / "ceph.conf")
        monitors = f"[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]"
        monmap, keyring = f"{self.folder}/monmap", f"{self.folder}/rgw/keyring"
        self._run("monmaptool", "--create", "--addv", "a", monitors, "--fsid", _FSID, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "a")
        self._run("ceph", "osd", "create")  # waits for the monitor
        self._daemon("ceph-mgr", "-i", "x")
        self._run("ceph-osd", "-i", "0", "--mkfs")
        self._daemon("ceph-osd", "-i", "0")
        me = ("-n", "client.rgw.a", f"--keyring={keyring}", "--ms-mon-client-mode=crc")
        self._run("ceph-authtool", "-C", keyring, "-n", "client.rgw.a", "--gen-key")
        rights = ("mon", "allow *", "osd", "allow *")
        self._run("ceph", "auth", "add", "client.rgw.a", *rights, "-i", keyring)
        self._daemon(
            "radosgw", *me, f"--rgw-frontends=beast endpoint=127.0.0.1:{self.port} tcp_nodelay=1"
        )
        self._await_port()
        user = ("user", "create", "--uid=t", "--display-name=t")
        keys = (f"--access-key={_ACCESS}", f"--secret-key={_SECRET}")
        self._run("radosgw-admin", *me, *user, *keys)

    def _run(self, *words: str) -> None:
        subprocess.run(words, stdout=self.log, stderr=self.log, timeout=60, check=True)

    def _daemon(self, *words: str) -> None:
        self.daemons.append(subprocess.Popen([*words, "-f"], stdout=self.log, stderr=self.log))

    def _await_port(self) -> None:
        for _ in range(600):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.1)
        raise TimeoutError("radosgw does not listen")

    def serve(self, listener: socket.socket) -> None:
        """Return when the last connection is gone, with it as the one to be told of the end."""
        import selectors

        endpoint = f"http://127.0.0.1:{self.port}"
        told = {"endpoint": endpoint, "access_key": _ACCESS, "secret_key": _SECRET}
        line = json.dumps(told).encode() + b"\n"
        users = 0
        listener.settimeout(30)  # for the first, who has started us
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        while events := selector.select(None if users else 30):
            for key, _ in events:
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    connection.sendall(line)
                    selector.register(connection, selectors.EVENT_READ)
                    users += 1
                    continue
                gone: Any = key.fileobj
                selector.unregister(gone)
                users -= 1
                if not users:
                    listener.close()
                    self.stop()
                with gone, suppress(OSError):
                    gone.sendall(b".")
                if not users:
                    return

    def stop(self) -> None:
        """End the daemons and remove their folder."""
        for daemon in reversed(self.daemons):
            # Their data is in memory: there is nothing that a slow end would save.
            daemon.send_signal(signal.SIGKILL)
        for daemon in self.daemons:
            daemon.wait()
        for port in self.ports:
            port.release()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def main(folder: Path) -> int:
    """Start the gateway, then return while a child goes on holding it."""
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        with os.fdopen(ready, "rb") as pipe:
            said = pipe.read()
        if said != b"ready":
            sys.stderr.write(said.decode(errors="replace"))
        return said != b"ready"
    os.close(ready)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    holder = Holder(folder)
    try:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "control"))
        listener.listen(64)
        holder.start()
    except (OSError, subprocess.SubprocessError) as error:
        text = (folder / "start.log").read_text(errors="replace")[-4000:]
        os.write(tell, f"{error}\n{text}".encode())
        os.close(tell)
        holder.stop()
        return 1
    os.write(tell, b"ready")
    os.close(tell)
    holder.serve(listener)
    holder.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
