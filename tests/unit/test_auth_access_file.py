"""The access file: what it may say, and what each mistake is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fix_auth import jwks, jwt_entry, public_jwk, token_entry

from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.entries import ALGORITHMS, KeySource
from llmspell_dist.sidecar.auth.errors import AccessFileError
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.auth.minting import new_token
from llmspell_dist.sidecar.auth.peers import Peer

pytestmark = [pytest.mark.unit, pytest.mark.security]

PAGE = Path(__file__).parents[2] / "docs" / "sidecar" / "access.md"
DIGEST = new_token().sha256
URL = "https://issuer.example/jwks"
RULE = '[{claims = {%s}, grants = [{scopes = ["*"], verbs = ["read"]}]}]'


def _token(**changes: str) -> str:
    return token_entry(DIGEST, **changes)


def _grant(scopes: str = '["agent:*"]', verbs: str = '["read"]') -> str:
    return f"[{{scopes = {scopes}, verbs = {verbs}}}]"


def _peer(fields: str) -> str:
    return f"[[peer]]\n{fields}\ngrants = {_grant()}\n"


MISTAKES: dict[str, tuple[str, str, str]] = {
    # what: text, entry, rule
    "no TOML": ("[[token]", "", "must be TOML: .*line 1"),
    "no UTF-8": ("\xff", "", "must be UTF-8"),
    "nothing": ("", "", "at least one"),
    "only a comment": ("# tokens follow\n", "", "at least one"),
    "unknown table": ("[[tokens]]\n", "", "unknown field `tokens`"),
    "one table for a list": ('[token]\nname = "x"\n', "token", "Expected `array`"),
    "unknown field": (_token(scope='"*"'), "token[0] (planner)", "unknown field `scope`"),
    "no name": (_token().replace('name = "planner"\n', ""), "token[0]", "missing.*`name`"),
    "name a number": (_token().replace('"planner"', "5"), "token[0].name", "Expected `str`"),
    "name with a slash": (_token(name="a/b"), "token[0].name", "1 to 64"),
    "name empty": (_token(name=""), "token[0].name", "1 to 64"),
    "name a secret": (_token(name=new_token().secret), "token[0].name", "no secret"),
    "name twice": (
        _token() + token_entry(new_token().sha256),
        "token[1] (planner).name",
        "not be that of another",
    ),
    "digest twice": (
        _token() + _token(name="other"),
        "token[1] (other).sha256",
        "not be that of another",
    ),
    "digest too short": (_token(sha256='"abc"'), "token[0] (planner).sha256", "64 lower-case"),
    "digest in upper case": (
        _token(sha256=f'"{DIGEST.upper()}"'),
        "token[0] (planner).sha256",
        "64 lower-case",
    ),
    "expiry without offset": (
        _token(expires="2030-01-01T00:00:00"),
        "token[0] (planner).expires",
        "timezone",
    ),
    "expiry a date": (_token(expires="2030-01-01"), "token[0] (planner).expires", "datetime"),
    "expiry a text": (_token(expires='"soon"'), "token[0] (planner).expires", "Expected|Invalid"),
    "no grants": (_token(grants="[]"), "token[0] (planner).grants", "at least one grant"),
    "grant without scopes": (
        _token(grants=_grant(scopes="[]")),
        "token[0] (planner).grants[0].scopes",
        "at least one pattern",
    ),
    "empty pattern": (
        _token(grants=_grant(scopes='["global", ""]')),
        "token[0] (planner).grants[0].scopes[1]",
        "1 to 1024",
    ),
    "misspelt kind": (
        _token(grants=_grant(scopes='["agents:*"]')),
        "token[0] (planner).grants[0].scopes[0]",
        "begin as",
    ),
    "no verbs": (_token(grants=_grant(verbs="[]")), "token[0] (planner).grants[0].verbs", "some"),
    "unknown verb": (
        _token(grants=_grant(verbs='["read", "own"]')),
        "token[0] (planner).grants[0].verbs",
        "some of read, write, delete, list, admin",
    ),
    "star among verbs": (
        _token(grants=_grant(verbs='["read", "*"]')),
        "token[0] (planner).grants[0].verbs",
        "alone",
    ),
    "verbs a text": (
        _token(grants=_grant(verbs='"read"')),
        "token[0] (planner).grants[0].verbs",
        "Expected `array`",
    ),
    "second token": (
        _token() + token_entry("0", "other"),
        "token[1] (other).sha256",
        "64 lower-case",
    ),
    "JWT name twice": (
        jwt_entry(URL) + jwt_entry(URL),
        "jwt[1] (cluster).name",
        "not be that of another",
    ),
    "no issuer": (jwt_entry(URL, issuer='""'), "jwt[0] (cluster).issuer", "not be empty"),
    "no audience": (jwt_entry(URL, audience='""'), "jwt[0] (cluster).audience", "none empty"),
    "no audiences": (jwt_entry(URL, audience="[]"), "jwt[0] (cluster).audience", "none empty"),
    "an empty audience": (
        jwt_entry(URL, audience='["a", ""]'),
        "jwt[0] (cluster).audience",
        "none empty",
    ),
    "no algorithms": (jwt_entry(URL, algorithms="[]"), "jwt[0] (cluster).algorithms", "asymm"),
    "leeway below 0": (jwt_entry(URL, leeway="-1"), "jwt[0] (cluster).leeway", "0 to 300"),
    "leeway of an hour": (jwt_entry(URL, leeway="3600"), "jwt[0] (cluster).leeway", "0 to 300"),
    "leeway infinite": (jwt_entry(URL, leeway="inf"), "jwt[0] (cluster).leeway", "0 to 300"),
    "leeway no number": (jwt_entry(URL, leeway="nan"), "jwt[0] (cluster).leeway", "0 to 300"),
    "no rules": (jwt_entry(URL, rules="[]"), "jwt[0] (cluster).rules", "at least one rule"),
    "no claims": (
        jwt_entry(URL, rules=RULE % ""),
        "jwt[0] (cluster).rules[0].claims",
        "at least one claim",
    ),
    "no claims within": (
        jwt_entry(URL, rules=RULE % '"kubernetes.io" = {}'),
        "jwt[0] (cluster).rules[0].claims.kubernetes.io",
        "at least one claim",
    ),
    "claim a list": (
        jwt_entry(URL, rules=RULE % 'sub = ["a"]'),
        "jwt[0] (cluster).rules[0].claims.sub",
        "must be a text",
    ),
    "claim empty": (
        jwt_entry(URL, rules=RULE % 'sub = ""'),
        "jwt[0] (cluster).rules[0].claims.sub",
        "must be a text",
    ),
    "claims too deep": (
        jwt_entry(URL, rules=RULE % 'a.b.c.d.e.f.g.h.i = "x"'),
        "jwt[0] (cluster).rules[0].claims.a.b.c.d.e.f.g.h",
        "8 tables deep",
    ),
    "keys empty": (jwt_entry(""), "jwt[0] (cluster).jwks", "must be a URL"),
    "keys missing": (jwt_entry("missing.json"), "", "missing.json: cannot be read"),
    "keys no key set": (
        jwt_entry("access.toml"),
        "jwt[0] (cluster).jwks",
        "access.toml is not JSON",
    ),
    "token for a file": (
        jwt_entry("keys.json", jwks_token_file='"t"'),
        "jwt[0] (cluster).jwks_token_file",
        "a URL",
    ),
    "authority for a file": (
        jwt_entry("keys.json", jwks_ca_file='"t"'),
        "jwt[0] (cluster).jwks_ca_file",
        "a URL",
    ),
    "peer of nobody": (_peer(""), "peer[0]", "a uid, a gid or both"),
    "peer below 0": (_peer("uid = -1"), "peer[0].uid", "from 0"),
    "peer overflown": (_peer("gid = 65534"), "peer[0].gid", "strangers"),
    "peer beyond": (_peer("uid = 4294967295"), "peer[0].uid", "from 0"),
    "peer a name": (_peer('uid = "root"'), "peer[0].uid", "Expected `int"),
    "peer true": (_peer("uid = true"), "peer[0].uid", "Expected `int"),
    "anonymous nothing": ("[anonymous]\ngrants = []\n", "anonymous.grants", "at least one grant"),
    "anonymous a list": ("[[anonymous]]\ngrants = []\n", "anonymous", "Expected `object"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_file_entry_and_rule(access_path: Path, mistake: str) -> None:
    """So that nobody has to guess which of forty tokens is meant."""
    text, entry, rule = MISTAKES[mistake]
    access_path.write_text(text, encoding="latin-1")
    with pytest.raises(AccessFileError) as caught:
        Access.load(access_path)
    assert caught.value.entry == entry
    assert re.search(rule, str(caught.value)), str(caught.value)
    assert str(access_path.parent) in caught.value.path
    assert caught.value.code == "ACCESS_FILE"


@pytest.mark.parametrize(
    "algorithm",
    ["none", "None", "", "HS256", "HS384", "HS512", "RS1", "ES256K", "rs256", "RSA-OAEP", "dir"],
)
def test_only_asymmetric_algorithms_are_taken(access_path: Path, algorithm: str) -> None:
    """Whoever can verify an HS256 token can make one; anybody can make one of none."""
    access_path.write_text(jwt_entry(URL, algorithms=f'["RS256", "{algorithm}"]'))
    with pytest.raises(AccessFileError, match="asymmetric"):
        Access.load(access_path)


def test_every_algorithm_that_is_offered_is_taken(access_path: Path) -> None:
    """And the default is what Kubernetes signs with."""
    names = ", ".join(f'"{name}"' for name in ALGORITHMS)
    access_path.write_text(
        jwt_entry(URL, algorithms=f"[{names}]") + jwt_entry(URL, name='"default"')
    )
    entries = Access.load(access_path)._rules.entries
    assert entries.issuers[0].algorithms == ALGORITHMS
    assert entries.issuers[1].algorithms == {"RS256", "ES256"}


@pytest.mark.parametrize(
    "url",
    [
        *("http://issuer.example/jwks", "http://10.0.0.1/jwks", "ftp://127.0.0.1/x"),
        *("file:///etc/keys.json", "https:///jwks", "https://user:pw@issuer.example/jwks"),
        *("http://127.0.0.1:99999/", "http://localhost.example.com/", "http://127.0.0.1.nip.io/"),
        *("https://issuer.example/a b", "https://issuer.example/#x", "http://[::1", "gopher://x"),
        *("http://127.0.0.1@evil.example/", "https://issuer.example/\\r\\nX: 1"),
    ],
)
def test_keys_are_not_taken_from_where_somebody_could_change_them(
    access_path: Path, url: str
) -> None:
    """Plain http is for this machine; a password in the URL would be shown in problems."""
    access_path.write_text(jwt_entry(url))
    with pytest.raises(AccessFileError) as caught:
        Access.load(access_path)
    assert caught.value.entry == "jwt[0] (cluster).jwks"
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1:8443", "localhost", "[::1]:80", "127.9.9.9"])
def test_keys_may_come_over_http_on_this_machine(access_path: Path, host: str) -> None:
    """Nobody else is on that way."""
    access_path.write_text(jwt_entry(f"http://{host}/jwks"))
    (issuer,) = Access.load(access_path)._rules.entries.issuers
    assert issuer.source == KeySource(url=f"http://{host}/jwks")


def test_files_that_are_named_lie_beside_the_access_file(access_path: Path) -> None:
    """Unless their path is absolute; URLs of one source share their keys."""
    access_path.with_name("keys.json").write_bytes(jwks(public_jwk("RSA", "rsa")))
    more = {"jwks_ca_file": '"ca.crt"', "jwks_token_file": '"/run/token"'}
    access_path.write_text(
        jwt_entry("keys.json")
        + jwt_entry(URL, name='"two"', **more)
        + jwt_entry(URL, name='"three"', audience='"other"', **more)
    )
    rules = Access.load(access_path)._rules
    assert [issuer.source for issuer in rules.entries.issuers] == [
        KeySource(path=access_path.with_name("keys.json")),
        *[
            KeySource(
                url=URL,
                ca_file=access_path.with_name("ca.crt"),
                token_file=Path("/run/token"),
            )
        ]
        * 2,
    ]
    assert len(rules.keysets) == 2


def test_a_star_is_short_for_all_verbs(access_path: Path) -> None:
    """Alone, in the list of verbs."""
    access_path.write_text(_token(grants=_grant(verbs='["*"]')))
    (token,) = Access.load(access_path)._rules.entries.tokens
    assert all(token.principal.may(verb, "agent:a") for verb in Verb)


# -- the documentation


def _blocks() -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_example_of_the_page_is_an_access_file(access_path: Path) -> None:
    """The first block is a whole file: all of its entries are in force."""
    access_path.with_name("jwks.json").write_bytes(jwks(public_jwk("RSA", "rsa")))
    access_path.write_text(_blocks()[0])
    access = Access.load(access_path)
    entries = access._rules.entries
    assert entries.tokens
    assert entries.issuers
    assert entries.anonymous is not None
    peer = access.cached(None, Peer(1, 1000, 1000))
    assert peer is not None
    assert peer.kind == "peer"


def test_every_toml_block_of_the_page_loads(access_path: Path) -> None:
    """Each by itself."""
    blocks = _blocks()
    assert len(blocks) >= 3
    access_path.with_name("jwks.json").write_bytes(jwks(public_jwk("RSA", "rsa")))
    for block in blocks:
        access_path.write_text(block)
        Access.load(access_path)


def test_the_page_names_every_field_and_algorithm(access_path: Path) -> None:
    """A field that nobody can read about is none."""
    from llmspell_dist.sidecar.auth import reading

    text = PAGE.read_text("utf-8")
    shapes = (reading._Token, reading._JWT, reading._Peer, reading._Rule, reading._Grant)
    fields = {field for shape in shapes for field in shape.__struct_fields__}
    assert {field for field in fields if f"`{field}`" not in text} == set()
    assert {name for name in ALGORITHMS if f"`{name}`" not in text} == set()
