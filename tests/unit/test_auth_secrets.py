"""No credential in what is printed, logged, raised or pickled; and errors that travel."""

from __future__ import annotations

import asyncio
import logging
import pickle
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fix_auth import claims, jwt_entry, signed, token_entry

from llmspell_dist.errors import SpellError
from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.errors import (
    AccessFileError,
    ForbiddenError,
    KeysUnavailableError,
    UnauthenticatedError,
    UnsafeBindError,
)
from llmspell_dist.sidecar.auth.minting import new_token

if TYPE_CHECKING:
    from fix_auth import Issuer, ManualTime

pytestmark = [pytest.mark.unit, pytest.mark.security]

TOKEN = new_token()


def _reachable(value: Any, depth: int = 6) -> str:
    """Return the repr of a value and of what hangs on it."""
    texts = [repr(value)]
    if depth:
        fields = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
        for one in [*fields, *getattr(value, "__dict__", {}).values()]:
            if type(one).__module__.startswith("llmspell_dist"):
                texts.append(_reachable(one, depth - 1))
            else:
                texts.append(repr(one))
    return "\n".join(texts)


def test_nothing_that_is_kept_holds_a_secret(
    access_path: Path, issuer: Issuer, manual_time: ManualTime
) -> None:
    """Neither the token nor the JWT: only digests are there to be shown."""
    access_path.write_text(token_entry(TOKEN.sha256) + jwt_entry(issuer.url))
    access = Access.load(access_path, clocks=manual_time.clocks)
    jwt = signed(claims())
    principals = []
    for credential in (TOKEN.secret, jwt):
        principals.append(asyncio.run(access.authenticate(f"Bearer {credential}")))
        assert access.cached(f"Bearer {credential}") is not None
    shown = _reachable(access) + "".join(map(_reachable, principals)) + repr(TOKEN)
    for secret in (TOKEN.secret, TOKEN.secret[5:], jwt, *jwt.split(".")):
        assert secret not in shown


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer  ", "Basic ", "Token ", ""])
@pytest.mark.parametrize("ending", ["", "x", "\n", ".x", ".x.y", "=", "\x00"])
async def test_a_refused_credential_is_quoted_nowhere(
    access_path: Path,
    issuer: Issuer,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
    ending: str,
) -> None:
    """Neither in the message nor in the reason, the facts, the traceback or the log."""
    access = await asyncio.to_thread(_loaded, access_path, jwt_entry(issuer.url))
    payload, signature = signed(claims(), number=7).split(".")[1:]
    for secret in (TOKEN.secret, signed(claims(), number=7), f"e30.{payload}.{signature}"):
        with (
            caplog.at_level(logging.DEBUG),
            pytest.raises(UnauthenticatedError) as caught,
        ):
            await access.authenticate(scheme + secret + ending)
        error = caught.value
        told = [str(error), repr(error), error.reason, error.challenge, repr(error.facts)]
        told += [*traceback.format_exception(error), caplog.text]
        for part in [secret, *secret.split(".")]:
            if len(part) > 10:
                assert part not in "\n".join(told)


def _loaded(path: Path, text: str) -> Access:
    path.write_text(text)
    return Access.load(path)


@pytest.mark.parametrize(
    "text",
    [
        token_entry(TOKEN.secret),
        token_entry(TOKEN.sha256, TOKEN.secret),
        token_entry(TOKEN.sha256, grants=f'[{{scopes = ["{TOKEN.secret}"], verbs = ["read"]}}]'),
        token_entry(TOKEN.sha256, grants=f'[{{scopes = ["*"], verbs = ["{TOKEN.secret}"]}}]'),
        token_entry(TOKEN.sha256, expires=f'"{TOKEN.secret}"'),
        token_entry(TOKEN.sha256, **{TOKEN.secret: "1"}),
        f'{TOKEN.secret} = "x"',
        f'"{TOKEN.secret}',
        f"{TOKEN.secret} {TOKEN.secret}",
        jwt_entry("https://x/", algorithms=f'["{TOKEN.secret}"]'),
        jwt_entry(f"https://u:{TOKEN.secret}@x/"),
        jwt_entry(f"http://{TOKEN.secret}/"),
        jwt_entry("https://x/", leeway=f'"{TOKEN.secret}"'),
        jwt_entry("https://x/", audience=f'["", "{TOKEN.secret}"]'),
    ],
)
def test_a_secret_at_the_wrong_place_of_the_file_is_not_quoted(
    access_path: Path, text: str
) -> None:
    """The likeliest mistake is the secret where its digest belongs."""
    with pytest.raises(AccessFileError) as caught:
        _loaded(access_path, text)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.facts)
    assert TOKEN.secret not in told
    assert TOKEN.secret[5:] not in told


@pytest.mark.parametrize(
    "error",
    [
        AccessFileError("/etc/access.toml", "token[0]", "must be right"),
        UnsafeBindError("0.0.0.0", "open"),  # noqa: S104
        UnauthenticatedError("token: unknown"),
        UnauthenticatedError("none", given=False),
        KeysUnavailableError("keys: away"),
        ForbiddenError("write", "agent:" + "x" * 500),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:30],
)
def test_an_error_survives_pickling_with_reason_and_challenge(error: SpellError) -> None:
    """And is as short as a message may be."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is type(error)
    assert (copy.facts, str(copy)) == (error.facts, str(error))
    assert len(str(error)) < 300
    if isinstance(error, UnauthenticatedError):
        assert isinstance(copy, UnauthenticatedError)
        assert (copy.reason, copy.challenge) == (error.reason, error.challenge)
        assert error.facts == {}
