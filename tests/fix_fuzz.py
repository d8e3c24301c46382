"""Cases that schemathesis makes from the OpenAPI document, sent to a sidecar and compared with it.

The document says what each route takes and answers. Half of the cases follow it and half break it;
names are often ones that mean something, so that the cases reach past the first check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from urllib.parse import quote

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from llmspell_dist.codec import decode, encode
from llmspell_dist.jsonable import from_json, to_json

MESSAGEPACK: Final = "application/msgpack"
PROBLEM_MESSAGEPACK: Final = "application/problem+msgpack"
PATIENCE_S: Final = 20.0
"""No case waits by its own wish: what takes longer hangs."""
_WAIT_S: Final = 0.01
_CHECKS: Final[list[Any]] = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
_SCOPES: Final = ["agent:alice", "agent:bob", "global", "session:s1", "workflow:w1/step:plan"]
_NAMES: Final[dict[str, list[str]]] = {
    "scope": _SCOPES,
    "key": ["note", "list", "map", "number", "missing", "../x", "ü/%00"],
    "name": ["main", "orders", "missing"],
    "agent_id": ["alice", "bob", "missing"],
}
_FIELDS: Final[dict[str, list[Any]]] = {
    "scope": _SCOPES,
    "scopes": [_SCOPES],
    "target": _SCOPES,
    "to": ["agent:bob"],
    "pattern": ["agent:*", "order.*", "*"],
    "type": ["order.created"],
    "types": [["order.*"], ["*"]],
    "key": ["note", "list", "map"],
    "ttl": [60, None],
    "at": ["2026-01-01T00:00:00+00:00"],
    "owner": ["somebody"],
    "mode": ["exclusive", "shared"],
}
_WAITS: Final = frozenset({"wait", "timeout", "wait_s", "within"})


@schemathesis.serializer(MESSAGEPACK)
def _packed(_: Any, value: Any) -> bytes:
    """Write a body as MessagePack of ours, if it is a value of ours at all."""
    try:
        return encode(from_json(value))
    except Exception:
        return b"\xc1"  # what no MessagePack begins with


@schemathesis.deserializer(MESSAGEPACK, PROBLEM_MESSAGEPACK)
def _unpacked(_: Any, response: Any) -> Any:
    """Read an answer in MessagePack as JSON has it."""
    return to_json(decode(response.content))


@dataclass
class Fuzzer:
    """Sends cases, and keeps what was wrong with the answers."""

    url: str
    document: dict[str, Any]
    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)
    """By route: the first thing that was wrong, and how to see it again."""

    def __post_init__(self) -> None:
        self._schema = schemathesis.openapi.from_dict(self.document)
        self._http = requests.Session()
        self._http.trust_env = False

    def close(self) -> None:
        self._http.close()

    def operations(self) -> Iterator[Any]:
        """Yield every operation of the document."""
        for found in self._schema.get_all_operations():
            operation: Any = found
            yield operation.ok()

    def run(self, operation: Any, examples: int, *, number: int = 0) -> None:
        """Send so many cases to one operation."""
        strategy = st.tuples(
            st.one_of(*(operation.as_strategy(mode) for mode in schemathesis.GenerationMode)),
            st.integers(0, 2**32).map(Random),
        )

        @seed(number)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def send(drawn: tuple[Any, Any]) -> None:
            self._send(*drawn)

        send()

    def _send(self, case: Any, random: Random) -> None:
        self.cases += 1
        if case.operation.label in self.wrong:
            return
        _make_sense(case, random)
        case.headers["Accept"] = random.choice(["application/json", MESSAGEPACK, "*/*"])
        streams = any(
            "text/event-stream" in answer.get("content", {})
            for answer in case.operation.definition.raw["responses"].values()
        )
        text = ""
        told = case.as_transport_kwargs(base_url=self.url)
        if streams:
            told["headers"]["Connection"] = "close"
        try:
            with self._http.request(**told, timeout=PATIENCE_S, stream=streams) as answer:
                if streams and answer.status_code == 200:
                    answer._content = b""  # it lasts; that it began is enough
                text = answer.text[:600]
                self.statuses[answer.status_code] += 1
                case.validate_response(answer, checks=_CHECKS)
        except FailureGroup as failures:
            reasons = "\n".join(f"{one.title}: {one.message}" for one in failures.exceptions)
            self.wrong[case.operation.label] = f"{reasons}\n{told}\n{text}"
        except requests.exceptions.RequestException as error:
            self.wrong[case.operation.label] = f"{error!r}\n{told}"


def _make_sense(case: Any, random: Random) -> None:
    """Let names often be ones that mean something, and let nobody wait long."""
    for name in case.path_parameters:
        if name in _NAMES and random.random() < 0.8:
            case.path_parameters[name] = quote(random.choice(_NAMES[name]), safe="")
    for part in (case.query, case.body):
        _fill(part, random)


def _fill(part: Any, random: Random, depth: int = 0) -> None:
    if not isinstance(part, dict) or depth > 3:
        return
    for name, value in list(part.items()):
        if name in _WAITS:
            part[name] = _WAIT_S
        elif name in _FIELDS and random.random() < 0.6:
            part[name] = random.choice(_FIELDS[name])
        elif isinstance(value, list):
            for one in value:
                _fill(one, random, depth + 1)
        else:
            _fill(value, random, depth + 1)
