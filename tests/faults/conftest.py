"""Fault tests count every log entry, so nothing may happen in the background."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def nothing_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeping and trimming happen when a test asks for them."""
    monkeypatch.setattr("llmspell_dist.client.INTERVAL_S", 3600.0)
