"""Steps over HTTP, each user on a connection of its own."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from loadtests.connection import Answer, Connection
from loadtests.feed_numbers import Numbering
from loadtests.ledger import Ledger, LostUpdateError
from loadtests.mixes import board_scope, event_type
from loadtests.steps import Kind, Step

__all__ = ["HTTPAnswerError", "SidecarCalls", "Took"]

_PATIENCE_S: Final = 30.0
_LEASE_S: Final = 10.0
_ATTEMPTS: Final = 16
"""As many as the library's run_transaction makes."""
_CONFLICT: Final = 409
_JSON: Final = {"content-type": "application/json"}
_bodies: dict[Step, bytes] = {}
"""Each step's body as JSON, made once: scripts repeat the same steps."""

Took = Callable[[str, float, int, Exception | None], None]
"""Is told of each request: name, milliseconds, bytes of the answer, what went wrong."""


class HTTPAnswerError(Exception):
    """The sidecar refused, with this status and code."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        try:
            self.code = json.loads(body).get("code", "")
        except (ValueError, AttributeError):
            self.code = ""
        super().__init__(f"{status} {self.code}")


@dataclass(slots=True)
class SidecarCalls:
    """One user's requests. What it was acknowledged stands in the ledger."""

    connection: Connection
    run: str
    user: str
    ledger: Ledger
    took: Took
    numbers: Numbering = field(default_factory=Numbering)
    _checkpoints: dict[str, str] = field(default_factory=dict)

    def perform(self, step: Step) -> None:
        """Do one step; what goes wrong is told to `took`, nothing is raised."""
        scope = step.at(self.run, self.user)
        path = f"/v1/state/{quote(scope, safe=':')}/{quote(step.key, safe=':')}"
        size, failure = 0, None
        began = time.perf_counter()
        try:
            size = _DO[step.kind](self, step, scope, path)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test goes on and counts it
            failure = error
        self.took(step.name, (time.perf_counter() - began) * 1000, size, failure)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        also: int = 0,
    ) -> Answer:
        """Send one request; `HTTPAnswerError` for a status over 400 that is not `also` right."""
        answer = self.connection.ask(method, path, body, headers)
        if answer.status >= 400 and answer.status != also:
            raise HTTPAnswerError(answer.status, answer.body)
        return answer

    # --- kinds of steps

    def _get(self, step: Step, scope: str, path: str) -> int:  # noqa: ARG002
        return len(self.ask("GET", path, also=404).body)

    def _slice(self, step: Step, scope: str, path: str) -> int:  # noqa: ARG002
        return len(self.ask("GET", f"{path}/slice?start={step.value}").body)

    def _set(self, step: Step, scope: str, path: str) -> int:  # noqa: ARG002
        where = path if step.ttl is None else f"{path}?ttl={step.ttl:g}"
        return len(self.ask("PUT", where, _body(step), _JSON).body)

    def _append(self, step: Step, scope: str, path: str) -> int:
        tally = self.ledger.of(scope, step.key)
        tally.sent += 1
        answer = self.ask("POST", f"{path}/append", _body(step), _JSON)
        tally.acknowledged += 1
        return len(answer.body)

    def _increment(self, step: Step, scope: str, path: str) -> int:
        tally = self.ledger.of(scope, step.key)
        tally.sent += 1
        answer = self.ask("POST", f"{path}/increment", b"{}", _JSON)
        tally.acknowledged += 1
        return len(answer.body)

    def _checkpoint(self, step: Step, scope: str, path: str) -> int:  # noqa: ARG002
        last = self._checkpoints.pop(path, None)  # after an error nobody knows which is the newest
        headers = _JSON if last is None else _JSON | {"if-match": last}
        answer = self.ask("PUT", path, _body(step), headers)
        self._checkpoints[path] = answer.headers[b"etag"].decode()
        return len(answer.body)

    def _read_back(self, step: Step, scope: str, path: str) -> int:
        answer = self.ask("GET", path)
        if json.loads(answer.body) != step.value:
            problem = f"{step.key} in {scope} reads back differently"
            self.ledger.problems.append(problem)
            raise LostUpdateError(problem)
        return len(answer.body)

    def _recall(self, step: Step, scope: str, path: str) -> int:
        answer = self.ask("GET", path, also=404)
        found = 0 if answer.status == 404 else len(json.loads(answer.body))
        self.ledger.check(scope, step.key, found)
        return len(answer.body)

    def _delete(self, step: Step, scope: str, path: str) -> int:
        self.ledger.of(scope, step.key).acknowledged = 0  # from here on it may be gone
        answer = self.ask("DELETE", path, also=404)
        self.ledger.forget(scope, step.key)
        return len(answer.body)

    def _clear(self, step: Step, scope: str, path: str) -> int:  # noqa: ARG002
        self.ledger.of(scope, step.key).acknowledged = 0
        answer = self.ask("POST", f"/v1/scopes/{quote(scope, safe=':')}/clear", b"", {})
        self.ledger.forget(scope, step.key)
        return len(answer.body)

    def _publish(self, step: Step, scope: str, path: str) -> int:  # noqa: ARG002
        event = {"type": event_type(scope), "data": self.numbers.next_news("event", self.user)}
        return len(self.ask("POST", "/v1/events", json.dumps(event).encode(), _JSON).body)

    def _write_news(self, step: Step, scope: str, path: str) -> int:  # noqa: ARG002
        news = self.numbers.next_news("news", self.user)
        return len(self.ask("PUT", path, json.dumps(news).encode(), _JSON).body)

    def _close_turn(self, step: Step, scope: str, path: str) -> int:  # noqa: ARG002
        board = board_scope(self.run)
        counted = {"op": "increment", "scope": board, "key": "turns"}
        turn = {"op": "set", "scope": scope, "key": step.key, "value": step.value}
        tally = self.ledger.of(board, "turns")
        tally.sent += 1
        answer = self._transact({"operations": [turn, counted]})
        tally.acknowledged += 1
        return len(answer.body)

    def _transfer(self, step: Step, scope: str, path: str) -> int:  # noqa: ARG002
        self.ledger.banks.add(scope)
        answer = self._try_transfer(step, scope)
        for attempt in range(1, _ATTEMPTS):
            if answer.status != _CONFLICT:
                break
            time.sleep(random.random() * min(0.25, 0.002 * 2**attempt))
            answer = self._try_transfer(step, scope)
        if answer.status == _CONFLICT:
            raise HTTPAnswerError(answer.status, answer.body)
        return len(answer.body)

    def _try_transfer(self, step: Step, scope: str) -> Answer:
        """Move one on condition that neither account has changed since it was read."""
        reads, balances = [], {}
        for key in (step.key, step.value):
            answer = self.ask("GET", f"/v1/state/{scope}/{key}", also=404)
            tag = answer.headers.get(b"etag")
            revision = None if tag is None else tag.decode().strip('"')
            reads.append({"scope": scope, "key": key, "revision": revision})
            balances[key] = 0 if answer.status == 404 else json.loads(answer.body)
        balances[step.key] -= 1
        balances[step.value] += 1
        sets = [
            {"op": "set", "scope": scope, "key": key, "value": value}
            for key, value in balances.items()
        ]
        return self._transact({"reads": reads, "operations": sets}, also=_CONFLICT)

    def _transact(self, body: dict[str, Any], *, also: int = 0) -> Answer:
        return self.ask("POST", "/v1/transactions", json.dumps(body).encode(), _JSON, also=also)

    def _count_under_lease(self, step: Step, scope: str, path: str) -> int:
        lease = f"/v1/leases/{quote(scope, safe=':')}/main"
        wish = json.dumps({"ttl": _LEASE_S, "wait": _PATIENCE_S - _LEASE_S}).encode()
        began = time.perf_counter()
        granted = self.ask("POST", lease, wish, _JSON)
        waited_ms = (time.perf_counter() - began) * 1000
        self.took(f"{step.name}: acquire", waited_ms, len(granted.body), None)
        handle = json.loads(granted.body)["handle"]
        held = json.dumps({"handle": handle}).encode()
        try:
            size = self._count(step, scope, path, handle)
        except Exception:
            self.ask("POST", f"{lease}/release", held, _JSON)
            raise
        # Not in a finally: whoever is killed has its only connection in use, and would wait for it.
        self.ask("POST", f"{lease}/release", held, _JSON)
        return size

    def _count(self, step: Step, scope: str, path: str, handle: str) -> int:
        answer = self.ask("GET", path, also=404)
        number = 0 if answer.status == 404 else json.loads(answer.body)
        tally = self.ledger.of(scope, step.key)
        tally.sent += 1
        body = json.dumps(number + 1).encode()
        self.ask("PUT", path, body, _JSON | {"llmspell-lease": handle})
        tally.acknowledged += 1
        return len(answer.body)


def _body(step: Step) -> bytes:
    body = _bodies.get(step)
    if body is None:
        value = {"items": [step.value]} if step.kind is Kind.APPEND else step.value
        body = _bodies[step] = json.dumps(value).encode()
    return body


_Do = Callable[[SidecarCalls, Step, str, str], int]
_DO: Final[dict[Kind, _Do]] = {kind: getattr(SidecarCalls, f"_{kind}") for kind in Kind}
