"""Every behaviour test runs over the whole table of servers, and leaves the data model in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_state import Store


@pytest.fixture(autouse=True)
def nothing_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeping and trimming happen when a test asks for them."""
    monkeypatch.setattr("llmspell_dist.client.INTERVAL_S", 3600.0)


@pytest.fixture(autouse=True)
def consistent(nothing_in_the_background: None, store: Store) -> Iterator[None]:
    """Look at everything in Redis at the end of each test; see `Store.check`."""
    yield
    if store.intact:
        store.check()
