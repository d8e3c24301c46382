"""Webhook hooks: asked over HTTP, believed when they answer, harmless when they do not."""

from __future__ import annotations

import asyncio
import hmac
from hashlib import sha256
from typing import Any

import pytest
from fix_sidecar import Sidecar, StartSidecar
from fix_webhooks import Receiver

from llmspell_dist.errors import InvalidArgumentError, StoreBusyError
from llmspell_dist.hooks import HookContext, HookResult
from llmspell_dist.hooks.context import ComponentId
from llmspell_dist.hooks.recording import result_parts
from llmspell_dist.sidecar.webhook_documents import RESULTS, context_document, result_from
from llmspell_dist.sidecar.webhook_urls import check_url, may_connect

WEBHOOK = "/v1/webhooks/BeforeStateWrite/guard"
KEY = "/v1/state/agent:alice/note"
SECRET = "a secret of the receiver's"


async def register(sidecar: Sidecar, receiver: Receiver, **more: Any) -> dict[str, Any]:
    """Register the webhook of these tests."""
    body = {"url": f"{receiver.url}/hook?token=hidden", "timeout": 10, **more}
    answer = await sidecar.ask("PUT", WEBHOOK, body)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def test_a_webhook_is_told_what_is_about_to_happen(
    sidecar: Sidecar, receiver: Receiver
) -> None:
    """The hook's context; what JSON lacks is tagged."""
    await register(sidecar, receiver)
    headers = {"x-correlation-id": "c-1", "x-actor": "me"}
    await sidecar.ask("PUT", KEY, {"$bytes": "aGk="}, headers=headers)
    (told,) = receiver.came
    assert (told["point"], told["hook"]) == ("BeforeStateWrite", "guard")
    assert told["data"]["scope"] == "agent:alice"
    assert told["data"]["key"] == "note"
    assert told["data"]["value"] == {"$bytes": "aGk="}
    assert (told["correlation_id"], told["actor"]) == ("c-1", "me")
    assert told["operation"]["type"] == "set"
    assert receiver.headers[0]["llmspell-delivery"] == told["id"]
    assert "llmspell-signature" not in receiver.headers[0]


async def test_a_webhook_can_change_and_refuse(sidecar: Sidecar, receiver: Receiver) -> None:
    """As a hook in the process can."""
    await register(sidecar, receiver)
    receiver.answers = [{"result": "modified", "data": {"value": "other"}}]
    assert (await sidecar.ask("PUT", KEY, 1)).status_code == 200
    assert (await sidecar.ask("GET", KEY)).json() == "other"
    receiver.answers = [{"result": "cancel", "reason": "not today"}]
    answer = await sidecar.ask("PUT", KEY, 2)
    assert (answer.status_code, answer.json()["code"]) == (422, "OPERATION_CANCELLED")
    assert "not today" in answer.json()["detail"]
    assert (await sidecar.ask("GET", KEY)).json() == "other"


async def test_a_signature_covers_time_and_body(sidecar: Sidecar, receiver: Receiver) -> None:
    """So that a receiver knows the sender, and that it is not an old one again."""
    await register(sidecar, receiver, secret=SECRET)
    await sidecar.ask("PUT", KEY, 1)
    time_s, _, signed = receiver.headers[0]["llmspell-signature"].partition(",v1=")
    body = time_s.removeprefix("t=").encode() + b"." + receiver.bodies[0]
    assert hmac.compare_digest(signed, hmac.new(SECRET.encode(), body, sha256).hexdigest())


async def test_neither_the_secret_nor_the_path_is_shown(
    sidecar: Sidecar, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Not when it is registered, listed or fails, and in no log."""
    receiver.answer = 500
    made = await register(sidecar, receiver, secret=SECRET, on_failure="raise")
    assert made["signed"] is True
    shown = [str(made), (await sidecar.ask("GET", "/v1/webhooks")).text]
    shown += [(await sidecar.ask("GET", "/v1/hooks")).text, (await sidecar.ask("PUT", KEY, 1)).text]
    shown += [caplog.text, repr(sidecar.services.spell.hooks.get_hooks())]
    shown += [repr(hook.hook.terms) for hook in sidecar.services.spell.hooks.get_hooks()]
    assert not [text for text in shown if SECRET in text or "hidden" in text]


@pytest.mark.parametrize(
    ("policy", "status", "code"),
    [("ignore", 200, None), ("cancel", 422, "OPERATION_CANCELLED"), ("raise", 424, "HOOK_FAILED")],
)
@pytest.mark.parametrize(
    "answer", [500, 302, b"no json", {"result": "explode"}, {"result": "cancel"}, b"x" * 1_100_000]
)
async def test_a_webhook_that_fails_does_what_its_policy_says(  # noqa: PLR0917
    sidecar: Sidecar, receiver: Receiver, policy: str, status: int, code: str | None, answer: Any
) -> None:
    """A failure is a status that is no success, a redirect, and an answer that is no result."""
    await register(sidecar, receiver, on_failure=policy)
    receiver.answer = answer
    found = await sidecar.ask("PUT", KEY, 1)
    assert (found.status_code, found.json().get("code")) == (status, code)
    assert len(receiver.came) == 1, "a redirect was followed, or a failure was tried again"


async def test_a_webhook_that_does_not_answer_is_left_at_its_limit(
    sidecar: Sidecar, receiver: Receiver
) -> None:
    """The operation goes on without it."""
    forever = asyncio.Event()
    receiver.answer = forever.wait
    await register(sidecar, receiver, timeout=0.1)
    assert (await sidecar.ask("PUT", KEY, 1)).status_code == 200
    (hook,) = (await sidecar.ask("GET", "/v1/hooks")).json()["hooks"]
    assert hook["timeouts"] == 1
    forever.set()


async def test_a_webhook_that_keeps_failing_is_left_out_for_a_while(
    sidecar: Sidecar, receiver: Receiver
) -> None:
    """By the breaker that every hook has: it is not asked any more."""
    receiver.answer = 503
    await register(sidecar, receiver)
    for number in range(6):
        assert (await sidecar.ask("PUT", KEY, number)).status_code == 200
    assert len(receiver.came) == 3
    (one,) = (await sidecar.ask("GET", "/v1/webhooks")).json()["webhooks"]
    assert (one["breaker"], one["failures"], one["sent"]) == ("open", 3, 3)


async def test_it_is_tried_again_only_if_told_to(sidecar: Sidecar, receiver: Receiver) -> None:
    """With the same delivery id; what the receiver refuses is not."""
    await register(sidecar, receiver, retries=2, on_failure="raise")
    receiver.answers = [503, 502, None]
    assert (await sidecar.ask("PUT", KEY, 1)).status_code == 200
    assert len({headers["llmspell-delivery"] for headers in receiver.headers}) == 1
    receiver.answers = [400]
    assert (await sidecar.ask("PUT", KEY, 2)).status_code == 424
    assert len(receiver.came) == 4


async def test_registered_again_it_takes_its_own_place_and_removed_it_is_gone(
    sidecar: Sidecar, receiver: Receiver
) -> None:
    """A hook of the program under its name stays: that is not the webhook's to replace."""
    await register(sidecar, receiver)
    await register(sidecar, receiver, priority=7)
    assert [hook.priority for hook in sidecar.services.spell.hooks.get_hooks()] == [7]
    assert (await sidecar.ask("DELETE", WEBHOOK)).status_code == 204
    again = await sidecar.ask("DELETE", WEBHOOK)
    assert (again.status_code, again.json()["code"]) == (404, "HOOK_NOT_FOUND")
    await sidecar.ask("PUT", KEY, 1)
    assert receiver.came == []
    sidecar.services.spell.hooks.register("BeforeStateWrite", lambda _: None, name="guard")
    taken = await sidecar.ask("PUT", WEBHOOK, {"url": receiver.url})
    assert (taken.status_code, taken.json()["code"]) == (409, "DUPLICATE_HOOK")


async def test_a_replacement_that_is_refused_leaves_the_one_before(
    sidecar: Sidecar, receiver: Receiver
) -> None:
    """A guard does not go because somebody mistyped the next one."""
    await register(sidecar, receiver)
    bad = await sidecar.ask("PUT", WEBHOOK, {"url": receiver.url, "queued": True})
    assert bad.status_code == 400
    await sidecar.ask("PUT", KEY, 1)
    assert len(receiver.came) == 1


async def test_a_webhook_for_the_fleet_hears_of_other_sidecars(
    sidecar: Sidecar, receiver: Receiver, start_sidecar: StartSidecar, url: str
) -> None:
    """And refuses what happens there, if they wait for it."""
    if url.startswith("memory"):
        pytest.skip("the server lives in this process's client")
    fleet = {"run": "every", "await_remote": True, "timeout": 10}
    await register(sidecar, receiver, fleet=fleet)
    receiver.answer = {"result": "cancel", "reason": "no"}
    other = await start_sidecar()
    await other.services.spell.hooks.fleet.join()
    assert (await other.ask("PUT", KEY, 1)).status_code == 422
    listed = (await other.ask("GET", "/v1/hooks")).json()
    assert ["guard"] in [[hook["name"] for hook in one["hooks"]] for one in listed["fleet"]]
    assert (await sidecar.ask("DELETE", WEBHOOK)).status_code == 204


@pytest.mark.parametrize("run", ["every", "one"])
@pytest.mark.parametrize("successor", ["fleet", "local"])
async def test_a_webhook_that_cannot_be_replaced_goes_on(  # noqa: PLR0917
    sidecar: Sidecar,
    receiver: Receiver,
    start_sidecar: StartSidecar,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    run: str,
    successor: str,
) -> None:
    """The store is away, or the new one makes no sense: the old one refuses still, everywhere."""
    if url.startswith("memory"):
        pytest.skip("the server lives in this process's client")
    fleet = {"run": run, "await_remote": True, "timeout": 10}
    await register(sidecar, receiver, fleet=fleet, priority=7)
    receiver.answer = {"result": "cancel", "reason": "no"}
    other = await start_sidecar()
    await other.services.spell.hooks.fleet.join()

    async def away() -> None:
        raise StoreBusyError("redis://test", "BUSY a script is running")

    with monkeypatch.context() as patched:
        patched.setattr(sidecar.services.spell.hooks.fleet._members, "say", away)
        wrong = {"fleet": fleet} if successor == "fleet" else {"queued": True}
        answer = await sidecar.ask("PUT", WEBHOOK, {"url": receiver.url, **wrong})
        assert answer.status_code == (503 if successor == "fleet" else 400)
    (listed,) = (await sidecar.ask("GET", "/v1/webhooks")).json()["webhooks"]
    assert (listed["priority"], listed["fleet"]) == (7, True)
    for place in (sidecar, other):
        assert (await place.ask("PUT", KEY, 1)).status_code == 422
    assert (await sidecar.ask("DELETE", WEBHOOK)).status_code == 204
    assert (await sidecar.ask("PUT", KEY, 1)).status_code == 200


@pytest.mark.parametrize("reachable", [False, True])
async def test_a_webhook_that_the_fleet_could_not_be_told_of_is_not_said_to_be_away_already(
    sidecar: Sidecar,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reachable: bool,
) -> None:
    """Who reads the log looks for what is wrong."""
    await register(sidecar, receiver, fleet={"run": "every"})
    fleet = sidecar.services.spell.hooks.fleet

    async def away() -> None:
        raise StoreBusyError("redis://test", "BUSY a script is running")

    if reachable:
        await fleet.remove("guard", "BeforeStateWrite")
    else:
        monkeypatch.setattr(fleet._members, "say", away)
    with caplog.at_level("INFO", "llmspell_dist.sidecar"):
        assert (await sidecar.ask("DELETE", WEBHOOK)).status_code == 204
    assert ("was away already" in caplog.text) == reachable
    assert ("the fleet could not be told: " in caplog.text) == (not reachable)
    assert sidecar.services.spell.hooks.get_hooks("BeforeStateWrite") == []


async def test_what_the_program_put_in_the_place_of_a_webhook_stays(
    sidecar: Sidecar, receiver: Receiver
) -> None:
    """It is not the webhook's, though it has its name."""
    await register(sidecar, receiver)
    hooks = sidecar.services.spell.hooks
    hooks.unregister("guard")
    own = hooks.register("BeforeStateWrite", lambda _: None, name="guard")
    taken = await sidecar.ask("PUT", WEBHOOK, {"url": receiver.url})
    assert (taken.status_code, taken.json()["code"]) == (409, "DUPLICATE_HOOK")
    assert hooks.get_hooks("BeforeStateWrite") == [own]
    assert (await sidecar.ask("DELETE", WEBHOOK)).status_code == 204
    assert hooks.get_hooks("BeforeStateWrite") == [own]


@pytest.mark.parametrize(
    "place",
    [
        "http://example.com/",
        "http://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[fe80::1]/",
        "https://[::ffff:169.254.169.254]/",
        "https://[fd00:ec2::254]/",
        "https://0.0.0.0/",
        "https://224.0.0.1/",
        "http://2130706433/",
        "https://user:s3cr3t@example.com/",
        "https://example.com/#part",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https:///path",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://exa mple.com/",
        "https://example.com/\r\nx: y",
        "//example.com",
        "",
    ],
)
async def test_a_webhook_goes_only_where_it_may(sidecar: Sidecar, place: str) -> None:
    """400, before anything is registered."""
    answer = await sidecar.ask("PUT", WEBHOOK, {"url": place})
    assert (answer.status_code, answer.json()["facts"]["argument"]) == (400, "url")
    assert "s3cr3t" not in answer.text
    assert (await sidecar.ask("GET", "/v1/webhooks")).json() == {"webhooks": []}


@pytest.mark.parametrize(
    "place", ["https://example.com/x", "http://localhost:8/", "http://127.9.9.9/", "http://[::1]/"]
)
def test_https_and_this_machine_are_allowed(place: str) -> None:
    """And what the settings name."""
    assert check_url(place, ()) == place
    assert check_url("http://receiver.svc/x", ("receiver.svc",)) == "http://receiver.svc/x"


def test_a_name_is_looked_at_again_when_it_is_connected_to() -> None:
    """What it means may change: to a metadata address, or from this machine to another."""
    assert may_connect("example.com", "93.184.216.34", ())
    assert may_connect("example.com", "10.1.2.3", ())
    assert not may_connect("example.com", "169.254.169.254", ("example.com",))
    assert not may_connect("example.com", "fe80::1%eth0", ())
    assert may_connect("localhost", "127.0.0.1", ())
    assert not may_connect("localhost", "93.184.216.34", ())


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_each_of_the_nine_results_can_be_answered(name: str) -> None:
    """As a document of its parts."""
    assert len(RESULTS) == 9
    parts: dict[str, dict[str, Any]] = {
        "modified": {"data": {"a": 1}},
        "cancel": {"reason": "no"},
        "redirect": {"target": "agent:b", "key": "k"},
        "replace": {"value": [1]},
        "retry": {"delay": 0.5, "max_attempts": 2},
        "fork": {"operations": [{"id": "x", "operation_type": "set", "parameters": {"key": "k"}}]},
        "cache": {"key": "k", "ttl": 5.0, "until_written": True},
        "skipped": {"reason": "nothing to do"},
    }
    found = result_from({"result": name, **parts.get(name, {})})
    assert isinstance(found, HookResult)
    assert result_parts(found)["name"] == name


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"result": "none"},
        {"result": ["continue"]},
        {"result": "continue", "x": 1},
        {"result": "redirect"},
        {"result": "fork", "operations": []},
        {"result": "fork", "operations": [{"id": 1}]},
        {"result": "retry", "delay": -1},
    ],
)
def test_what_is_no_result_is_refused(answer: Any) -> None:
    """And says what is wrong."""
    with pytest.raises(InvalidArgumentError):
        result_from(answer)


def test_of_a_secret_key_only_its_place_is_told() -> None:
    """Unless the registration says that values may be sent."""
    data = {"scope": "agent:a", "key": "k", "value": "secret", "ttl": 5}
    context = HookContext("BeforeStateWrite", ComponentId("system", "state"), data)
    assert context_document("h", context, secret=True)["data"] == {"scope": "agent:a", "key": "k"}
    assert context_document("h", context, secret=False)["data"]["value"] == "secret"
