"""The archive that a sidecar ships: it ends when the sidecar does, and not before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmspell_dist.errors import StorePermissionError
from llmspell_dist.sidecar import backing
from llmspell_dist.sidecar.backing import begin_archive
from llmspell_dist.sidecar.settings import SidecarSettings

pytestmark = pytest.mark.unit


class FakeShipper:
    """Ends by an error as often as it is told, and follows then."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.runs = 0
        self.failed, self.following = asyncio.Event(), asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        self.runs += 1
        if self.runs <= self.failures:
            self.failed.set()
            raise StorePermissionError("redis:6379", "NOPERM: the rights are being changed")
        self.following.set()
        await stop.wait()


class FakeServices:
    """What `begin_archive` needs of a sidecar's services."""

    def __init__(self, shipper: FakeShipper) -> None:
        self.settings = SidecarSettings(backups="file:///x", archive=True)
        self.kept: dict[str, Any] = {"backups": self}
        self.ending: list[Any] = []
        self.archive = lambda: shipper

    async def end(self) -> None:
        """End what was begun, as a sidecar that stops does."""
        (end,) = self.ending
        await asyncio.wait_for(end(), 5)


async def test_shipping_that_ended_by_an_error_begins_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time it is logged, with when it does."""
    monkeypatch.setattr(backing, "_FIRST_WAIT_S", 0.001)
    shipper = FakeShipper(failures=3)
    services: Any = FakeServices(shipper)
    begin_archive(services)
    await asyncio.wait_for(shipper.following.wait(), 5)
    await services.end()
    assert shipper.runs == 4
    assert caplog.text.count("it begins again in") == 3


async def test_a_sidecar_that_stops_does_not_wait_for_shipping_to_begin_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However far off that is."""
    monkeypatch.setattr(backing, "_FIRST_WAIT_S", 3600)
    shipper = FakeShipper(failures=1)
    services: Any = FakeServices(shipper)
    begin_archive(services)
    await asyncio.wait_for(shipper.failed.wait(), 5)
    await services.end()
    assert shipper.runs == 1
