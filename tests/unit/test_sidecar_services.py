"""What stands behind the routes: services end one by one, whatever happens to the others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmspell_dist import connect
from llmspell_dist.sidecar.services import Services
from llmspell_dist.sidecar.settings import SidecarSettings
from llmspell_dist.testing import memory_url

pytestmark = pytest.mark.unit


@pytest.fixture
async def services() -> AsyncIterator[Services]:
    """Services that nobody asks: without rules of access, or bodies."""
    nothing: Any = None
    with memory_url() as url:
        async with connect(url) as spell:
            yield Services(spell, nothing, nothing, SidecarSettings())


async def test_a_service_that_fails_to_end_keeps_no_other_from_it(services: Services) -> None:
    """The last that was begun ends first, and what was raised is raised when all have ended."""
    ended: list[str] = []

    async def hand_over() -> None:
        ended.append("hand over")

    async def fails() -> None:
        ended.append("fails")
        raise RuntimeError("cannot end")

    async def closes() -> None:
        ended.append("closes")

    services.ending += [hand_over, fails, closes]
    with pytest.raises(RuntimeError, match="cannot end"):
        await services.end()
    assert ended == ["closes", "fails", "hand over"]


async def test_there_is_one_of_each_service(services: Services) -> None:
    """Made at the first call, for the services that it belongs to."""

    class Something:
        def __init__(self, owner: Services) -> None:
            self.owner = owner

    class Other(Something):
        pass

    found = services.one(Something)
    assert found.owner is services
    assert services.one(Something) is found
    assert type(services.one(Other)) is Other
