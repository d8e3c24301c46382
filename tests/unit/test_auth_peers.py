"""Callers without credentials: unix peers, anonymous ones, and where these may be served."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from fix_auth import token_entry

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.errors import UnauthenticatedError, UnsafeBindError
from llmspell_dist.sidecar.auth.grants import ALL, Verb
from llmspell_dist.sidecar.auth.minting import new_token
from llmspell_dist.sidecar.auth.peers import Peer

pytestmark = [pytest.mark.unit, pytest.mark.security]

TOKEN = new_token()
PEERS = """
[[peer]]
uid = 1000
grants = [{scopes = ["agent:*"], verbs = ["read"]}]

[[peer]]
gid = 2000
grants = [{scopes = ["global"], verbs = ["read"]}]

[[peer]]
uid = 1001
gid = 2000
grants = [{scopes = ["*"], verbs = ["*"]}]
"""
ANONYMOUS = """
[anonymous]
grants = [{scopes = ["agent:public"], verbs = ["read"]}]
"""
ELSEWHERE = ["0.0.0.0", "::", "", "10.0.0.7", "example.com", "localhost.example.com", "fe80::1"]  # noqa: S104
HERE = ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "/run/x.sock", "unix:/run/x.sock"]


def _access(path: Path, text: str) -> Access:
    path.write_text(text)
    return Access.load(path)


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="this system has no SO_PEERCRED")
def test_the_kernel_says_who_is_at_the_other_end() -> None:
    """Process, user and group, without asking the peer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert Peer.of(ours) == Peer(os.getpid(), os.getuid(), os.getgid())


def test_other_sockets_have_no_such_peer() -> None:
    """TCP knows no users."""
    with socket.socket() as sock, pytest.raises(InvalidArgumentError, match="unix socket"):
        Peer.of(sock)


@pytest.mark.parametrize(
    ("uid", "gid", "reads"),
    [
        (1000, 1, {"agent:a"}),
        (1000, 2000, {"agent:a", "global"}),
        (1, 2000, {"global"}),
        (1001, 2000, {"agent:a", "global", "*"}),
        (1001, 1, set()),
        (0, 0, set()),
        (2000, 1000, set()),
    ],
)
async def test_a_peer_has_the_grants_of_every_entry_that_means_it(
    access_path: Path, uid: int, gid: int, reads: set[str]
) -> None:
    """User and group must both fit where both are given; root is nobody in particular."""
    access = _access(access_path, PEERS)
    peer = Peer(4711, uid, gid)
    if not reads:
        assert access.cached(None, peer) is None
        with pytest.raises(UnauthenticatedError, match="no credentials"):
            await access.authenticate(None, peer)
        return
    principal = await access.authenticate(None, peer)
    assert access.cached(None, peer) is principal
    assert principal.label == f"peer:uid-{uid}"
    assert {one for one in ("agent:a", "global", "*") if principal.may(Verb.READ, one)} == reads


async def test_credentials_that_are_given_must_be_good(access_path: Path) -> None:
    """A wrong token does not fall back to what the peer, or anybody, may do."""
    access = _access(access_path, PEERS + ANONYMOUS + token_entry(TOKEN.sha256))
    peer = Peer(4711, 1000, 1)
    with pytest.raises(UnauthenticatedError, match="not accepted"):
        await access.authenticate(f"Bearer {new_token().secret}", peer)
    principal = await access.authenticate(f"Bearer {TOKEN.secret}", peer)
    assert principal.kind == "token"


async def test_anonymous_callers_get_what_the_file_grants_them(access_path: Path) -> None:
    """Known peers their own, strangers that and nothing else."""
    access = _access(access_path, PEERS + ANONYMOUS)
    stranger = await access.authenticate(None, Peer(4711, 5, 5))
    assert stranger.kind == "anonymous"
    assert stranger.may(Verb.READ, "agent:public")
    assert not stranger.may(Verb.READ, "agent:a")
    assert not access.requires_credentials
    assert (await access.authenticate(None, Peer(4711, 1000, 1))).kind == "peer"


async def test_more_peers_than_are_remembered_are_told_apart(access_path: Path) -> None:
    """What is kept is bounded, and never another's."""
    access = _access(access_path, PEERS)
    for gid in range(2000, 5000):
        principal = access.cached(None, Peer(1, 1000, gid))
        assert principal is not None
        assert principal.may(Verb.READ, "global") is (gid == 2000)
    assert len(access._rules._peers) <= 1024


@pytest.mark.parametrize("host", ELSEWHERE)
def test_open_and_anonymous_access_is_not_served_off_loopback(access_path: Path, host: str) -> None:
    """A name counts as elsewhere, whatever it resolves to now."""
    with pytest.raises(UnsafeBindError, match="not loopback: give it an access file"):
        Access.open_on_loopback().check_bind(host)
    with pytest.raises(UnsafeBindError, match=r"access\.toml grants rights to anonymous"):
        _access(access_path, ANONYMOUS).check_bind(host)


@pytest.mark.parametrize("host", ELSEWHERE + HERE)
def test_access_by_credentials_is_served_anywhere(access_path: Path, host: str) -> None:
    """Every route asks for them."""
    _access(access_path, PEERS + token_entry(TOKEN.sha256)).check_bind(host)


@pytest.mark.parametrize("host", HERE)
def test_open_access_is_served_on_this_machine(access_path: Path, host: str) -> None:
    """Loopback of both families, and unix sockets."""
    Access.open_on_loopback().check_bind(host)
    _access(access_path, ANONYMOUS).check_bind(host)


async def test_without_a_file_everybody_may_do_everything() -> None:
    """Credentials are not looked at; there is nothing to read again."""
    access = Access.open_on_loopback()
    assert not access.requires_credentials
    assert access.problem is None
    assert access.cached(None) is ALL
    assert await access.authenticate("Bearer whatever", None) is ALL
    await access.refresh()
