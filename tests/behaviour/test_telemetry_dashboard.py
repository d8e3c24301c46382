"""Dashboard and alerts ask for what the code emits, and all that it emits is in the table."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from fix_backup_store import Unread
from fix_telemetry import Samples, prometheus_names, scraped, total

from llmspell_dist import ConflictError, NearCache, Options, Spell, connect
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.hooks import BreakerConfig
from llmspell_dist.telemetry import (
    METRICS,
    Inspector,
    Running,
    TelemetrySettings,
    inspecting,
    start_telemetry,
)

pytestmark = pytest.mark.integration

MONITORING = Path(__file__).resolve().parents[2] / "k8s" / "components" / "monitoring"
OF_THE_SCRAPE = {"instance", "job", "le"}
"""Labels that Prometheus adds, or that make a histogram."""
DECADES_S = 20 * 365 * 86_400
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "bool", "and", "or"}
NAME = re.compile(r"\b([a-z][a-z0-9_]*(?:_[a-z0-9]+)+)\b(?!\s*\()")


@pytest.fixture
def running() -> Iterator[Running]:
    """Telemetry that is scraped."""
    running = start_telemetry(TelemetrySettings())
    yield running
    running.shutdown()


async def everything_done(running: Running, spell: Spell, folder: Path) -> Samples:
    """Do whatever is counted, and return what a scrape gives meanwhile."""
    state = spell.state
    await asyncio.gather(*[state.set("agent:a", f"k{n}", n) for n in range(10)])
    with pytest.raises(ConflictError):
        await state.compare_and_set("agent:a", "k1", 0, expected=None)
    await state.get("agent:a", "k1")
    spell.hooks.register(
        "BeforeStateWrite", lambda _: None, name="quiet", breaker=BreakerConfig(failure_threshold=1)
    )
    await state.set("agent:a", "k1", 2)
    stop = asyncio.Event()
    async with spell.events.subscribe("t.*", durable="q"):
        pass
    await spell.events.publish("t.x")
    await spell.events.consume("q", "t.*", lambda _: stop.set(), stop=stop)
    http = running.telemetry.http()
    http.ended(http.started("GET"), "GET", "/v1/state/{scope}/{key}", 200)
    http.ended(http.started("GET"), "GET", "/v1/state/{scope}/{key}", 503)
    http.streams(1)
    http.unauthenticated()
    async with spell.backups.to(f"file://{folder}") as store:
        await store.create(keep_log=True)
        await store.archive(interval=timedelta(seconds=1)).once()
        Inspector(running.telemetry, spell)._failed("backups", OSError("gone"))
        async with (
            spell.leases.acquire("agent:a"),
            inspecting(running.telemetry, spell, [store], every=60),
        ):
            return scraped(running)


@pytest.fixture
async def samples(running: Running, url: str, namespace: str, tmp_path: Path) -> Samples:
    """What a scrape gives of a client that has done everything."""
    options = Options(telemetry=running.telemetry, near_cache=NearCache())
    async with connect(url, namespace=namespace, options=options) as spell:
        return await everything_done(running, spell, tmp_path / "backups")


def expressions() -> dict[str, str]:
    """Return every expression of dashboard and alerts, by where it stands."""
    found = {}
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
    for group in rules["spec"]["groups"]:
        for rule in group["rules"]:
            found[rule["alert"]] = rule["expr"]
    board = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    for variable in board["templating"]["list"]:
        if "definition" in variable:
            found[f"variable {variable['name']}"] = variable["definition"]
    return found


def asked_for(expression: str) -> tuple[set[str], set[str]]:
    """Return the names of series and of labels in an expression."""
    labels = set()
    for inside in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", expression):
        labels |= {one.strip() for one in inside.split(",")}
    for inside in re.findall(r"\{([^}]*)\}", expression):
        labels |= set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", inside))
    bare = re.sub(r"\b(?:by|without)\s*\([^)]*\)|\{[^}]*\}|\"[^\"]*\"|\[[^]]*\]", " ", expression)
    label = re.search(r"label_values\(\s*(\w+)\s*,\s*(\w+)\s*\)", expression)
    if label:
        labels.add(label[2])
        bare = label[1]
    return {name for name in NAME.findall(bare) if name not in WORDS}, labels


@pytest.mark.needs("info")
async def test_dashboard_and_alerts_ask_for_what_is_emitted(samples: Samples) -> None:
    """Every name is one of a scrape, and every label stands at one of its expression's series."""
    emitted: dict[str, set[str]] = {}
    for name, key in samples:
        emitted.setdefault(name, set()).update(label for label, _ in key)
    asked = set()
    for where, expression in expressions().items():
        names, labels = asked_for(expression)
        assert names, f"{where} asks for nothing"
        assert names <= emitted.keys(), f"{where}: {names - emitted.keys()} is never emitted"
        there = set().union(*[emitted[name] for name in names]) | OF_THE_SCRAPE
        assert labels <= there, f"{where}: no label {labels - there} at {names}"
        asked |= names
    shown = {base for metric in METRICS.values() for base in prometheus_names(metric)}
    for metric in METRICS.values():
        assert asked & set(prometheus_names(metric)), f"{metric.name} is on no panel"
    assert asked <= shown


@pytest.mark.needs("info")
async def test_all_that_is_emitted_is_in_the_table_and_all_of_the_table_is_emitted(
    samples: Samples,
) -> None:
    """With no label that the table does not have."""
    known = {
        name: {attribute.replace(".", "_") for attribute in metric.attributes} | {"le"}
        for metric in METRICS.values()
        for name in prometheus_names(metric)
    }
    emitted = {name for name, _ in samples} - {"target_info"}
    assert emitted == known.keys()
    for name, key in samples:
        if name in known:
            assert {label for label, _ in key} <= known[name], name


async def test_what_an_inspector_sees_is_as_it_is(
    running: Running, url: str, namespace: str, tmp_path: Path
) -> None:
    """Length of the log, queues, memory, ages; what never happened is as old as the epoch."""
    options = Options(telemetry=running.telemetry)
    async with connect(url, namespace=namespace, options=options) as spell:
        for number in range(7):
            await spell.state.set("agent:a", "k", number)
        async with spell.events.subscribe("t.*", durable="q"):
            pass
        await spell.events.publish("t.x")
        async with spell.backups.to(f"file://{tmp_path}/backups") as store:
            inspector = Inspector(running.telemetry, spell, [store])
            await inspector.look()
            first = scraped(running)
            assert total(first, "llmspell_log_length") == (await spell.log.stat()).entries
            assert total(first, "llmspell_log_cap") == 1_000_000
            assert total(first, "llmspell_event_lag", llmspell_subscription="q") == 1
            assert total(first, "llmspell_backup_age_seconds") > DECADES_S
            assert total(first, "llmspell_backup_proof_age_seconds") > DECADES_S
            await store.create(keep_log=True)
            await spell.events.remove("q")
            await inspector.look()
            second = scraped(running)
            assert 0 <= total(second, "llmspell_backup_age_seconds") < 60
            assert total(second, "llmspell_log_holds") == 1
            assert not any(name == "llmspell_event_lag" for name, _ in second)


async def test_an_inspector_that_sees_nothing_says_so(
    running: Running, url: str, namespace: str, tmp_path: Path
) -> None:
    """It counts its failures, and shows no age that nobody measured."""
    options = Options(telemetry=running.telemetry)
    async with connect(url, namespace=namespace, options=options) as spell:
        async with spell.backups.to(f"file://{tmp_path}/backups") as store:
            await store.create()

            async def gone() -> Any:
                raise OSError("the place is gone")

            inspector = Inspector(running.telemetry, spell, [store])
            await inspector.look()
            assert total(scraped(running), "llmspell_backup_age_seconds") >= 0
            store.newest = gone  # type: ignore[method-assign]
            await inspector.look()
        samples = scraped(running)
    assert total(samples, "llmspell_inspection_failures_total") == 1
    assert not any(name == "llmspell_backup_age_seconds" for name, _ in samples)


async def test_a_look_reads_the_newest_backup_and_no_older_one(
    running: Running, url: str, namespace: str, tmp_path: Path
) -> None:
    """However many there are; a damaged one is passed over."""
    read: list[str] = []

    def seen(name: str) -> bool:
        read.append(name)
        return False

    options = Options(telemetry=running.telemetry)
    async with connect(url, namespace=namespace, options=options) as spell:
        target = Unread(FolderTarget(tmp_path / "backups"), seen)
        async with spell.backups.to(target) as store:
            made = [await store.create() for _ in range(4)]
            layout = store._repository.layout
            target.put(layout.manifest(made[3].id), b"damaged")
            read.clear()
            await Inspector(running.telemetry, spell, [store]).look()
            assert read == [layout.manifest(made[number].id) for number in (3, 2)]
            newest = await store.newest()
        target.close()
    assert newest is not None
    assert newest.id == made[2].id
    assert 0 <= total(scraped(running), "llmspell_backup_age_seconds") < 60


async def test_a_proof_that_cannot_be_read_is_not_shown_as_never_made(
    running: Running, url: str, namespace: str, tmp_path: Path
) -> None:
    """The place fails: that is counted, and the age of the backups is shown all the same."""
    options = Options(telemetry=running.telemetry)
    async with connect(url, namespace=namespace, options=options) as spell:
        target = Unread(FolderTarget(tmp_path / "backups"), lambda name: "/drills/" in name)
        async with spell.backups.to(target) as store:
            await store.create()
            target.put(store._repository.layout.drill("d1"), b"{}")
            await Inspector(running.telemetry, spell, [store]).look()
        target.close()
    samples = scraped(running)
    assert total(samples, "llmspell_inspection_failures_total") == 1
    assert not any(name == "llmspell_backup_proof_age_seconds" for name, _ in samples)
    assert 0 <= total(samples, "llmspell_backup_age_seconds") < 60
