"""The doctor at real servers that were set up badly on purpose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from fix_proxy import FaultProxy
from fix_servers import Server

from llmspell_dist.doctor import Facts, Finding, Severity, collect, diagnose
from llmspell_dist.doctor.server import open_server
from llmspell_dist.errors import StoreUnavailableError
from llmspell_dist.redis.embedded import EmbeddedServer
from llmspell_dist.redis.server_folder import ask

pytestmark = pytest.mark.integration

Start = Callable[..., EmbeddedServer]
NAMESPACE = "clinic"


def _call(server: EmbeddedServer, *words: str) -> Any:
    reply = ask(server.socket, *words, timeout_s=20)
    assert not isinstance(reply, Exception), reply
    return reply


def _facts(url: str) -> Facts:
    return asyncio.run(collect(url, namespace=NAMESPACE))


def _examine(url: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in diagnose(_facts(url))}


def test_a_sound_server_passes(run: Callable[..., Any], own_server: Start) -> None:
    """Exit code 0, and not a key is left behind.

    How fast round trips are is left out: a busy machine is rightly warned of.
    """
    server = own_server(config={"maxmemory": "100mb"})
    words = ("doctor", "--url", server.url, "--ignore", "version", "--ignore", "latency")
    done = run(*words, "--json")
    assert done.code == 0, done.out
    document = json.loads(done.out)
    assert document["worst"] == "ok"
    assert {finding["severity"] for finding in document["findings"]} == {"ok"}
    assert _call(server, "DBSIZE") == 0
    assert run(*words, "-q").out == ""


def test_every_server_of_the_table_can_be_examined(server: Server) -> None:
    """Also memory://; whatever the version is thought of, a commit works and leaves nothing."""
    findings = _examine(server.url)
    assert findings["commit"].severity is Severity.OK
    assert {f.check for f in findings.values() if f.severity is Severity.PROBLEM} == set()
    assert server.call("DBSIZE") == 0


def test_no_persistence_is_a_problem(run: Callable[..., Any], own_server: Start) -> None:
    """Exit code 10, and the advice is in the output."""
    server = own_server(config={"appendonly": "no"})
    done = run("doctor", "--url", server.url)
    assert done.code == 10
    (line,) = [text for text in done.out.splitlines() if "\tpersistence\t" in text]
    assert line.startswith("problem\t")
    assert "appendonly yes" in line


def test_only_warnings_are_exit_code_11(run: Callable[..., Any], own_server: Start) -> None:
    """As for AOF without fsync."""
    server = own_server(fsync="no")
    done = run("doctor", "--url", server.url, "--ignore", "version")
    assert done.code == 11


def test_an_evicting_server_is_a_problem(own_server: Start) -> None:
    """With the limit that makes it evict."""
    server = own_server(config={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"})
    findings = _examine(server.url)
    assert findings["eviction"].severity is Severity.PROBLEM
    assert findings["memory"].severity is Severity.OK


def test_a_full_server_is_reported_by_memory_and_commit(own_server: Start) -> None:
    """Writes are refused, and the doctor says so instead of failing itself."""
    server = own_server(config={"maxmemory": "500kb"})
    findings = _examine(server.url)
    assert findings["memory"].severity is Severity.PROBLEM
    assert findings["commit"].severity is Severity.PROBLEM
    assert _call(server, "DBSIZE") == 0


RULES = {
    "a missing command": ("~* &* +@all -xadd", "command", "xadd"),
    "other keys only": ("~other:* &* +@all", "key", f"{NAMESPACE}:*"),
    "no channels": ("~* resetchannels +@all", "channel", f"{NAMESPACE}:*"),
}


@pytest.mark.needs("acl")
@pytest.mark.parametrize("admin", [True, False], ids=["may ask", "must try"])
@pytest.mark.parametrize("rules", RULES)
def test_missing_rights_are_named(own_server: Start, rules: str, admin: bool) -> None:
    """Whether the user may ask the server (ACL DRYRUN) or each request must be tried."""
    server = own_server()
    given, kind, name = RULES[rules]
    words = [*given.split(), *([] if admin else ["-acl", "-config"])]
    _call(server, "ACL", "SETUSER", "limited", "on", ">pw", *words)
    facts = _facts(server.url.replace("unix://", "unix://limited:pw@"))
    findings = {finding.check: finding for finding in diagnose(facts)}
    assert facts.rights is not None
    missing = {(right.kind, right.name) for right in facts.rights.missing}
    assert missing - {("command", "config|get"), ("command", "config")} == {(kind, name)}
    expected = Severity.WARNING if kind == "channel" else Severity.PROBLEM
    assert findings["rights"].severity is expected
    assert "ACL SETUSER" in findings["rights"].advice
    assert "pw" not in findings["rights"].advice
    assert _call(server, "DBSIZE") == 0


@pytest.mark.needs("acl")
def test_the_advice_on_rights_cures(own_server: Start) -> None:
    """Pasted as it is, it leaves nothing to complain about."""
    server = own_server()
    _call(server, "ACL", "SETUSER", "limited", "on", ">pw", "resetchannels", "-@all", "+ping")
    url = server.url.replace("unix://", "unix://limited:pw@")
    finding = _examine(url)["rights"]
    # One reason comes to light after the other: commands, what takes UNLINK to try, keys, channels.
    for _ in range(4):
        if finding.severity is not Severity.OK:
            _call(server, *finding.advice.split())
            finding = _examine(url)["rights"]
    assert finding.severity is Severity.OK, finding
    assert _examine(url)["commit"].severity in {Severity.OK, Severity.INFO}


@pytest.mark.parametrize("asked", [b"DRYRUN", b"CONFIG", b"format", b"retention"])
def test_a_server_that_falls_silent_is_not_judged(
    run: Callable[..., Any],
    own_server: Start,
    fault_proxy: Callable[..., FaultProxy],
    asked: bytes,
) -> None:
    """No answer is no refusal: exit code 4 and what happened, whatever was asked last."""
    proxy = fault_proxy(own_server())
    for _ in range(20):  # it is asked again over new connections
        proxy.hold_request(asked)
    done = run("doctor", "--url", f"{proxy.url}?call_timeout=0.5")
    assert (done.code, done.out) == (4, "")
    assert f"127.0.0.1:{proxy.address[1]}: " in done.err


def test_a_server_that_falls_silent_has_no_log_that_cannot_be_read(
    own_server: Start, fault_proxy: Callable[..., FaultProxy]
) -> None:
    """What is told of the log is what the server said."""
    proxy = fault_proxy(own_server())

    async def looked() -> object:
        async with open_server(f"{proxy.url}?call_timeout=0.5") as server:
            proxy.half_open()
            return await server.logs()

    with pytest.raises(StoreUnavailableError):
        asyncio.run(looked())


@pytest.mark.needs("replicas")
def test_master_and_replica_are_told_apart(own_server: Start, free_port: Callable[[], int]) -> None:
    """The replica is the wrong server; the master should insist on its replica."""
    port = free_port()
    master = own_server(port=port)
    replica = own_server(config={"replicaof": ("127.0.0.1", str(port))})
    _call(master, "SET", "x", "1")
    assert _call(master, "WAIT", "1", "15000") == 1
    at_replica = _examine(f"unix://{replica.socket}")
    assert at_replica["replication"].severity is Severity.PROBLEM
    assert str(port) in at_replica["replication"].advice
    assert at_replica["commit"].severity is Severity.INFO
    at_master = _examine(f"unix://{master.socket}")
    assert at_master["replication"].severity is Severity.OK
    assert at_master["min-replicas"].severity is Severity.WARNING


def test_a_cluster_node_is_examined_without_hanging(own_server: Start) -> None:
    """It refuses every key; the doctor does not insist."""
    server = own_server(config={"cluster-enabled": "yes"})
    findings = _examine(server.url)
    assert findings["cluster"].severity is Severity.PROBLEM
    assert findings["commit"].severity is Severity.INFO


def test_a_broken_hold_is_found(own_server: Start) -> None:
    """From the settings of the namespace."""
    server = own_server()
    _call(server, "HSET", f"{NAMESPACE}:{{0}}:ctl", "broken:archiver", "1732374145123-0")
    findings = _examine(server.url)
    assert findings["holds"].severity is Severity.PROBLEM
    assert "archiver" in findings["holds"].found


def test_the_log_of_every_shard_is_looked_at(own_server: Start) -> None:
    """A namespace says itself how many it has."""
    server = own_server()
    _call(server, "HSET", f"{NAMESPACE}:{{0}}:ctl", "format", "1", "shards", "4")
    _call(server, "HSET", f"{NAMESPACE}:{{3}}:ctl", "broken:archiver", "1732374145123-0")
    assert _examine(server.url)["holds"].severity is Severity.PROBLEM


def test_a_foreign_format_is_found(own_server: Start) -> None:
    """Of a namespace that no client of this release could open."""
    server = own_server()
    _call(server, "HSET", f"{NAMESPACE}:{{0}}:ctl", "format", "99", "shards", "1")
    assert _examine(server.url)["namespace"].severity is Severity.PROBLEM
    assert _examine(server.url)["commit"].severity is Severity.OK


def test_a_key_of_another_program_in_the_logs_place_is_survived(own_server: Start) -> None:
    """The doctor reports what it cannot read."""
    server = own_server()
    _call(server, "SET", f"{NAMESPACE}:{{0}}:log", "not a stream")
    assert _examine(server.url)["log"].severity is Severity.INFO
