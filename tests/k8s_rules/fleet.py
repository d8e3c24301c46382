"""Rules for what selects pods: selectors, services, disruption budgets, spread, autoscaling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from k8s_rules.model import Manifests, Rule, Workload, selects


def _ports(one: Workload) -> dict[str, int]:
    return {name: port for c in one.containers for name, port in c.ports.items()}


def selectors(manifests: Manifests) -> Iterator[str]:
    """Whatever selects pods selects some, and a service leads to a port that they have."""
    workloads = manifests.workloads
    for one in workloads:
        wanted = one.doc["spec"].get("selector")
        if wanted is not None and not selects(wanted, one.labels):
            yield f"{one.name} does not select its own pods"
        others = [
            other.name
            for other in workloads
            if wanted
            and other is not one
            and other.doc != one.doc
            and selects(wanted, other.labels)
        ]
        if others:
            yield f"{one.name} selects the pods of {', '.join(others)} too"
    for service in manifests.of("Service"):
        name = f"Service/{service['metadata']['name']}"
        chosen = {"matchLabels": service["spec"].get("selector", {})}
        found = [one for one in workloads if selects(chosen, one.labels)]
        if len(found) != 1:
            yield f"{name} leads to {len(found)} workloads"
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for one in found:
                if target not in _ports(one) and target not in _ports(one).values():
                    yield f"{name}: {one.name} has no port {target}"


def disruption(manifests: Manifests) -> Iterator[str]:
    """A drained node takes one pod of a kind at a time, and is never kept from it for ever."""
    covered: set[str] = set()
    for budget in manifests.of("PodDisruptionBudget"):
        name, spec = f"PodDisruptionBudget/{budget['metadata']['name']}", budget["spec"]
        found = [one for one in manifests.workloads if selects(spec["selector"], one.labels)]
        if len(found) != 1:
            yield f"{name} is about {len(found)} workloads"
        covered.update(one.name for one in found)
        if spec.get("maxUnavailable") != 1 or "minAvailable" in spec:
            yield f"{name} does not let exactly one go"
    for one in manifests.workloads:
        if one.serves and manifests.several(one) and one.name not in covered:
            yield f"{one.name} has no PodDisruptionBudget"


def spread(manifests: Manifests) -> Iterator[str]:
    """Several pods of a kind lie on several nodes, and the constraint is about themselves."""
    for one in manifests.workloads:
        found = one.pod.get("topologySpreadConstraints", ())
        keys = {each["topologyKey"] for each in found}
        if manifests.several(one) and "kubernetes.io/hostname" not in keys:
            yield f"{one.name}: all its pods may lie on one node"
        for each in found:
            if not each["labelSelector"].get("matchLabels") or not selects(
                each["labelSelector"], one.labels
            ):
                yield f"{one.name}: it spreads others over {each['topologyKey']}"


def autoscaling(manifests: Manifests) -> Iterator[str]:
    """An autoscaler scales something that is there, that says what it needs and not how many."""
    workloads = {one.name: one for one in manifests.workloads}
    for target, scaler in manifests.autoscaled.items():
        spec, one = scaler["spec"], workloads.get(target)
        name = f"HorizontalPodAutoscaler/{scaler['metadata']['name']}"
        if one is None:
            yield f"{name}: there is no {target}"
            continue
        if "replicas" in one.doc["spec"]:
            yield f"{target} sets replicas, which every apply would reset"
        if not 1 <= spec.get("minReplicas", 1) < spec["maxReplicas"]:
            yield f"{name}: from {spec.get('minReplicas')} to {spec['maxReplicas']}"
    for one in manifests.workloads:
        wanted = one.name not in manifests.autoscaled and one.kind in {"Deployment", "StatefulSet"}
        if wanted and "replicas" not in one.doc["spec"]:
            yield f"{one.name}: nobody says how many"


RULES: Final[dict[str, Rule]] = {
    "selectors": selectors,
    "disruption": disruption,
    "spread": spread,
    "autoscaling": autoscaling,
}
