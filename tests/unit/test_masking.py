"""What a secret looks like is the same to errors, to logs and to what guards data."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from llmspell_dist.errors import mask_secrets
from llmspell_dist.hooks.builtin.secrets import PATTERNS, redacted
from llmspell_dist.masking import mask_shapes, mask_text, secret_names, shapes
from llmspell_dist.telemetry import JSONFormatter

pytestmark = pytest.mark.unit

# Put together here, so that no scanner takes this file for a leak.
CERTAIN = {
    "model": "sk-" + "a1B2c3D4" * 4,
    "cloud": "AKIA" + "ABCDEFGH12345678",
    "forge": "gh" + "p_" + "a" * 36,
    "chat": "xox" + "b-1234567890-abc",
    "maps": "AIza" + "a" * 35,
    "private key": "-----BEGIN " + "PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----",
    "cut private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nabc",
    "JWT": "eyJ" + "hbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
    "unsigned JWT": "eyJ" + "hbGciOiJI.eyJzdWIiOiIx.",
    "passing cloud": "ASIA" + "ABCDEFGH12345678",
    "fine-grained forge": "github" + "_pat_" + "a1" * 20,
    "pay": "sk" + "_live_" + "a1B2" * 6,
}
"""Secrets by what they look like, wherever they stand."""
IN_TEXTS = {
    "https://ann@host/x": "https://***@host/x",
    "redis://:p#a?s@s@host/0": "redis://***@host/0",
    "sent basic YW5uOmh1bnRlcjI=": "sent basic ***",
    "bearer\thunter2": "bearer\t***",
    "password=hunter2": "password=***",
    "?token=hunter2,&x=1": "?token=***&x=1",
    "mytoken: hunter2, x": "mytoken: ***, x",
    'private_key="hunter2" x': "private_key=*** x",
    "{'access-key': 'hunter2'}": "{'access-key': '***'}",
    "passphrase = hunter2; x": "passphrase = ***; x",
    "password=***": "password=***",
    "password=": "password=",
    "the token 7 of a secret agent": "the token 7 of a secret agent",
    "redis://host:1/0 is fine": "redis://host:1/0 is fine",
}
"""What people are shown of texts that hold a secret, or none."""

BEGINNINGS = (
    *("eyJ-", "eyJ_", "eyJa.", "-----BEGIN A", "sk-a ", "sk-", "sk_live_", "github_pat_", "AKIA"),
    *("://a:", "://a@", "bearer ", "bearer a/", "token= ", "gho_"),
)
"""What secrets begin with."""


def _logged(text: str) -> str:
    record = logging.LogRecord("llmspell_dist", logging.INFO, "file.py", 1, text, (), None)
    return JSONFormatter().format(record)


@pytest.mark.parametrize("secret", CERTAIN.values(), ids=CERTAIN)
def test_a_secret_is_one_to_all_who_look_for_it(secret: str) -> None:
    """To errors, logs and hooks."""
    text = f"it said {secret}"
    for shown in (mask_text(text), mask_shapes(text), mask_secrets(text), redacted(text)):
        assert shown == "it said ***"
    assert '"it said ***"' in _logged(text)


@pytest.mark.parametrize(("text", "shown"), IN_TEXTS.items(), ids=IN_TEXTS)
def test_texts_for_people_show_less_than_data(text: str, shown: str) -> None:
    """Errors and logs alike; data that only may be a secret is left as it is."""
    assert mask_text(text) == mask_secrets(text) == shown
    assert mask_text(shown) == shown
    if "pass" not in text and ":p" not in text:
        assert redacted(text) is text


def test_what_guards_data_masks_what_its_patterns_say() -> None:
    """The short way of the library's own patterns comes to the same as the patterns one by one."""
    assert shapes() == PATTERNS
    secrets = [*CERTAIN.values(), "x Bearer " + "a" * 16, "redis://u:p@h", "https://ann@host", "x"]
    for text in secrets:
        assert redacted(text) == redacted(text, list(shapes()))
    assert secret_names().search("db_password")
    assert not secret_names().search("passwords_seen")


def test_nothing_is_compiled_when_the_library_is_imported() -> None:
    """Nearly all programs never need it."""
    code = (
        "import llmspell_dist, llmspell_dist.masking as m;"
        "print([one.cache_info().currsize for one in (m._in_data, m._in_texts, m.secret_names)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 0, 0]"


@pytest.mark.parametrize("mask", [mask_text, mask_shapes])
@pytest.mark.parametrize("part", BEGINNINGS)
def test_texts_full_of_beginnings_take_linear_time(mask: Callable[[str], str], part: str) -> None:
    """100 KB from outside, in an error or a value, must not hold up the event loop."""
    text = part * (100_000 // len(part))
    started = time.process_time()
    mask(text)
    assert time.process_time() - started < 1  # some 10 ms; 10 s where it grows by the square


@pytest.mark.parametrize(
    "text",
    [
        "the bearer responsibilities of",
        "Bearer authentication/authorization is used",
        "sk-learn-pipeline-for-text",
        "https://example.org/a:b@c",
    ],
)
def test_words_that_only_look_alike_stay_in_data(text: str) -> None:
    """What is masked there is gone."""
    assert mask_shapes(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:pw@host/0", "redis://***@host/0"),
        ("postgres://u:p@ss@host/db", "postgres://***@host/db"),
        ("OPENAI_sk-" + "a1B2c3D4" * 4, "OPENAI_***"),
    ],
)
def test_secrets_are_masked_as_a_whole_and_wherever_they_begin(text: str, shown: str) -> None:
    """A user without a name, a password with the sign that ends it, a name before a key."""
    assert mask_shapes(text) == shown


def test_very_many_masked_names_are_numbered_in_linear_time() -> None:
    """A map of secrets must not hold up the event loop, and loses no value."""
    names = {CERTAIN["cloud"][:-5] + f"{number:05}": number for number in range(10_000)}
    started = time.process_time()
    shown = redacted(names)
    assert time.process_time() - started < 2  # some 50 ms; 10 s where it grows by the square
    assert sorted(shown.values()) == list(range(10_000))
