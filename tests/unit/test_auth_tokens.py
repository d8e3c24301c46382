"""Bearer tokens: made, kept as digests, and told from everything that is none."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fix_auth import token_entry

from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.errors import CHALLENGE, UnauthenticatedError
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.auth.minting import is_well_formed, new_token

if TYPE_CHECKING:
    from fix_auth import ManualTime

pytestmark = [pytest.mark.unit, pytest.mark.security]

TOKEN = new_token()
OTHER = new_token()


@pytest.fixture
def access(access_path: Path, manual_time: ManualTime) -> Access:
    """One token that expires in 2027, and one that does not."""
    text = token_entry(TOKEN.sha256) + token_entry(
        OTHER.sha256, "other", expires="2027-01-15T09:00:00+01:00"
    )
    access_path.write_text(text)
    return Access.load(access_path, clocks=manual_time.clocks)


def test_a_new_token_has_256_random_bits_and_a_checksum() -> None:
    """43 characters of 62 hold them; what is kept is the SHA-256 of the whole secret."""
    tokens = [new_token() for _ in range(200)]
    assert len({token.secret for token in tokens}) == 200
    for secret, digest in tokens:
        assert secret.startswith("llms_")
        assert len(secret) == 54
        assert secret.isascii()
        assert digest == hashlib.sha256(secret.encode()).hexdigest()
        assert is_well_formed(secret)
    assert 62**43 > 2**256
    # Every place takes many values: none of them is constant.
    assert all(len({token.secret[at] for token in tokens}) > 20 for at in range(6, 48))


@pytest.mark.parametrize("at", [5, 20, 47, 48, 53])
def test_a_mistyped_secret_is_noticed(at: int) -> None:
    """Wherever one character differs, checksum included."""
    wrong = "0" if TOKEN.secret[at] != "0" else "1"
    assert not is_well_formed(TOKEN.secret[:at] + wrong + TOKEN.secret[at + 1 :])


@pytest.mark.parametrize("text", ["", "llms_", "x" * 54, "llms_" + "é" * 49, TOKEN.secret + "0"])
def test_what_has_another_form_is_no_secret(text: str) -> None:
    """Length, prefix and alphabet."""
    assert not is_well_formed(text)


async def test_a_known_token_is_its_principal_at_once_and_again(access: Access) -> None:
    """Without waiting, as there is nothing to wait for; the scheme's case does not matter."""
    principal = access.cached(f"Bearer {TOKEN.secret}")
    assert principal is not None
    assert (principal.kind, principal.name) == ("token", "planner")
    assert principal.may(Verb.WRITE, "agent:alice")
    assert not principal.may(Verb.ADMIN, "agent:alice")
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert await access.authenticate(f"{scheme} {TOKEN.secret}") is principal


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        ("", "scheme"),
        ("Bearer", "scheme"),
        ("Bearer ", "characters"),
        (TOKEN.secret, "scheme"),
        (f"Basic {TOKEN.secret}", "scheme"),
        (f"Token {TOKEN.secret}", "scheme"),
        (f" Bearer {TOKEN.secret}", "scheme"),
        (f"Bearer  {TOKEN.secret}", "characters"),
        (f"Bearer\t{TOKEN.secret}", "scheme"),
        (f"Bearer {TOKEN.secret} ", "characters"),
        (f"Bearer {TOKEN.secret}\n", "characters"),
        (f"Bearer {TOKEN.secret}\r\nX-Admin: 1", "characters"),
        (f"Bearer {TOKEN.secret}\x00", "characters"),
        (f"Bearer {TOKEN.secret}, Bearer {OTHER.secret}", "characters"),
        (f"Bearer {TOKEN.secret},Basic YTpi", "characters"),
        (f"Basic YTpi, Bearer {TOKEN.secret}", "scheme"),
        (f"Bearer Bearer {TOKEN.secret}", "characters"),
        (f'Bearer "{TOKEN.secret}"', "characters"),
        (f"Bearer {TOKEN.secret}=", "mistyped"),
        (f"Bearer {TOKEN.secret[:-1]}", "mistyped"),
        (f"Bearer {TOKEN.secret.lower()}", "mistyped"),
        (f"Bearer {TOKEN.secret.upper()}", "neither"),
        (f"Bearer {TOKEN.sha256}", "neither"),
        (f"Bearer llms_{TOKEN.sha256}", "mistyped"),
        (f"Bearer {new_token().secret}", "not in the access file"),
        ("Bearer llms_é" + "x" * 48, "characters"),
        ("Bearer \ud800", "characters"),
        ("Bearer " + "llms_" + "?" * 49, "characters"),
        ("Bearer " + "A" * 20_000, "more than"),
        ("Bearer garbage", "neither"),
    ],
)
async def test_what_is_not_exactly_one_good_token_is_not_accepted(
    access: Access, authorization: str, reason: str
) -> None:
    """The log learns why; the client only that it was not accepted."""
    assert access.cached(authorization) is None
    with pytest.raises(UnauthenticatedError) as caught:
        await access.authenticate(authorization)
    assert str(caught.value) == "not accepted"
    assert caught.value.facts == {}
    assert caught.value.challenge == f'{CHALLENGE}, error="invalid_token"'
    assert reason in caught.value.reason


async def test_a_request_without_credentials_is_told_to_bring_some(access: Access) -> None:
    """With the challenge of RFC 9110, and no error in it."""
    assert access.requires_credentials
    assert access.cached(None) is None
    with pytest.raises(UnauthenticatedError, match="no credentials") as caught:
        await access.authenticate(None)
    assert caught.value.challenge == CHALLENGE


async def test_an_expired_token_is_refused_from_that_moment_on(
    access: Access, manual_time: ManualTime
) -> None:
    """Also one that was good a moment before; others go on."""
    authorization = f"Bearer {OTHER.secret}"
    manual_time.advance(-1)  # the other one expires at 1,800,000,000
    assert access.cached(authorization) is not None
    manual_time.advance(1)
    assert access.cached(authorization) is None
    with pytest.raises(UnauthenticatedError) as caught:
        await access.authenticate(authorization)
    assert caught.value.reason == "token other: expired"
    assert access.cached(f"Bearer {TOKEN.secret}") is not None


def test_the_digest_of_a_password_does_not_work(access_path: Path) -> None:
    """Only minted secrets are accepted: that is why a fast hash is enough."""
    password = "hunter2"
    access_path.write_text(token_entry(hashlib.sha256(password.encode()).hexdigest()))
    access = Access.load(access_path)
    assert access.cached(f"Bearer {password}") is None
    with pytest.raises(UnauthenticatedError):
        asyncio.run(access.authenticate(f"Bearer {password}"))
