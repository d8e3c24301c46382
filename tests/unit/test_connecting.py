"""What beginners meet when a call that opens something is used as if it had done so."""

from __future__ import annotations

import re
import socket
import sys
from typing import Any

import pytest

import llmspell_dist
from llmspell_dist import StoreUnavailableError, blocking, config

pytestmark = pytest.mark.unit


def test_a_client_that_was_not_awaited_says_so() -> None:
    """By the name of the call, where the attribute is asked for."""
    forgotten: Any = llmspell_dist.connect("memory://never")
    with pytest.raises(AttributeError, match=re.escape("connect() needs `await` or `async with`")):
        forgotten.state  # noqa: B018 - the mistake
    assert not hasattr(forgotten, "state")
    assert forgotten.call == "connect()"


async def test_with_instead_of_async_with_names_the_twin_without_an_event_loop() -> None:
    """Clients and leases alike; nothing is opened."""
    forgotten: Any = llmspell_dist.connect("memory://never")
    with pytest.raises(TypeError, match=r"connect\(\) needs .*llmspell_dist\.blocking"), forgotten:
        raise AssertionError("entered")
    async with llmspell_dist.connect("memory://with") as spell:
        lease: Any = spell.leases.acquire("agent:a")
        with pytest.raises(TypeError, match=r"acquire\(\) needs .*blocking"), lease:
            raise AssertionError("entered")
        with pytest.raises(AttributeError, match=r"acquire\(\) needs"):
            lease.state  # noqa: B018 - the mistake


@pytest.mark.parametrize("surface", ["async", "blocking"])
async def test_who_names_no_server_learns_which_was_tried_and_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch, surface: str
) -> None:
    """As a note of the error; not where a URL was given, by argument or environment."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"

        async def notes(given: str | None) -> list[str]:
            options = llmspell_dist.Options(retry_budget=0.001)
            try:
                if surface == "async":
                    await llmspell_dist.connect(given, options=options)
                else:
                    blocking.connect(given, options=options)
            except StoreUnavailableError as error:
                return getattr(error, "__notes__", [])
            raise AssertionError("somebody is there")

        monkeypatch.delenv(config.URL_VARIABLE, raising=False)
        for module in (config, sys.modules["llmspell_dist.assembly"]):
            if hasattr(module, "DEFAULT_URL"):
                monkeypatch.setattr(module, "DEFAULT_URL", url)
        (said,) = await notes(None)
        assert "LLMSPELL_URL" in said
        assert "embedded://" in said
        assert await notes(url) == []
        monkeypatch.setenv(config.URL_VARIABLE, url)
        assert await notes(None) == []


def test_an_address_without_a_scheme_shows_how_one_is_written() -> None:
    """Sidecars' schemes are named too; what was given is not shown, for it may be a secret."""
    with pytest.raises(llmspell_dist.errors.InvalidURLError) as caught:
        blocking.connect("localhost:6379")
    assert "redis://localhost:6379" in str(caught.value)
    assert "http+unix://" in str(caught.value)


async def test_what_a_call_returned_is_entered_by_one_block_at_a_time() -> None:
    """A second one would close what belongs to the first; afterwards it may be entered again."""
    opening = llmspell_dist.connect("memory://twice")
    async with opening as first:
        with pytest.raises(RuntimeError, match=r"connect\(\) is entered already"):
            await opening.__aenter__()
        await first.state.set("agent:a", "k", 1)
    async with opening as second:
        assert second is not first
        lease = second.leases.acquire("agent:a")
        async with lease:
            with pytest.raises(RuntimeError, match=r"acquire\(\) is entered already"):
                await lease.__aenter__()
