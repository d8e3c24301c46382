"""Batches and whole scopes over HTTP: pages, snapshots, and who may do what."""

from __future__ import annotations

from typing import Any

import pytest
from fix_remote import Grants
from fix_sidecar import Sidecar, StartSidecar

pytestmark = pytest.mark.integration
SCOPE = "/v1/scopes/agent:alice"


async def test_a_batch_is_one_commit(sidecar: Sidecar) -> None:
    """Set, read and removed together; what has no value is left out."""
    put = await sidecar.ask("POST", f"{SCOPE}/set-many", {"values": {"a": 1, "b": [2]}, "ttl": 60})
    assert put.headers["etag"] == f'"{put.json()["revision"]}"'
    got = await sidecar.ask("POST", f"{SCOPE}/get-many", {"keys": ["a", "b", "c"]})
    assert got.json()["values"] == {"a": 1, "b": [2]}
    records = await sidecar.ask("POST", f"{SCOPE}/get-many", {"keys": ["a"], "records": True})
    assert records.json()["records"]["a"]["revision"] == put.json()["revision"]
    assert records.json()["records"]["a"]["expires"] is not None
    gone = await sidecar.ask("POST", f"{SCOPE}/delete-many", {"keys": ["a", "c"]})
    assert gone.json() == {"count": 1}


async def test_one_bad_key_spoils_the_whole_batch(sidecar: Sidecar) -> None:
    """Nothing is set."""
    answer = await sidecar.ask("POST", f"{SCOPE}/set-many", {"values": {"a": 1, "__b": 2}})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_KEY")
    assert (await sidecar.ask("GET", f"{SCOPE}/count")).json() == {"count": 0}


async def test_a_scope_is_read_as_of_one_moment(sidecar: Sidecar) -> None:
    """With the revision that a watch goes on from."""
    put = await sidecar.ask("POST", f"{SCOPE}/set-many", {"values": {"a": 1, "b": 2}})
    found = (await sidecar.ask("GET", SCOPE)).json()
    assert found["values"] == {"a": 1, "b": 2}
    assert found["revision"] == put.json()["revision"]
    assert (await sidecar.ask("GET", f"{SCOPE}/values")).json()["values"] == {"a": 1, "b": 2}


async def test_keys_come_in_pages_that_end(sidecar: Sidecar) -> None:
    """Every key, whatever the pages' size."""
    await sidecar.ask("POST", f"{SCOPE}/set-many", {"values": {f"k{i}": i for i in range(700)}})
    found: set[str] = set()
    cursor = None
    while True:
        page = (await sidecar.ask("GET", f"{SCOPE}/keys", cursor=cursor, limit=100)).json()
        found |= set(page["keys"])
        cursor = page["cursor"]
        if cursor is None:
            break
    assert found == {f"k{i}" for i in range(700)}
    items = (await sidecar.ask("GET", f"{SCOPE}/items", match="k69?")).json()["items"]
    assert {key for key, _ in items} <= {f"k69{i}" for i in range(10)}


async def test_a_scope_is_moved_copied_and_cleared(sidecar: Sidecar) -> None:
    """Each tells how many keys it was."""
    await sidecar.ask("POST", f"{SCOPE}/set-many", {"values": {"a": 1, "b": 2}})
    copied = await sidecar.ask("POST", f"{SCOPE}/copy", {"target": "agent:bob"})
    moved = await sidecar.ask("POST", f"{SCOPE}/move", {"target": "agent:carol"})
    assert (copied.json(), moved.json()) == ({"count": 2}, {"count": 2})
    assert (await sidecar.ask("GET", f"{SCOPE}/count")).json() == {"count": 0}
    cleared = await sidecar.ask("POST", "/v1/scopes/agent:bob/clear")
    assert cleared.json() == {"count": 2}
    stat = (await sidecar.ask("GET", "/v1/scopes/agent:carol/stat")).json()
    assert (stat["keys"], stat["scope"]) == (2, "agent:carol")


async def test_a_list_of_scopes_shows_what_the_caller_may_list(
    start_sidecar: StartSidecar, granted: Grants
) -> None:
    """And nothing of the others, nor what the sidecar keeps for itself."""
    access, token = granted(("agent:a*", "list"), ("*", "write"))
    sidecar: Sidecar = await start_sidecar(access)
    headers = {"authorization": f"Bearer {token}"}
    for scope in ("agent:alice", "agent:bob"):
        path = f"/v1/state/{scope}/k"
        key = {"idempotency-key": f"first {scope}"}
        put = await sidecar.ask("PUT", path, 1, headers=headers | key)
        assert put.status_code == 200
    found = await sidecar.ask("GET", "/v1/scopes", headers=headers)
    assert found.json()["scopes"] == ["agent:alice"]


CASES: list[tuple[str, str, Any, str]] = [
    ("GET", "keys", None, "list"),
    ("GET", "count", None, "list"),
    ("GET", "stat", None, "list"),
    ("GET", "items", None, "read"),
    ("GET", "values", None, "read"),
    ("POST", "get-many", {"keys": ["k"]}, "read"),
    ("POST", "set-many", {"values": {"k": 1}}, "write"),
    ("POST", "delete-many", {"keys": ["k"]}, "delete"),
    ("POST", "clear", None, "delete"),
]


@pytest.mark.one_server
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
async def test_each_needs_its_verb_and_no_other(
    case: tuple[str, str, Any, str], start_sidecar: StartSidecar, granted: Grants
) -> None:
    """With all verbs but that one it is refused."""
    method, what, body, verb = case
    others = " ".join({"read", "write", "delete", "list", "admin"} - {verb})
    access, token = granted(("agent:yes", verb), ("agent:no", others))
    sidecar: Sidecar = await start_sidecar(access)
    headers = {"authorization": f"Bearer {token}"}
    may = await sidecar.ask(method, f"/v1/scopes/agent:yes/{what}", body, headers=headers)
    may_not = await sidecar.ask(method, f"/v1/scopes/agent:no/{what}", body, headers=headers)
    assert (may.status_code, may_not.status_code) == (200, 403)


@pytest.mark.one_server
@pytest.mark.parametrize(
    "case",
    [
        ("read", "write", "copy", 200),
        ("read", "read delete list admin", "copy", 403),
        ("write delete list admin", "write", "copy", 403),
        ("read delete", "write", "move", 200),
        ("read write", "write", "move", 403),
    ],
    ids=str,
)
async def test_a_copy_needs_rights_on_both_sides(
    case: tuple[str, str, str, int], start_sidecar: StartSidecar, granted: Grants
) -> None:
    """Read here, write there; a move also removes here."""
    source, target, what, status = case
    access, token = granted(("agent:a", source), ("agent:b", target))
    sidecar: Sidecar = await start_sidecar(access)
    headers = {"authorization": f"Bearer {token}"}
    path = f"/v1/scopes/agent:a/{what}"
    answer = await sidecar.ask("POST", path, {"target": "agent:b"}, headers=headers)
    assert answer.status_code == status
