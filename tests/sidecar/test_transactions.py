"""Transactions over HTTP: all or none, under what was read before, by whoever may all of it."""

from __future__ import annotations

from typing import Any

import pytest
from fix_remote import Grants
from fix_sidecar import Sidecar, StartSidecar

pytestmark = pytest.mark.integration
A, B = "agent:alice", "agent:bob"
PATH = "/v1/transactions"


async def test_all_kinds_of_changes_are_one_commit(sidecar: Sidecar) -> None:
    """In their order, over several scopes; the answer names its revision."""
    await sidecar.ask("PUT", f"/v1/state/{B}/old", 1)
    operations: list[dict[str, Any]] = [
        {"op": "set", "scope": A, "key": "s", "value": {"$set": [1]}, "ttl": 60},
        {"op": "set_if_absent", "scope": A, "key": "a", "value": "first"},
        {"op": "increment", "scope": A, "key": "n", "by": 2.5},
        {"op": "append", "scope": A, "key": "l", "items": [1, 2]},
        {"op": "append", "scope": A, "key": "l", "items": [3]},
        {"op": "merge", "scope": A, "key": "m", "fields": {"x": 1, "y": 2}, "remove": ["y"]},
        {"op": "expire", "scope": A, "key": "a", "ttl": 60.0},
        {"op": "delete", "scope": B, "key": "old"},
    ]
    answer = await sidecar.ask("POST", PATH, {"operations": operations})
    assert answer.status_code == 200, answer.text
    spell = sidecar.services.spell
    assert await spell.state.get_all(A) == {
        "s": {1}, "a": "first", "n": 2.5, "l": [1, 2, 3], "m": {"x": 1}
    }  # fmt: skip
    assert await spell.state.get_all(B) == {}
    (change, *_) = await spell.state.history(A, "l")
    assert str(change.revision) == answer.json()["revision"]
    assert answer.headers["etag"] == f'"{change.revision}"'


async def test_a_read_that_no_longer_holds_refuses_everything(sidecar: Sidecar) -> None:
    """The conflict names the key, what it was expected at and what it is at."""
    old = (await sidecar.ask("PUT", f"/v1/state/{A}/k", 1)).json()["revision"]
    new = (await sidecar.ask("PUT", f"/v1/state/{A}/k", 2)).json()["revision"]
    body = {
        "reads": [{"scope": A, "key": "k", "revision": old}],
        "operations": [{"op": "set", "scope": B, "key": "x", "value": 1}],
    }
    answer = await sidecar.ask("POST", PATH, body)
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")
    (conflict,) = answer.json()["facts"]["keys"]
    assert conflict == {"scope": A, "key": "k", "expected": old, "actual": new}
    assert await sidecar.services.spell.state.get(B, "x") is None
    body["reads"] = [{"scope": A, "key": "k", "revision": new}]
    assert (await sidecar.ask("POST", PATH, body)).status_code == 200


async def test_a_key_that_was_absent_must_be_so_still(sidecar: Sidecar) -> None:
    """A null revision says that."""
    body = {
        "reads": [{"scope": A, "key": "k", "revision": None}],
        "operations": [{"op": "set", "scope": A, "key": "k", "value": 1}],
    }
    assert (await sidecar.ask("POST", PATH, body)).status_code == 200
    assert (await sidecar.ask("POST", PATH, body)).status_code == 409


async def test_reads_alone_are_checked_and_change_nothing(sidecar: Sidecar) -> None:
    """There is no commit then."""
    revision = (await sidecar.ask("PUT", f"/v1/state/{A}/k", 1)).json()["revision"]
    body = {"reads": [{"scope": A, "key": "k", "revision": revision}]}
    assert (await sidecar.ask("POST", PATH, body)).json() == {"revision": None}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"operations": [{"op": "explode", "scope": A, "key": "k"}]},
        {"operations": [{"op": "set", "scope": A, "key": "k"}]},
        {"operations": [{"op": "delete", "scope": "nobody:x", "key": "k"}]},
        {"operations": [{"op": "delete", "scope": A, "key": "k"}], "more": 1},
        {"reads": [{"scope": A, "key": "k", "revision": "yesterday"}]},
    ],
)
async def test_what_is_no_transaction_is_refused(sidecar: Sidecar, body: Any) -> None:
    """As bad input, with a reason."""
    answer = await sidecar.ask("POST", PATH, body)
    assert answer.status_code == 400
    assert answer.json()["detail"]


RIGHTS: list[tuple[dict[str, Any], str]] = [
    ({"reads": [{"scope": A, "key": "k", "revision": None}]}, "read"),
    ({"operations": [{"op": "set", "scope": A, "key": "k", "value": 1}]}, "write"),
    ({"operations": [{"op": "expire", "scope": A, "key": "k", "ttl": 5}]}, "write"),
    ({"operations": [{"op": "delete", "scope": A, "key": "k"}]}, "delete"),
]


@pytest.mark.one_server
@pytest.mark.parametrize(("body", "verb"), RIGHTS, ids=["read", "set", "expire", "delete"])
async def test_every_part_needs_its_right(
    body: dict[str, Any], verb: str, start_sidecar: StartSidecar, granted: Grants
) -> None:
    """Without it nothing of the transaction happens, nor is it told what is there."""
    others = " ".join({"read", "write", "delete", "list", "admin"} - {verb})
    access, token = granted((A, others), (B, "write"))
    sidecar: Sidecar = await start_sidecar(access)
    more = {"op": "set", "scope": B, "key": "x", "value": 1}
    whole = {**body, "operations": [*body.get("operations", []), more]}
    headers = {"authorization": f"Bearer {token}"}
    answer = await sidecar.ask("POST", PATH, whole, headers=headers)
    assert (answer.status_code, answer.json()["facts"]["verb"]) == (403, verb)
    assert await sidecar.services.spell.state.get(B, "x") is None
