"""Who reaches whom under an overlay's NetworkPolicies: what must work does, the rest does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fix_k8s import Render
from k8s_rules.network import DNS, PROMETHEUS, Peer, allowed, peers

pytestmark = [pytest.mark.unit, pytest.mark.security]

REDIS, API, HEALTH, HTTPS, LOCUST = 6379, 8750, 8751, 443, 5557
INTERNET = Peer(address="198.51.100.7")
METADATA = Peer(address="169.254.169.254")
GATEWAY, VALKEY = "Deployment/llmspell-gateway", "StatefulSet/llmspell-valkey"
ARCHIVE, DRILL = "Deployment/llmspell-archive", "CronJob/llmspell-backup-drill"
CREATE, APP = "CronJob/llmspell-backup-create", "Deployment/my-app"
MASTER, WORKERS = "Job/llmspell-load-master", "Job/llmspell-load-workers"

OPEN = [
    ("dev", GATEWAY, VALKEY, REDIS),
    ("production", GATEWAY, VALKEY, REDIS),
    ("production", ARCHIVE, VALKEY, REDIS),
    ("production", DRILL, VALKEY, REDIS),
    ("sidecar-example", APP, VALKEY, REDIS),
    ("sidecar-example", "Job/my-run", VALKEY, REDIS),
    ("sidecar-example", "CronJob/my-nightly", VALKEY, REDIS),
    ("load", WORKERS, GATEWAY, API),
    ("load", WORKERS, VALKEY, REDIS),
    ("load", WORKERS, MASTER, LOCUST),
]
SHUT = [
    ("production", VALKEY, GATEWAY, API),
    ("production", GATEWAY, ARCHIVE, HEALTH),
    ("production", CREATE, GATEWAY, API),
    ("production", GATEWAY, VALKEY, 22),
    ("sidecar-example", VALKEY, APP, 8080),
    ("sidecar-example", APP, "Job/my-run", API),
    ("load", MASTER, VALKEY, REDIS),
    ("load", MASTER, GATEWAY, API),
    ("load", GATEWAY, WORKERS, LOCUST),
]


@pytest.mark.parametrize(("name", "source", "target", "port"), OPEN)
def test_what_has_to_talk_can(
    overlay: Render, name: str, source: str, target: str, port: int
) -> None:
    """Out of the one pod and into the other, and the names for it."""
    manifests = overlay(name)
    pods = peers(manifests)
    assert allowed(manifests, pods[source], pods[target], port)
    assert allowed(manifests, pods[source], DNS, 53, protocol="UDP")


@pytest.mark.parametrize(("name", "source", "target", "port"), SHUT)
def test_what_need_not_talk_cannot(
    overlay: Render, name: str, source: str, target: str, port: int
) -> None:
    """A pod that is taken over gets no further than it has to."""
    manifests = overlay(name)
    pods = peers(manifests)
    assert not allowed(manifests, pods[source], pods[target], port)


def test_only_whoever_says_so_reaches_valkey_and_the_gateway(overlay: Render) -> None:
    """By a label in this namespace; Valkey also from a namespace that somebody has let in."""
    manifests = overlay("production")
    pods = peers(manifests)
    stranger = Peer(labels={"app": "x"}, namespace="llmspell")
    client = replace(stranger, labels={"llmspell-redis-client": "true"})
    elsewhere = replace(client, namespace="other", namespace_labels={"a": "b"})
    invited = replace(elsewhere, namespace_labels={"llmspell-clients": "allowed"})
    assert not allowed(manifests, stranger, pods[VALKEY], REDIS)
    assert allowed(manifests, client, pods[VALKEY], REDIS)
    assert not allowed(manifests, elsewhere, pods[VALKEY], REDIS)
    assert allowed(manifests, invited, pods[VALKEY], REDIS)
    caller = replace(stranger, labels={"llmspell-gateway-client": "true"})
    assert not allowed(manifests, stranger, pods[GATEWAY], API)
    # The namespace denies by default: the caller's own way out is the caller's to open.
    others = replace(manifests, docs=[one for one in manifests.docs if not _denies(one)])
    assert allowed(others, caller, pods[GATEWAY], API)
    assert not allowed(others, stranger, pods[GATEWAY], API)


def _denies(document: dict[str, object]) -> bool:
    return document["metadata"]["name"] in {"default-deny", "allow-dns"}  # type: ignore[index]


def test_prometheus_reads_metrics_and_nothing_else(overlay: Render) -> None:
    """The health port, not the one with data."""
    manifests = overlay("production")
    pods = peers(manifests)
    for name in (GATEWAY, ARCHIVE):
        assert allowed(manifests, PROMETHEUS, pods[name], HEALTH), name
        assert not allowed(manifests, PROMETHEUS, pods[name], API), name
    assert not allowed(manifests, PROMETHEUS, pods[VALKEY], REDIS)
    impostor = replace(PROMETHEUS, namespace="x", namespace_labels={"name": "monitoring"})
    assert not allowed(manifests, impostor, pods[GATEWAY], HEALTH)


def test_only_backups_reach_the_object_store_and_nobody_the_nodes_rights(overlay: Render) -> None:
    """HTTPS for those that store; the cloud's metadata address for none."""
    manifests = overlay("production")
    reach = {
        name for name, one in peers(manifests).items() if allowed(manifests, one, INTERNET, HTTPS)
    }
    assert reach == {ARCHIVE} | {
        f"CronJob/llmspell-backup-{job}" for job in ("create", "prune", "gc", "drill")
    }
    for name, one in peers(manifests).items():
        assert not allowed(manifests, one, INTERNET, 80), name
        assert not allowed(manifests, one, METADATA, HTTPS), name


def test_traces_go_to_the_collector_only(overlay: Render) -> None:
    """In the namespace of monitoring, at the port of OTLP over HTTP."""
    manifests = overlay("production")
    collector = replace(PROMETHEUS, labels={"app.kubernetes.io/name": "otel-collector"})
    reach = {
        name for name, one in peers(manifests).items() if allowed(manifests, one, collector, 4318)
    }
    assert reach == {GATEWAY, ARCHIVE}


def test_where_nothing_is_denied_the_sidecar_closes_nothing(component: Render) -> None:
    """The component adds no policy of its own: what the app talks to stays open."""
    manifests = component("native-sidecar")
    left = [one for one in manifests.docs if one["kind"] != "NetworkPolicy"]
    added = {one["metadata"]["name"] for one in manifests.of("NetworkPolicy")}
    assert added == {"default-deny", "allow-dns"}  # from the component that it is tested with
    app = peers(replace(manifests, docs=left))[APP]
    assert allowed(replace(manifests, docs=left), app, INTERNET, 8443)
