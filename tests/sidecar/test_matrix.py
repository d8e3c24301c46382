"""Every route × caller × scope: who is let in is what the table here says, not what the code says.

The table is written by hand. A route that is not in it fails a test, so that nobody adds one
without saying which rights it takes. Matching is by the standard library, not by ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import pytest
from fix_asgi import Told, asgi_ask
from fix_auth import AUDIENCE, ISSUER, claims, jwks, public_jwk, signed, token_entry
from fix_state import Store

from llmspell_dist import connect
from llmspell_dist.config import Options
from llmspell_dist.sidecar.app import make_app, make_services
from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.clocks import Clocks
from llmspell_dist.sidecar.auth.minting import new_token
from llmspell_dist.sidecar.auth.peers import Peer
from llmspell_dist.sidecar.routes import all_endpoints

pytestmark = [pytest.mark.one_server, pytest.mark.security]

EVERYBODY: Final = "everybody"
"""Needs no right: public, or an answer that holds only what the caller may list."""
S, A, E, C = "agent:{x}", "agent:{x}", "event:order.{x}", "correlation:{x}"
OPERATORS: Final = [("admin", "*")]


def one(verb: str, target: str) -> list[tuple[str, str]]:
    """Return a single right."""
    return [(verb, target)]


NEEDED: Final[dict[str, Any]] = {
    # Values
    "get_value": one("read", S),
    "set_value": one("write", S),
    "delete_value": one("delete", S),
    "increment_value": one("write", S),
    "append_value": one("write", S),
    "merge_value": one("write", S),
    "expire_value": one("write", S),
    "get_slice": one("read", S),
    "get_history": one("read", S),
    # Scopes
    "list_scopes": EVERYBODY,
    "list_keys": one("list", S),
    "list_items": one("read", S),
    "get_snapshot": one("read", S),
    "get_all_values": one("read", S),
    "count_keys": one("list", S),
    "stat_scope": one("list", S),
    "get_many_values": one("read", S),
    "set_many_values": one("write", S),
    "delete_many_values": one("delete", S),
    "clear_scope": one("delete", S),
    "copy_scope": [("read", S), ("write", "agent:target")],
    "move_scope": [("read", S), ("delete", S), ("write", "agent:target")],
    "run_transaction": [("write", S), ("delete", S), ("read", S)],
    # Leases
    "acquire_lease": one("write", S),
    "renew_lease": one("write", S),
    "abandon_lease": one("write", S),
    "release_lease": one("write", S),
    "show_lease": one("read", S),
    "list_leases": EVERYBODY,
    "show_lease_graph": one("list", "*"),
    "break_lease": one("admin", S),
    "show_requirement": one("read", S),
    "set_requirement": one("admin", S),
    "delete_requirement": one("admin", S),
    "hold_lease": one("write", S),
    # Agents
    "load_agent": one("read", A),
    "save_agent": one("write", A),
    "show_agent": one("read", A),
    "delete_agent": one("delete", A),
    "fork_agent": [("read", A), ("write", "agent:target")],
    "list_agents": EVERYBODY,
    "pause_agent": one("write", A),
    "resume_agent": one("write", A),
    "stop_agent": one("write", A),
    "move_agent": one("write", A),
    "get_messages": one("read", A),
    "add_messages": one("write", A),
    "record_tool_usage": one("write", A),
    "set_agent_context": one("write", A),
    "set_agent_custom": one("write", A),
    "get_agent_parts": one("read", A),
    "commit_agent": one("write", A),
    "list_effects": one("read", A),
    "show_effect": one("read", A),
    "claim_effect": one("write", A),
    "complete_effect": one("write", A),
    "fail_effect": one("write", A),
    "resolve_effect": one("write", A),
    "retry_effect": one("write", A),
    # Events
    "watch_scope": one("read", S),
    "publish_event": one("write", E),
    "publish_events": one("write", E),
    "publish_cloudevent": one("write", E),
    "hear_events": one("read", E),
    "list_subscriptions": one("list", "event:*"),
    "get_subscription": one("list", E),
    "make_subscription": one("read", E),
    "remove_subscription": one("delete", E),
    "fetch_events": one("read", E),
    "hear_subscription": one("read", E),
    "ack_events": one("read", E),
    "nack_events": one("read", E),
    "renew_events": one("read", E),
    "release_events": one("read", E),
    "leave_subscription": one("read", E),
    "list_dead_letters": one("read", E),
    "replay_dead_letters": one("write", E),
    "delete_dead_letters": one("delete", E),
    "talk_of_events": one("read", E),
    # Correlation
    "get_timeline": one("read", C),
    "list_correlations": one("list", "correlation:*"),
    "query_correlations": one("read", C),
    "link_entries": one("write", C),
    "forget_correlation": one("delete", C),
    "trim_correlations": one("delete", "correlation:*"),
    # Hooks
    "list_hook_points": one("list", "*"),
    "list_hooks": one("list", "*"),
    "query_hook_history": OPERATORS,
    "get_hook_execution": OPERATORS,
    "list_webhooks": OPERATORS,
    "put_webhook": OPERATORS,
    "remove_webhook": OPERATORS,
    # Backups and operators
    "create_backup": OPERATORS,
    "list_backups": EVERYBODY,
    "show_backup": one("read", "backup:{x}"),
    "verify_backups": OPERATORS,
    "drill_backup": OPERATORS,
    "list_drills": OPERATORS,
    "diff_backup": OPERATORS,
    "restore_backup": OPERATORS,
    "roll_back": OPERATORS,
    "prune_backups": OPERATORS,
    "collect_garbage": OPERATORS,
    "show_archive": OPERATORS,
    "list_operations": OPERATORS,
    "show_operation": OPERATORS,
    "cancel_operation": OPERATORS,
    "follow_operation": OPERATORS,
    "show_sidecar": OPERATORS,
    "show_doctor": OPERATORS,
    "show_stat": OPERATORS,
    "show_connections": OPERATORS,
    "show_retention": OPERATORS,
    "set_retention": OPERATORS,
    "release_hold": OPERATORS,
    "keep_house": OPERATORS,
    "show_near_cache": OPERATORS,
    "clear_near_cache": OPERATORS,
    # About
    "livez": EVERYBODY,
    "readyz": EVERYBODY,
    "metrics": EVERYBODY,
    "openapi": EVERYBODY,
    "docs": EVERYBODY,
    "about": EVERYBODY,
}
MOMENT: Final = {"$datetime": "2026-01-01T00:00:00+00:00"}
BODIES: Final[dict[str, Any]] = {
    "set_value": 1,
    "increment_value": {},
    "append_value": {"items": [1]},
    "merge_value": {"fields": {"a": 1}},
    "expire_value": {"ttl": 60},
    "get_many_values": {"keys": ["k"]},
    "set_many_values": {"values": {"k": 1}},
    "delete_many_values": {"keys": ["k"]},
    "copy_scope": {"target": "agent:target"},
    "move_scope": {"target": "agent:target"},
    "run_transaction": {
        "reads": [{"scope": S, "key": "k", "revision": None}],
        "operations": [
            {"op": "set", "scope": S, "key": "k", "value": 1},
            {"op": "delete", "scope": S, "key": "j"},
        ],
    },
    "acquire_lease": {"ttl": 5},
    "set_requirement": {"unfit": "or every later write would have to carry the lease"},
    "save_agent": {
        "agent_id": "{x}",
        "agent_type": "t",
        "metadata": {"name": "n"},
        "creation_time": MOMENT,
        "last_modified": MOMENT,
    },
    "fork_agent": {"into": "target"},
    "move_agent": {"status": "running"},
    "add_messages": {"messages": [{"role": "user", "content": "hi"}]},
    "record_tool_usage": {"tool": "t", "duration_ms": 1, "success": True},
    "commit_agent": {
        "expected": {"agent.profile": "present"},
        "changes": [{"op": "set", "key": "agent.modified", "value": MOMENT}],
    },
    "complete_effect": {"claim": "1-0"},
    "fail_effect": {"claim": "1-0", "reason": "r"},
    "publish_event": {"type": "order.{x}"},
    "publish_events": {"events": [{"type": "order.{x}"}]},
    "publish_cloudevent": {
        "specversion": "1.0",
        "id": "1",
        "source": "/x",
        "type": "order.{x}",
    },
    "make_subscription": {"pattern": "order.{x}"},
    "ack_events": {"receipts": []},
    "nack_events": {"receipts": []},
    "renew_events": {"receipts": []},
    "release_events": {"receipts": []},
    "leave_subscription": {"consumer": "c"},
    "replay_dead_letters": {"ids": ["1-0"]},
    "query_correlations": {"correlation_ids": ["{x}"]},
}
QUERIES: Final[dict[str, Any]] = {
    "hear_events": {"pattern": "order.{x}"},
    "talk_of_events": {"pattern": "order.{x}"},
    "delete_dead_letters": {"id": ["1-0"]},
}
PARAMETERS: Final = {"scope": S, "agent_id": "{x}", "id": "{x}", "name": "{x}", "key": "k"}


@dataclass(frozen=True)
class Caller:
    """Who asks, and what the access file grants."""

    name: str
    grants: tuple[tuple[str, str], ...]
    """Pairs of pattern and verbs."""
    headers: dict[str, str]
    scope: dict[str, Any] = field(default_factory=dict)
    """What the server says of the connection."""

    def may(self, verb: str, target: str) -> bool:
        """Return what this test holds to be right."""
        return any(
            verb in verbs.split() and fnmatchcase(target, pattern) for pattern, verbs in self.grants
        )


ALL: Final = "read write delete list admin"
GRANTS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "stranger": (("custom:nothing", "read"),),
    "reader of a": (("agent:a", "read"),),
    "writer of a": (("agent:a", "write"),),
    "owner of a": (("agent:a", ALL),),
    "owner of agents": (("agent:*", ALL),),
    "lister": (("agent:*", "list"), ("event:*", "list"), ("correlation:*", "list")),
    "operator": (("*", "admin"),),
    "everybody but operators": (("*", "read write delete list"),),
    "root": (("*", ALL),),
    "events of a": (("event:order.a", ALL),),
    "all events": (("event:*", ALL),),
    "trace a": (("correlation:a", ALL), ("backup:a", "read")),
}


def toml(grants: tuple[tuple[str, str], ...]) -> str:
    """Return grants as the access file has them."""
    shown = [
        f'{{scopes = ["{pattern}"], verbs = [{", ".join(f"{v!r}" for v in verbs.split())}]}}'
        for pattern, verbs in grants
    ]
    return f"[{', '.join(shown)}]"


@pytest.fixture
def callers(access_path: Path) -> list[Caller]:
    """One for each set of grants by token, one by JWT, of a unix socket, without credentials."""
    entries, found = [], []
    for name, grants in GRANTS.items():
        secret, digest = new_token()
        entries.append(token_entry(digest, name.replace(" ", "-"), grants=toml(grants)))
        found.append(Caller(name, grants, {"authorization": f"Bearer {secret}"}))
    (access_path.parent / "jwks.json").write_bytes(jwks(public_jwk("RSA", "rsa")))
    owned = (("agent:planner", ALL), ("agent:a", "read write"))
    entries.append(
        f'[[jwt]]\nname = "cluster"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n'
        f'jwks = "jwks.json"\nrules = [{{claims = {{sub = "system:*"}}, grants = {toml(owned)}}}]\n'
    )
    from time import time

    token = signed(claims(iat=time() - 9, nbf=time() - 9, exp=time() + 600))
    found.append(Caller("by JWT", owned, {"authorization": f"Bearer {token}"}))
    local = (("agent:b", "read write"), ("event:order.b", "write"))
    entries.append(f"[[peer]]\nuid = 4711\ngrants = {toml(local)}\n")
    peer = {"llmspell.peer": Peer(pid=1, uid=4711, gid=1)}
    anonymous = (("agent:b", "read list"),)
    found.append(Caller("by unix socket", local, {}, peer))  # and not what the anonymous may
    entries.append(f"[anonymous]\ngrants = {toml(anonymous)}\n")
    found.append(Caller("anonymous", anonymous, {}))
    access_path.write_text("".join(entries))
    return found


@dataclass(frozen=True)
class Asking:
    """Asks an endpoint in a caller's name about ``a`` or ``b``; and sees that both are there."""

    ask: Callable[[Any, Caller, str], Any]
    prepare: Callable[[], Any]


@pytest.fixture
async def asking(
    url: str, namespace: str, access_path: Path, callers: list[Caller]
) -> AsyncIterator[Asking]:
    """A sidecar's application without a socket, where there is something of ``a`` and ``b``."""
    async with connect(url, options=Options(namespace=namespace, housekeeping=False)) as spell:
        services = make_services(spell, Access.load(access_path, clocks=Clocks()))
        services.url = url
        app = make_app(services)
        root = next(one for one in callers if one.name == "root")

        async def prepare() -> None:
            for x in "ab":
                for key in "jk":
                    await spell.state.set(f"agent:{x}", key, {"a": 1})
                path = f"/v1/subscriptions/{x}"
                body = {"pattern": f"order.{x}"}
                made = await asgi_ask(app, "PUT", path, body, headers=root.headers)
                assert made.status < 300, made.body

        async def asked(endpoint: Any, caller: Caller, x: str) -> Told:
            filled = {name: _filled(value, x) for name, value in PARAMETERS.items()}
            filled |= {"point": "state.set", "execution": "e"}
            path = endpoint.path.format(**filled)
            return await asgi_ask(
                app,
                "WEBSOCKET" if endpoint.socket else endpoint.method,
                path,
                _filled(BODIES.get(endpoint.name, {} if endpoint.body else None), x),
                headers=caller.headers,
                query=_filled(QUERIES.get(endpoint.name), x),
                **caller.scope,
            )

        await prepare()
        yield Asking(asked, prepare)
        services.drain()
        await services.end()


def _filled(value: Any, x: str) -> Any:
    if isinstance(value, str):
        return value.replace("{x}", x)
    if isinstance(value, dict):
        return {name: _filled(part, x) for name, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, x) for part in value]
    return value


def is_right(name: str, caller: Caller, x: str) -> bool:
    """Return whether the table lets a caller do that."""
    needed = NEEDED[name]
    if needed is EVERYBODY:
        return True
    return all(caller.may(verb, _filled(target, x)) for verb, target in needed)


def test_every_route_says_here_which_rights_it_takes() -> None:
    """A new route without an entry is one that nobody thought about."""
    assert {one.name for one in all_endpoints()} == NEEDED.keys()


def test_what_routes_declare_is_in_the_table() -> None:
    """Rights are shown in the OpenAPI document: they must be those that are checked."""
    for endpoint in all_endpoints():
        needed = NEEDED[endpoint.name]
        declared = {need.verb.value for need in endpoint.needs} | {*map(str, endpoint.asks)}
        if needed is EVERYBODY:
            assert declared <= {"list"}, endpoint.name
            assert endpoint.public or declared or endpoint.name == "about"
        else:
            assert declared == {verb for verb, _ in needed}, endpoint.name


async def test_who_may_not_is_refused_and_changes_nothing(
    asking: Asking, callers: list[Caller], store: Store
) -> None:
    """No wrong allow: 403, whatever the route, the caller and the scope; Redis stays as it is."""
    before = store.dump()
    wrong = []
    count = 0
    for caller in callers:
        for endpoint in all_endpoints():
            for x in "ab":
                if not is_right(endpoint.name, caller, x):
                    count += 1
                    told = await asking.ask(endpoint, caller, x)
                    if told.status != 403:
                        wrong.append((caller.name, endpoint.name, x, told.status, told.body[:200]))
    assert not wrong
    assert count > 1500
    assert store.dump() == before


async def test_who_may_is_not_refused(asking: Asking, callers: list[Caller]) -> None:
    """No wrong deny: whatever the answer is, it is not that a right is missing."""
    wrong = []
    count = 0
    for caller in callers:
        await asking.prepare()
        for endpoint in sorted(all_endpoints(), key=lambda one: one.name == "remove_subscription"):
            for x in "ab":
                if is_right(endpoint.name, caller, x):
                    count += 1
                    told = await asking.ask(endpoint, caller, x)
                    if told.status in {401, 403, 500}:
                        wrong.append((caller.name, endpoint.name, x, told.status, told.body[:200]))
    assert not wrong
    assert count > 300


@pytest.mark.parametrize("path", ["/v1/scopes", "/v1/leases", "/v1/agents"])
async def test_lists_hold_only_what_the_caller_may_list(
    asking: Asking, callers: list[Caller], path: str
) -> None:
    """Names of others' scopes are nobody's business."""
    endpoint = next(one for one in all_endpoints() if one.path == path and one.method == "GET")
    root = next(one for one in callers if one.name == "root")
    for name in ("save_agent", "acquire_lease"):
        making = next(one for one in all_endpoints() if one.name == name)
        for x in "ab":
            assert (await asking.ask(making, root, x)).status < 300
    seen = {}
    for caller in callers:
        told = await asking.ask(endpoint, caller, "a")
        assert told.status == 200, (caller, told.body)
        for x in "ab":
            named = f'"agent:{x}"'.encode() in told.body or f'_id":"{x}"'.encode() in told.body
            assert named <= caller.may("list", f"agent:{x}"), (caller.name, told.body)
            seen[caller.name, x] = named
    assert seen["root", "a"]
    assert seen["root", "b"]
