"""What operators see and do over HTTP."""

from __future__ import annotations

import os
from pathlib import Path

from fix_grants import only
from fix_sidecar import Sidecar, StartSidecar

from llmspell_dist.doctor import Severity

KEY = "/v1/state/agent:alice/note"


async def test_the_sidecar_tells_how_it_was_started_without_secrets(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    """Its settings stand there; of what wraps keys only that there is something."""
    sidecar = await start_sidecar(backups=f"file://{tmp_path}", backup_keys="env:HUSH_HUSH")
    answer = await sidecar.ask("GET", "/v1/admin/sidecar")
    found = answer.json()
    assert found["namespace"] == sidecar.services.spell.namespace
    assert (found["settings"]["drain_s"], found["settings"]["backup_keys"]) == (2.0, True)
    assert str(tmp_path) in found["settings"]["backups"]
    assert "HUSH_HUSH" not in answer.text + repr(sidecar.services.settings)


async def test_the_namespace_and_its_log_are_counted(sidecar: Sidecar) -> None:
    """Entries, holds and how far the log is from its cap."""
    await sidecar.ask("PUT", KEY, 1)
    await sidecar.services.spell.log.hold("archiver")
    found = (await sidecar.ask("GET", "/v1/admin/stat")).json()
    assert (found["scopes"], len(found["log"])) == (1, 1)
    assert found["log"][0]["entries"] == 1
    assert list(found["log"][0]["holds"]) == ["archiver"]
    assert (await sidecar.ask("DELETE", "/v1/admin/log-holds/archiver")).status_code == 204
    assert (await sidecar.ask("DELETE", "/v1/admin/log-holds/archiver")).status_code == 404


async def test_retention_is_set_and_kept(sidecar: Sidecar) -> None:
    """Housekeeping shortens the log to it."""
    for number in range(5):
        await sidecar.ask("PUT", KEY, number)
    wanted = {"max_age": None, "max_entries": 2, "cap_entries": 10}
    assert (await sidecar.ask("PUT", "/v1/admin/retention", wanted)).json() == wanted
    assert (await sidecar.ask("GET", "/v1/admin/retention")).json() == wanted
    done = (await sidecar.ask("POST", "/v1/admin/housekeeping")).json()
    log = (await sidecar.ask("GET", "/v1/admin/stat")).json()["log"][0]
    assert (log["entries"], log["of_cap"]) == (2, 0.2)
    assert done["trimmed"] in {0, 3}  # another process may have been quicker
    wrong = await sidecar.ask("PUT", "/v1/admin/retention", wanted | {"cap_entries": 1})
    assert (wrong.status_code, wrong.json()["facts"]["argument"]) == (400, "cap_entries")


async def test_the_doctor_looks_at_the_server(sidecar: Sidecar) -> None:
    """As ``llmspell-dist doctor --json`` does."""
    found = (await sidecar.ask("GET", "/v1/admin/doctor")).json()
    assert found["namespace"] == sidecar.services.spell.namespace
    assert found["worst"] in {one.value for one in Severity}
    assert {"check", "severity", "found", "advice"} == set(found["findings"][0])


async def test_connections_are_listed(sidecar: Sidecar) -> None:
    """This sidecar's own stand there by name."""
    found = (await sidecar.ask("GET", "/v1/admin/connections")).json()["connections"]
    assert any(str(os.getpid()) in one["name"] for one in found)


async def test_a_near_cache_that_is_off_says_so(sidecar: Sidecar) -> None:
    """And cannot be cleared."""
    assert (await sidecar.ask("GET", "/v1/admin/near-cache")).json() == {"on": False, "stats": None}
    assert (await sidecar.ask("DELETE", "/v1/admin/near-cache")).status_code == 400


async def test_only_who_may_administer_everything_is_served(start_sidecar: StartSidecar) -> None:
    """Rights on every scope are none here."""
    sidecar = await start_sidecar(only(("agent:*", "read write delete list admin"), ("*", "read")))
    for path in ("sidecar", "doctor", "stat", "connections", "retention", "near-cache"):
        assert (await sidecar.ask("GET", f"/v1/admin/{path}")).status_code == 403, path
    assert (await sidecar.ask("POST", "/v1/admin/housekeeping")).status_code == 403
