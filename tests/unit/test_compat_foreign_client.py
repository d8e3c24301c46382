"""What is taken over from a client of redis-py, and what is refused."""

from __future__ import annotations

import ssl
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest
import redis
import redis.asyncio
from redis.credentials import CredentialProvider
from redis.sentinel import Sentinel

from llmspell_dist.config import Endpoint, parse_url
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.redis.foreign_client import is_foreign, pool_of, url_of

pytestmark = pytest.mark.unit

SURFACES = pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis])


def _endpoint(client: object) -> Endpoint:
    return parse_url(url_of(client))


@SURFACES
def test_host_port_database_and_user_are_taken_over(kind: Any) -> None:
    """Whatever characters they have."""
    client = kind(host="h-1.example", port=7000, db=3, username="u@/", password="p:%?#ü ")
    found = _endpoint(client)
    assert (found.scheme, found.host, found.port, found.db) == ("redis", "h-1.example", 7000, 3)
    assert (found.username, found.password) == ("u@/", "p:%?#ü ")


@SURFACES
def test_a_client_with_defaults_is_that_of_this_machine(kind: Any) -> None:
    """No user, database 0, and redis-py's own timeouts."""
    found = _endpoint(kind())
    assert (found.scheme, found.host, found.port, found.db) == ("redis", "localhost", 6379, 0)
    assert (found.username, found.password) == (None, None)


@SURFACES
def test_a_socket_is_taken_over(kind: Any) -> None:
    """With database and password."""
    client = kind(unix_socket_path="/run/my dir/r?.sock", db=2, password="secret")
    found = _endpoint(client)
    assert (found.scheme, found.path, found.db) == ("unix", "/run/my dir/r?.sock", 2)
    assert (found.username, found.password) == (None, "secret")


@SURFACES
def test_a_client_from_a_url_leads_to_the_same_server(kind: Any) -> None:
    """Also with an IPv6 address, whose brackets redis-py drops."""
    found = _endpoint(kind.from_url("redis://u:p@[::1]:7001/4"))
    assert (found.host, found.port, found.db, found.username) == ("::1", 7001, 4, "u")


@SURFACES
def test_timeouts_and_client_name_are_taken_over(kind: Any) -> None:
    """In seconds."""
    client = kind(socket_timeout=2.5, socket_connect_timeout=1, client_name="billing")
    found = _endpoint(client)
    assert (found.call_timeout, found.connect_timeout) == (2.5, 1.0)
    assert found.client_name == "billing"


@SURFACES
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("required", "required"),
        ("none", "none"),
        ("optional", "optional"),
        (ssl.CERT_REQUIRED, "required"),
        (ssl.CERT_NONE, "none"),
    ],
)
def test_tls_is_taken_over(kind: Any, given: Any, wanted: str) -> None:
    """The certificates and how strictly they are checked."""
    client = kind(
        ssl=True,
        ssl_cert_reqs=given,
        ssl_ca_certs="/ca file.pem",
        ssl_certfile="/c.pem",
        ssl_keyfile="/k.pem",
        ssl_check_hostname=False,
    )
    found = _endpoint(client)
    assert found.tls
    assert (found.ssl_cert_reqs, found.ssl_ca_certs) == (wanted, "/ca file.pem")
    assert (found.ssl_certfile, found.ssl_keyfile) == ("/c.pem", "/k.pem")
    assert not found.ssl_check_hostname


class _Credentials(CredentialProvider):
    def get_credentials(self) -> tuple[str, str]:
        return "rotated", "today"


@SURFACES
def test_a_credential_provider_is_asked(kind: Any) -> None:
    """As redis-py asks it for each connection."""
    found = _endpoint(kind(credential_provider=_Credentials()))
    assert (found.username, found.password) == ("rotated", "today")


@SURFACES
def test_how_a_client_decodes_does_not_matter(kind: Any) -> None:
    """Its connections are not used."""
    assert url_of(kind(decode_responses=True, encoding="latin-1")) == url_of(kind())


@SURFACES
@pytest.mark.parametrize(
    "options",
    [
        {"ssl": True, "ssl_ca_data": "PEM"},
        {"ssl": True, "ssl_password": "secret"},
        {"ssl": True, "ssl_min_version": ssl.TLSVersion.TLSv1_3},
        {"redis_connect_func": print},
    ],
    ids=lambda options: list(options)[-1],
)
def test_what_cannot_be_taken_over_is_refused(kind: Any, options: dict[str, Any]) -> None:
    """The error names it and the way out, and shows no secret."""
    with pytest.raises(InvalidArgumentError, match=list(options)[-1]) as caught:
        url_of(kind(**options))
    assert "connect(url)" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_client_of_sentinel_is_refused() -> None:
    """Its pool finds the server anew for each connection."""
    with pytest.raises(InvalidArgumentError, match="Sentinel"):
        url_of(Sentinel([("localhost", 1)]).master_for("main"))


def test_fakeredis_is_refused() -> None:
    """Its address is made up; what to use instead is said."""
    for client in (fakeredis.FakeRedis(), fakeredis.FakeAsyncRedis()):
        with pytest.raises(InvalidArgumentError, match="memory://"):
            url_of(client)


@pytest.mark.parametrize("client", [None, "redis://localhost", object(), redis.ConnectionPool()])
def test_what_is_no_client_is_refused(client: object) -> None:
    """Before anything is connected."""
    assert not is_foreign(client)
    with pytest.raises(InvalidArgumentError, match="must be a client of this library"):
        pool_of(client)


def test_a_connection_of_another_kind_is_refused() -> None:
    """Nobody knows where it leads."""
    pool = SimpleNamespace(connection_class=dict, connection_kwargs={})
    with pytest.raises(InvalidArgumentError, match="own kinds"):
        url_of(SimpleNamespace(connection_pool=pool))
