"""How the command line speaks of durations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmspell_dist.cli.arguments import parse_ttl
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.wording import spoken

pytestmark = pytest.mark.unit

HOUR, DAY = 3600.0, 86_400.0
SPOKEN = [
    (-1.0, "0ms"),
    (0.05, "50ms"),
    (0.9999, "1000ms"),
    (1.0, "1s"),
    (4.26, "4.3s"),
    (59.94, "59.9s"),
    (59.96, "1m"),
    (61.0, "1m1s"),
    (192.4, "3m12s"),
    (HOUR - 0.01, "1h"),
    (HOUR + 125, "1h2m"),
    (DAY - 1, "23h59m"),
    (2 * DAY + 3 * HOUR + 59, "2d3h"),
]


@pytest.mark.parametrize(("seconds", "text"), SPOKEN)
def test_a_duration_is_short(seconds: float, text: str) -> None:
    """Two units at most; never negative, whatever the clocks say."""
    assert spoken(seconds) == text


@pytest.mark.parametrize("text", [text for seconds, text in SPOKEN if seconds > 0])
def test_a_duration_can_be_typed_again(text: str) -> None:
    """In the notation of --ttl."""
    assert parse_ttl(text) is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("get", "agent:a", "k", "--token-file", "nope"), "--token-file must be left out"),
        (("hooks", "history", "--point", "x"), "--point must be a HookPoint"),
        (("hooks", "history", "--point", "x"), "(docs/hooks/README.md lists them)"),
        (("events", "publish", "job..x", "1"), "got 'job..x'\n"),
        (("ls", "agent:*"), "(one scope is meant; scopes --prefix agent: lists all of a kind)"),
        (("watch", "agent:*"), "(one scope is meant; scopes --prefix agent: lists all of a kind)"),
        (("ls", "agents:x"), "custom:<id>, workflow:<id>/step:<name>, got 'agents:x'"),
    ],
    ids=lambda one: one if isinstance(one, str) else " ".join(one),
)
def test_errors_name_what_was_typed(
    run: Callable[..., Any], words: tuple[str, ...], said: str
) -> None:
    """The option, the value once, and what helps."""
    refused = run("--url", "memory://", *words)
    assert refused.code == Exit.USAGE
    assert said in refused.err
