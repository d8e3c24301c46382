"""The OpenAPI document: valid by its own schema's rules, and true to the routes."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from llmspell_dist.errors import SpellError
from llmspell_dist.sidecar.endpoint import Registry
from llmspell_dist.sidecar.openapi import openapi_document
from llmspell_dist.sidecar.problems import problem_of
from llmspell_dist.sidecar.routes import REGISTRIES, all_endpoints

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document of all routes."""
    return openapi_document(REGISTRIES, "1.2.3")


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every operation."""
    return [one for methods in document["paths"].values() for one in methods.values()]


def test_every_route_but_websockets_is_in_it_once(document: dict[str, Any]) -> None:
    """With an id and a summary of its own."""
    names = [one["operationId"] for one in operations(document)]
    assert sorted(names) == sorted(one.name for one in all_endpoints() if not one.socket)
    assert len(names) == len(set(names))
    assert all(one["summary"].endswith(".") for one in operations(document))


def test_every_reference_leads_somewhere_and_every_schema_is_one(document: dict[str, Any]) -> None:
    """JSON Schema 2020-12, as OpenAPI 3.1 has it."""
    schemas = document["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert name in schemas
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert name == "Value" or "description" in schema, name


def test_parameters_of_a_path_are_those_of_the_path(document: dict[str, Any]) -> None:
    """And each is required."""
    for path, methods in document["paths"].items():
        for one in methods.values():
            named = {p["name"] for p in one["parameters"] if p["in"] == "path" and p["required"]}
            assert named == set(re.findall(r"{(\w+)}", path))


def test_what_needs_a_right_says_which(document: dict[str, Any]) -> None:
    """And what is public needs no credentials."""
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            endpoint = next(
                found
                for found in all_endpoints()
                if found.path == path and found.method.lower() == method
            )
            assert ("security" in one) == endpoint.public
            assert ("Needs `" in one["description"]) == bool(endpoint.needs or endpoint.asks)
            assert ("401" in one["responses"]) != endpoint.public


def test_a_moment_is_described_as_it_is_sent(document: dict[str, Any]) -> None:
    """As an object with a tag, not as text."""
    change = document["components"]["schemas"]["ChangeDocument"]["properties"]
    assert change["time"]["$ref"].endswith("/Moment")
    assert {"$ref": "#/components/schemas/Moment"} in change["expires"]["anyOf"]


def test_a_problem_is_what_its_schema_says(document: dict[str, Any]) -> None:
    """For errors of ours and for bugs."""
    schema = document["components"]["schemas"]["Problem"]
    for error in (SpellError("x"), ZeroDivisionError()):
        jsonschema.validate(problem_of(error).document, schema)


def test_what_may_be_tried_again_says_when(document: dict[str, Any]) -> None:
    """By ``Retry-After``; and 401 and 415 name the headers that go with them."""
    named = {401: "WWW-Authenticate", 415: "Accept-Encoding"} | dict.fromkeys(
        (408, 429, 503, 504), "Retry-After"
    )
    for path, methods in document["paths"].items():
        for one in methods.values():
            for status, header in named.items():
                answer = one["responses"].get(str(status))
                assert answer is None or header in answer.get("headers", {}) or path == "/readyz"


def test_a_write_tells_what_can_stand_in_its_way(document: dict[str, Any]) -> None:
    """Hooks, leases, a store that is full or refuses; and of a caller all that it may lack."""
    responses = document["paths"]["/v1/state/{scope}/{key}"]["put"]["responses"]
    for status, code in {
        403: "FOREIGN_PAGE",
        414: "PATH_TOO_LONG",
        415: "UNSUPPORTED_ENCODING",
        422: "OPERATION_CANCELLED",
        423: "LEASE_REQUIRED",
        424: "HOOK_FAILED",
        431: "HEADERS_TOO_LARGE",
        502: "STORE_PERMISSION",
        503: "KEYS_UNAVAILABLE",
        507: "STORE_FULL",
    }.items():
        assert f"`{code}`" in responses[str(status)]["description"]
    # Or the fuzzer could not tell a status that nobody has thought of.
    assert "500" not in responses
    assert "default" not in responses


def test_two_shapes_of_one_name_are_a_mistake() -> None:
    """Which of them a reference means, nobody could say."""
    from msgspec import defstruct

    registry = Registry("twice", "Two shapes.")
    for number, module in enumerate(("one", "two")):
        shape = defstruct("Same", [("a", int)], module=module)

        async def handler(call: Any) -> Any:
            """Answer."""

        registry.route("GET", f"/{number}", returns=shape)(handler)
    with pytest.raises(ValueError, match="Same"):
        openapi_document([registry], "1")
