from __future__ import annotations

from typing import Any

import pytest

from llmspell_dist.config import (
    Endpoint,
    NearCache,
    Options,
    default_namespace,
    default_url,
    parse_url,
)
from llmspell_dist.errors import InvalidArgumentError, InvalidURLError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("url", "facts"),
    [
        ("redis://", {"host": "localhost", "port": 6379, "db": 0}),
        ("redis://h:1/2", {"host": "h", "port": 1, "db": 2}),
        ("redis://[::1]:7/0", {"host": "::1", "port": 7}),
        ("redis://u:p%40ss@h?protocol=2", {"username": "u", "password": "p@ss", "protocol": 2}),
        ("redis://:p@h/1?db=3", {"username": None, "password": "p", "db": 3}),
        ("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=false&ssl_ca_certs=/c",
         {"tls": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False, "ssl_ca_certs": "/c"}),
        ("unix:///run/r.sock?db=1", {"path": "/run/r.sock", "db": 1}),
        ("unix://u:p@/run/r.sock", {"path": "/run/r.sock", "username": "u", "password": "p"}),
        ("memory://name", {"path": "name"}),
        ("memory://", {"path": "default"}),
        ("embedded:///a/b%20c", {"path": "/a/b c"}),
        ("embedded://", {"path": ""}),
        ("redis://h?socket_timeout=2.5&connect_timeout=1", {"call_timeout": 2.5,
                                                           "connect_timeout": 1.0}),
    ],
)  # fmt: skip
def test_url_names_a_server(url: str, facts: dict[str, Any]) -> None:
    """All five schemes and their options."""
    endpoint = parse_url(url)
    assert {name: getattr(endpoint, name) for name in facts} == facts


@pytest.mark.parametrize(
    "url",
    ["", "h:1", "http://h", "redis:h", "redis://:hunter2@h:99999", "redis://:hunter2@h:x",
     "redis://:hunter2@h/x", "redis://:hunter2@h?nope=1", "redis://h?password=hunter2&db=-1",
     "redis://:hunter2@h#x", "unix://", "unix://:hunter2@host/x", "memory://:hunter2@x",
     "embedded://hunter2/x", "redis://:hunter2@h?protocol=4", "redis://:hunter2@h?call_timeout=nan",
     "rediss://:hunter2@h?ssl_cert_reqs=x", "redis://:hunter2@[h", "redis://h?socket_timeout=0",
     None],
)  # fmt: skip
def test_bad_url_is_refused_without_showing_the_password(url: Any) -> None:
    """Neither in the message nor in what chains to it."""
    with pytest.raises(InvalidURLError) as caught:
        parse_url(url)
    assert caught.value.argument == "url"
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.facts)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("url", ["redis://u:hunter2@h:1/2", "unix://:hunter2@/a?db=3"])
def test_endpoint_never_shows_its_password(url: str) -> None:
    """Neither as repr nor as str; and the str without it is a URL again."""
    endpoint = parse_url(url)
    assert "hunter2" not in repr(endpoint) + str(endpoint)
    assert parse_url(str(endpoint)).db == endpoint.db


def test_environment_names_url_and_namespace() -> None:
    """With the documented defaults."""
    assert default_url({"LLMSPELL_URL": "memory://x"}) == "memory://x"
    assert default_namespace({"LLMSPELL_NAMESPACE": "n"}) == "n"
    assert default_url({}) == "redis://127.0.0.1:6379/0"
    assert default_namespace({}) == "llmspell"


@pytest.mark.parametrize(
    ("field", "bad"),
    [("namespace", ""), ("client_name", "a b"), ("client_name", ""), ("connect_timeout", 0),
     ("call_timeout", float("nan")), ("call_timeout", True), ("retry_budget", 0),
     ("housekeeping", 1), ("max_in_flight", 0),
     ("max_in_flight", True), ("health_check_interval", -1), ("protocol", 4), ("protocol", True),
     ("max_value_bytes", 0), ("max_depth", 0), ("max_depth", 1000), ("classes", {}),
     ("retention", 1), ("codec", "json"), ("cipher", object()), ("shards", 0), ("shards", "1")],
)  # fmt: skip
def test_bad_option_is_refused_naming_its_field(field: str, bad: Any) -> None:
    """Every field is checked."""
    with pytest.raises(InvalidArgumentError) as caught:
        Options(**{field: bad})
    assert caught.value.argument == field


def test_options_hide_the_cipher_and_make_the_codec() -> None:
    """A cipher holds keys; its repr is not ours to trust."""

    class Cipher:
        def encrypt(self, plaintext: bytes, *, associated_data: bytes) -> bytes:  # noqa: ARG002
            return plaintext

        def decrypt(self, ciphertext: bytes, *, associated_data: bytes) -> bytes:  # noqa: ARG002
            return ciphertext

        def __repr__(self) -> str:
            return "hunter2"

    options = Options(cipher=Cipher(), max_value_bytes=77)
    assert "hunter2" not in repr(options)
    assert options.make_codec().max_bytes == 77
    assert Endpoint(scheme="rediss").tls


@pytest.mark.parametrize("pattern", ["agent", "Agent:*", "agents:*", "agent:a b", "glob"])
def test_a_near_cache_of_no_scope_is_refused(pattern: str) -> None:
    """A pattern that no scope can match keeps nothing, and nobody would notice."""
    with pytest.raises(InvalidArgumentError, match="no scope is ever called this"):
        NearCache(scopes=("agent:*", pattern))


def test_patterns_of_scopes_fit() -> None:
    """Of each kind, with and without wildcards."""
    fits = ("global", "agent:alice", "workflow:w/step:*", "[au]*:x", "user:?", "glob*", "*")
    assert NearCache(scopes=fits).scopes == fits
