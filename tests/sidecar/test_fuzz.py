"""Every route answers whatever comes as its own OpenAPI document says: no 5xx, no hang."""

from __future__ import annotations

import asyncio
from math import ceil
from typing import Any

import pytest
import requests
from fix_fuzz import Fuzzer
from fix_sidecar_process import SidecarProcess, StartProcess

pytestmark = [pytest.mark.needs("process"), pytest.mark.one_server, pytest.mark.security]

SMOKE = 3
"""Cases for each route."""
CAMPAIGN = 20_000
"""Cases for all of them."""
STATE: dict[str, Any] = {
    "note": "hi",
    "list": [1, 2, 3],
    "map": {"a": 1},
    "number": 7,
}


@pytest.fixture
def fuzzer(sidecar_process: StartProcess, url: str) -> Any:
    """A fuzzer of a sidecar of its own, where there is something of everything."""
    sidecar: SidecarProcess = asyncio.run(sidecar_process(url))
    document = requests.get(f"{sidecar.url}/openapi.json", timeout=10).json()
    for key, value in STATE.items():
        answer = requests.put(f"{sidecar.url}/v1/state/agent:alice/{key}", json=value, timeout=10)
        assert answer.status_code == 200
    found = Fuzzer(sidecar.url, document)
    yield found
    found.close()
    assert sidecar.running
    assert "Traceback" not in sidecar.log.read_text()


def campaign(fuzzer: Fuzzer, least: int) -> None:
    """Send at least so many cases, spread over all routes."""
    operations = list(fuzzer.operations())
    examples = ceil(least / len(operations))
    for number, operation in enumerate(operations):
        while fuzzer.cases < (number + 1) * examples:
            fuzzer.run(operation, examples, number=number)
    assert not fuzzer.wrong, "\n\n".join(f"{name}: {what}" for name, what in fuzzer.wrong.items())
    assert fuzzer.cases >= least
    assert {200, 400} <= fuzzer.statuses.keys()


def test_every_route_answers_as_its_document_says(fuzzer: Fuzzer) -> None:
    """A few cases of each, the same at every run."""
    campaign(fuzzer, SMOKE * len(list(fuzzer.operations())))


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_twenty_thousand_cases_find_nothing(fuzzer: Fuzzer) -> None:
    """No 5xx, no hang, no status, content type or schema that is not declared."""
    campaign(fuzzer, CAMPAIGN)
