"""Rules for the life of a pod: probes, the sidecar's order, the time to stop, jobs that end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from k8s_rules.model import Container, Manifests, Rule, Workload, selects

APP_STOPS_S: Final = 30
"""What an app has for itself before its sidecar is told to stop."""
SPARE_S: Final = 5
"""Beyond the drain: to close connections and end the interpreter."""
LEAVES_S: Final = 3
"""Until every node knows that a pod is no endpoint any more."""


def _runs_on(one: Workload, container: Container) -> bool:
    return container.sidecar or (one.serves and not container.init)


def probes(manifests: Manifests) -> Iterator[str]:
    """Alive does not depend on Redis, ready does; whatever runs on says both."""
    for one in manifests.workloads:
        for container in one.containers:
            if not _runs_on(one, container):
                continue
            place = f"{one.name}/{container.name}"
            live = container.spec.get("livenessProbe", {})
            ready = container.spec.get("readinessProbe", {})
            if "tcpSocket" not in live and _path(live) != "/livez":
                yield f"{place}: liveness asks for {_path(live) or 'nothing'}"
            if "exec" not in ready and _path(ready) != "/readyz":
                yield f"{place}: readiness asks for {_path(ready) or 'nothing'}"
            for probe in (live, ready):
                if "httpGet" in probe and probe["httpGet"]["port"] not in container.ports:
                    yield f"{place}: a probe asks a port that has no name"
            if container.ours or container.image == "valkey":
                yield from (f"{place}: {why}" for why in _starting(container))


def _path(probe: dict[str, Any]) -> str:
    return str(probe.get("httpGet", {}).get("path", ""))


def _starting(container: Container) -> Iterator[str]:
    start = container.spec.get("startupProbe")
    if start is None:
        yield "no startup probe"
    elif start.get("periodSeconds", 10) * start.get("failureThreshold", 3) < 30:
        yield "its startup probe gives up within 30 s"
    if container.ours:
        host, _, port = (container.value("LLMSPELL_SIDECAR_HEALTH") or "").rpartition(":")
        if container.ports.get("llmspell-health") != (int(port) if port else None):
            yield "its probes ask another port than LLMSPELL_SIDECAR_HEALTH"
        if host.startswith("127.") or host in {"localhost", "[::1]"}:
            yield "the kubelet cannot reach its health port"


def sidecar_order(manifests: Manifests) -> Iterator[str]:
    """The sidecar is the first init container, gates the app, and talks to it on loopback only."""
    for one in manifests.workloads:
        if one.labels.get("llmspell-sidecar") != "native":
            continue
        first = one.containers[0]
        if not (first.ours and first.sidecar):
            yield f"{one.name}: the first init container is no sidecar that runs on"
            continue
        if _path(first.spec.get("startupProbe", {})) != "/readyz":
            yield f"{one.name}: the app starts before the sidecar can serve"
        if not (first.value("LLMSPELL_SIDECAR_BIND") or "").startswith("127.0.0.1:"):
            yield f"{one.name}: the sidecar serves other pods too"


def shutdown(manifests: Manifests) -> Iterator[str]:
    """The time to stop holds what happens in it: preStop, drain, and the app before its sidecar."""
    services = [one["spec"]["selector"] for one in manifests.of("Service")]
    for one in manifests.workloads:
        served = any(selects({"matchLabels": chosen}, one.labels) for chosen in services)
        for container in one.containers:
            place = f"{one.name}/{container.name}"
            stop = container.spec.get("lifecycle", {}).get("preStop", {})
            if stop.keys() - {"sleep"}:
                yield f"{place}: preStop needs a program in the image"
            slept = int(stop.get("sleep", {}).get("seconds", 0))
            if "sidecar" in container.spec.get("args", ()) and container.ours:
                drain = container.value("LLMSPELL_SIDECAR_DRAIN")
                if drain is None:
                    yield f"{place}: LLMSPELL_SIDECAR_DRAIN is not said"
                    continue
                before = APP_STOPS_S if container.sidecar else slept
                if before + int(drain) + SPARE_S > one.grace:
                    yield f"{place}: {before} + {drain} + {SPARE_S} s do not fit into {one.grace} s"
                if served and not container.sidecar and slept < LEAVES_S:
                    yield f"{place}: it stops before the endpoints know"
            if container.image == "valkey":
                config = manifests.get("ConfigMap/llmspell-valkey")["data"].get("valkey.conf", "")
                found = re.search(r"^shutdown-timeout (\d+)$", config, re.MULTILINE)
                if not found or int(found[1]) + SPARE_S > one.grace:
                    yield f"{place}: shutdown-timeout does not fit into {one.grace} s"


def jobs(manifests: Manifests) -> Iterator[str]:
    """A job ends by itself, is not tried for ever, and never runs beside itself."""
    for one in manifests.workloads:
        job = one.job
        if job is None:
            continue
        for name in ("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"):
            if name not in job:
                yield f"{one.name}: {name} is not said"
        if one.pod.get("restartPolicy") != "Never":
            yield f"{one.name}: restarts inside a pod hide failures"
        if one.kind == "CronJob":
            spec = one.doc["spec"]
            if spec.get("concurrencyPolicy") != "Forbid":
                yield f"{one.name} may run beside itself"
            for name in (
                *("startingDeadlineSeconds", "timeZone"),
                *("successfulJobsHistoryLimit", "failedJobsHistoryLimit"),
            ):
                if name not in spec:
                    yield f"{one.name}: {name} is not said"
            if len(str(spec["schedule"]).split()) != 5:
                yield f"{one.name}: {spec['schedule']} is no schedule"


def storage(manifests: Manifests) -> Iterator[str]:
    """Data outlives its pod, and what there may be one of is never two while it is replaced."""
    for one in manifests.workloads:
        spec = one.doc["spec"]
        mounts = {m["name"] for c in one.containers for m in c.spec.get("volumeMounts", ())}
        if one.kind == "StatefulSet":
            kept = spec.get("persistentVolumeClaimRetentionPolicy", {})
            if kept.get("whenDeleted") != "Retain" or kept.get("whenScaled") != "Retain":
                yield f"{one.name}: its volumes go with it"
            claims = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())}
            if not claims or not claims <= mounts:
                yield f"{one.name}: no volume that stays"
        archives = any(c.value("LLMSPELL_SIDECAR_ARCHIVE") for c in one.containers)
        if archives and (spec.get("strategy") != {"type": "Recreate"} or spec.get("replicas") != 1):
            yield f"{one.name}: two may ship"


RULES: Final[dict[str, Rule]] = {
    "probes": probes,
    "sidecar order": sidecar_order,
    "shutdown": shutdown,
    "jobs": jobs,
    "storage": storage,
}
