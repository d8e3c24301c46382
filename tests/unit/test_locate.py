"""From a URL to the server that it names."""

from __future__ import annotations

import ssl

import pytest

from llmspell_dist.config import parse_url
from llmspell_dist.errors import InvalidURLError
from llmspell_dist.redis.connection import Endpoint, EndpointResolver
from llmspell_dist.redis.locate import locate

pytestmark = pytest.mark.unit


def resolver_from_url(url: str, client_name: str | None = None) -> EndpointResolver:
    """Return what says where the server of a URL is."""
    return locate(parse_url(url), client_name=client_name, protocol=3).resolver


def endpoint_from_url(url: str, client_name: str | None = None) -> Endpoint:
    """Return the server of a URL."""
    return resolver_from_url(url, client_name).resolve_blocking()


def test_a_url_names_everything() -> None:
    """Host, port, database and credentials, percent-decoded."""
    endpoint = endpoint_from_url("redis://us%40er:p%2Fw@example.org:7000/3?protocol=2")
    assert (endpoint.host, endpoint.port, endpoint.db) == ("example.org", 7000, 3)
    assert (endpoint.username, endpoint.password) == ("us@er", "p/w")
    assert (endpoint.protocol, endpoint.tls) == (2, None)


def test_a_short_url_has_defaults() -> None:
    """Port 6379, database 0, RESP3, nobody logged in."""
    endpoint = endpoint_from_url("redis://cache", client_name="me")
    assert (endpoint.address, endpoint.db, endpoint.protocol) == ("cache:6379", 0, 3)
    assert (endpoint.username, endpoint.password) == (None, None)
    assert endpoint.client_name == "me"


def test_ipv6_is_shown_in_brackets() -> None:
    """The address can be read back."""
    assert endpoint_from_url("redis://[::1]:7000").address == "[::1]:7000"


def test_a_unix_socket_is_a_path() -> None:
    """The database stands in the query."""
    endpoint = endpoint_from_url("unix://:pw@/tmp/my%20server.sock?db=2")
    assert (endpoint.path, endpoint.db, endpoint.password) == ("/tmp/my server.sock", 2, "pw")
    assert endpoint.address == "/tmp/my server.sock"


def test_tls_verifies_unless_told_otherwise() -> None:
    """Certificates and host names are checked by default."""
    strict = endpoint_from_url("rediss://h").tls
    lax = endpoint_from_url("rediss://h?ssl_cert_reqs=none").tls
    nameless = endpoint_from_url("rediss://h?ssl_check_hostname=false").tls
    assert strict is not None
    assert lax is not None
    assert nameless is not None
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_NONE, False)
    assert (nameless.verify_mode, nameless.check_hostname) == (ssl.CERT_REQUIRED, False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://u:s3cret@h",
        "redis://u:s3cret@h:99999",
        "redis://u:s3cret@h:port",
        "redis://u:s3cret@h/zero",
        "redis://u:s3cret@h/-1",
        "redis://u:s3cret@h?protocol=4",
        "redis://u:s3cret@h?colour=red",
        "redis://u:s3cret@h?ssl_ca_certs=x",
        "redis://u:s3cret@h#part",
        "rediss://u:s3cret@h?ssl_cert_reqs=perhaps",
        "rediss://u:s3cret@h?ssl_ca_certs=/does/not/exist",
        "redis://user@h",
        "unix://u:s3cret@host/path",
        "unix://",
    ],
)
def test_a_url_that_cannot_be_understood_is_refused_without_its_secret(url: str) -> None:
    """The error names the argument and the rule."""
    with pytest.raises(InvalidURLError) as caught:
        endpoint_from_url(url)
    assert caught.value.argument == "url"
    assert "s3cret" not in str(caught.value)


async def test_a_fixed_server_is_always_where_its_url_says() -> None:
    """Both drivers resolve to the same endpoint."""
    resolver = resolver_from_url("redis://u:s3cret@h:1")
    assert await resolver.resolve() == resolver.resolve_blocking()
    assert resolver.label == "h:1"
    assert "s3cret" not in repr(resolver)
