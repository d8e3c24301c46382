"""What ``sidecar`` is told on the command line: wrong usage is found before anything is opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmspell_dist.cli import sidecar_command
from llmspell_dist.sidecar.settings import Limits, SidecarSettings

Run = Callable[..., Any]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[SidecarSettings]:
    """What it would have served, instead of serving it."""
    found: list[SidecarSettings] = []
    monkeypatch.setattr(
        sidecar_command, "_serve", lambda _settings, wanted, _format: found.append(wanted)
    )
    return found


def test_limits_are_changed_by_their_names(run: Run, served: list[SidecarSettings]) -> None:
    """The others stay; the last one of a name holds."""
    limits = ("body_bytes=1048576", "body_s=2.5", "client_requests=8", "client_requests=16")
    done = run("sidecar", *[word for one in limits for word in ("--limit", one)])
    assert done.code == 0, done.err
    assert served[0].limits == Limits(body_bytes=1_048_576, body_s=2.5, client_requests=16)


def test_limits_come_from_the_environment(
    run: Run, served: list[SidecarSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As containers are told; several by spaces."""
    monkeypatch.setenv("LLMSPELL_SIDECAR_LIMITS", "connections=500 client_streams=100")
    assert run("sidecar").code == 0
    assert served[0].limits == Limits(connections=500, client_streams=100)


@pytest.mark.parametrize(
    ("limit", "rule"),
    [
        ("body=1", "NAME one of body_bytes, body_s, header_bytes"),
        ("body_bytes", "must give body_bytes a whole number above 0"),
        ("body_bytes=1.5", "must give body_bytes a whole number above 0"),
        ("body_bytes=0", "must give body_bytes a whole number above 0"),
        ("body_s=-1", "must give body_s a number of seconds above 0"),
        ("body_s=nan", "must give body_s a number of seconds above 0"),
        ("body_s=inf", "must give body_s a number of seconds above 0"),
    ],
)
def test_a_limit_that_is_none_is_wrong_usage(
    run: Run, served: list[SidecarSettings], limit: str, rule: str
) -> None:
    """Exit code 2, with the rule."""
    done = run("sidecar", "--limit", limit)
    assert (done.code, served) == (2, [])
    assert "--limit" in done.err
    assert rule in done.err
