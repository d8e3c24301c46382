"""What attackers have found, and does not work any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from fix_auth import token_entry
from fix_grants import only
from fix_sidecar import Sidecar, StartSidecar
from fix_webhooks import Receiver

from llmspell_dist.codec_types import TUPLE
from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.minting import new_token

pytestmark = [pytest.mark.integration, pytest.mark.security]

JSON = {"content-type": "application/json"}
MESSAGEPACK = {"content-type": "application/msgpack"}
COMPOSED, DECOMPOSED = "agent:alic%C3%A9", "agent:alice%CC%81"
"""The same scope: é as one character, and as e with an accent behind it."""


async def test_rights_are_asked_about_the_spelling_that_is_used(
    start_sidecar: StartSidecar,
) -> None:
    """A grant of alice* is none of alicé, however that is written."""
    sidecar: Sidecar = await start_sidecar(only(("agent:alice*", "read write list")))
    for spelling in (COMPOSED, DECOMPOSED):
        for method, path, body in (
            ("GET", f"/v1/state/{spelling}/k", None),
            ("PUT", f"/v1/state/{spelling}/k", 1),
            ("GET", f"/v1/scopes/{spelling}/items", None),
            ("GET", f"/v1/watch/{spelling}", None),
            ("POST", f"/v1/leases/{spelling}/main", {}),
        ):
            answer = await sidecar.ask(method, path, body)
            assert answer.status_code == 403, (method, path, answer.text)
    assert (await sidecar.ask("PUT", "/v1/state/agent:alice2/k", 1)).status_code == 200


async def test_a_spelling_that_is_granted_reaches_its_scope(sidecar: Sidecar) -> None:
    """Both spellings are one scope."""
    await sidecar.ask("PUT", f"/v1/state/{DECOMPOSED}/k", "é")
    assert (await sidecar.ask("GET", f"/v1/state/{COMPOSED}/k")).json() == "é"


LISTS = b"\xdd" + (400_000).to_bytes(4, "big") + b"\x90" * 400_000
BOMBS = {
    "json lists": (b"[" + b"[]," * 400_000 + b"[]]", JSON),
    "json dicts": (b"[" + b"{}," * 400_000 + b"{}]", JSON),
    "json elements": (b"[" + b"0," * 1_500_000 + b"0]", JSON),
    "messagepack lists": (LISTS, MESSAGEPACK),
    "messagepack maps": (b"\xdd\x00\x06\x1a\x80" + b"\x80" * 400_000, MESSAGEPACK),
    "messagepack inside of a tuple": (
        b"\xc9"
        + (400_005).to_bytes(4, "big")
        + bytes((TUPLE,))
        + b"\xdd\x00\x06\x1a\x80"
        + b"\x90" * 400_000,
        MESSAGEPACK,
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "zstd"])
@pytest.mark.parametrize("name", BOMBS)
async def test_a_body_of_very_many_small_things_is_refused_before_it_unfolds(
    sidecar: Sidecar, name: str, packed: bool
) -> None:
    """Each would cost a hundred times its bytes."""
    body, headers = BOMBS[name]
    if packed:
        body, headers = zstandard.compress(body), headers | {"content-encoding": "zstd"}
    answer = await sidecar.http.put("/v1/state/agent:a/k", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "BODY")
    assert "exceeds" in answer.json()["detail"]


async def test_long_texts_with_braces_and_umlauts_are_no_bombs(sidecar: Sidecar) -> None:
    """They are counted exactly where their bytes look like lists."""
    value = {"code": "[{,}]" * 300_000, "text": "日本語テキスト" * 60_000}
    assert (await sidecar.ask("PUT", "/v1/state/agent:a/k", value)).status_code == 200
    await sidecar.ask_packed("PUT", "/v1/state/agent:a/k2", value)
    assert (await sidecar.ask("GET", "/v1/state/agent:a/k2")).json() == value


async def test_reads_keep_no_answers(sidecar: Sidecar) -> None:
    """Whoever may only read writes nothing, and reads what is there now."""
    await sidecar.ask("PUT", "/v1/state/agent:a/k", 1)
    path, wish = "/v1/scopes/agent:a/get-many", {"keys": ["k"]}
    once = {"idempotency-key": "x"}
    first = await sidecar.ask("POST", path, wish, headers=once)
    await sidecar.ask("PUT", "/v1/state/agent:a/k", 2)
    second = await sidecar.ask("POST", path, wish, headers=once)
    assert first.content != second.content
    scopes = [str(one) async for one in sidecar.services.spell.state.scopes()]
    assert scopes == ["agent:a"]


async def test_a_lease_is_not_answered_from_memory(sidecar: Sidecar) -> None:
    """It would be long over: the key is refused."""
    headers = {"idempotency-key": "lease"}
    answer = await sidecar.ask("POST", "/v1/leases/agent:a/main", {"ttl": 5}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ARGUMENT")


async def test_what_failed_behind_the_commit_is_not_done_again(
    sidecar: Sidecar, receiver: Receiver
) -> None:
    """A webhook behind the write fails the request: the same request again changes nothing."""
    receiver.answer = 500
    hook = {"url": receiver.url, "secret": "at least sixteen characters", "on_failure": "raise"}
    made = await sidecar.ask("PUT", "/v1/webhooks/AfterStateWrite/guard", hook)
    assert made.status_code < 300, made.text
    once = {"idempotency-key": "n"}
    for _ in "abc":
        answer = await sidecar.ask("POST", "/v1/state/agent:a/n/increment", {}, headers=once)
        assert answer.status_code == 424
    assert await sidecar.services.own_state.get("agent:a", "n") == 1
    assert all("idempotency" not in str(one) for one in receiver.bodies)


async def test_a_token_that_was_revoked_while_it_waited_gets_no_lease(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    """What it waited for is given to the next one."""
    holder, waiter = new_token(), new_token()
    path = tmp_path / "access.toml"
    kept = token_entry(holder.sha256, "holder")
    path.write_text(kept + token_entry(waiter.sha256, "waiter"))
    access = Access.load(path)
    sidecar: Sidecar = await start_sidecar(access)

    def by(token: Any) -> dict[str, str]:
        return {"authorization": f"Bearer {token.secret}"}

    lease = "/v1/leases/agent:a/main"
    held = await sidecar.ask("POST", lease, {"ttl": 60}, headers=by(holder))
    asked = asyncio.create_task(
        sidecar.ask("POST", lease, {"ttl": 60, "wait": 20}, headers=by(waiter))
    )
    waiting = 0
    while not waiting:
        waiting = (await sidecar.ask("GET", lease, headers=by(holder))).json()["waiting"]
    path.write_text(kept)
    while access.cached(f"Bearer {waiter.secret}") is not None:
        await access.refresh()
        await asyncio.sleep(0.05)
    released = {"handle": held.json()["handle"]}
    await sidecar.ask("POST", f"{lease}/release", released, headers=by(holder))
    assert (await asked).status_code == 401
    looked = await sidecar.ask("GET", lease, headers=by(holder))
    assert not looked.json()["holders"]


async def test_nobody_forges_who_did_it(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    """Where callers have names, one without says so; and a name is printable."""
    path = tmp_path / "access.toml"
    path.write_text('[anonymous]\ngrants = [{ scopes = ["*"], verbs = ["*"] }]\n')
    sidecar: Sidecar = await start_sidecar(Access.load(path))
    key = "/v1/state/agent:a/k"
    await sidecar.ask("PUT", key, 1, headers={"x-actor": "operator"})
    (change,) = (await sidecar.ask("GET", f"{key}/history")).json()["changes"]
    assert change["actor"] == "anonymous/operator"
    odd = await sidecar.ask("PUT", key, 2, headers={"x-actor": "a%0Ab%1B[31m"})
    assert odd.status_code == 400


async def test_a_host_that_came_by_the_socket_is_not_known_by_tcp(
    start_sidecar: StartSidecar, short_folder: Path, sidecar_port: Callable[[], int]
) -> None:
    """A page that was made to mean this machine stays refused."""
    import httpx

    sidecar: Sidecar = await start_sidecar(unix=short_folder / "s")
    evil = {"host": "evil.example"}
    transport = httpx.AsyncHTTPTransport(uds=str(short_folder / "s"))
    async with httpx.AsyncClient(transport=transport, base_url="http://evil.example") as local:
        assert (await local.get("/v1/scopes")).status_code == 200
    assert (await sidecar.ask("GET", "/v1/scopes", headers=evil)).status_code == 403
