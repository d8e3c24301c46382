"""Rules for pods: Pod Security `restricted`, a read-only root, limits, images, tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from k8s_rules.model import Container, Manifests, Rule, Workload

_VOLUMES: Final = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}
_RESOURCES: Final = ("cpu", "memory", "ephemeral-storage")


def restricted(manifests: Manifests) -> Iterator[str]:
    """Pod Security Standards, level restricted, as the API server would enforce it."""
    for one in manifests.workloads:
        pod = one.pod
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(name):
                yield f"{one.name}: {name}"
        for volume in pod.get("volumes", ()):
            if not volume.keys() - {"name"} <= _VOLUMES:
                yield f"{one.name}: volume {volume['name']} is of a kind that is refused"
        whole = pod.get("securityContext", {})
        for container in one.containers:
            yield from (f"{one.name}/{container.name}: {why}" for why in _context(container, whole))
    for namespace in manifests.of("Namespace"):
        labels = namespace["metadata"].get("labels", {})
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"Namespace/{namespace['metadata']['name']} does not enforce restricted"


def _context(container: Container, pod: dict[str, Any]) -> Iterator[str]:
    own: dict[str, Any] = container.spec.get("securityContext", {})
    both = pod | own
    if both.get("runAsNonRoot") is not True or both.get("runAsUser", 1) == 0:
        yield "may run as root"
    if both.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "no seccompProfile"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "may gain privileges"
    capabilities = own.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"]:
        yield "keeps capabilities"
    if not set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"}:
        yield "adds capabilities"
    if any("hostPort" in port for port in container.spec.get("ports", ())):
        yield "takes a port of the node"
    if own.get("procMount", "Default") != "Default":
        yield "sees more of /proc"


def read_only_root(manifests: Manifests) -> Iterator[str]:
    """Nothing is written but to volumes, and what is temporary has a size."""
    for one in manifests.workloads:
        for container in one.containers:
            if container.spec.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{one.name}/{container.name}: the root file system can be written"
            mounts = {mount["mountPath"] for mount in container.spec.get("volumeMounts", ())}
            if container.ours and "/tmp" not in mounts:
                yield f"{one.name}/{container.name}: no /tmp"
        for volume in one.pod.get("volumes", ()):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{one.name}: emptyDir {volume['name']} has no sizeLimit"


def quantity(text: str | float) -> float:
    """Return a Kubernetes quantity as a number."""
    found = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi|Ti|k|M|G|T)?", str(text))
    assert found, text
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    units |= {f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGT")}
    return float(found[1]) * units.get(found[2] or "", 1.0)


def resources(manifests: Manifests) -> Iterator[str]:
    """Everybody says what it needs and what it gets at most, of CPU, memory and disk."""
    for one in manifests.workloads:
        for container in one.containers:
            found = container.spec.get("resources", {})
            requests, limits = found.get("requests", {}), found.get("limits", {})
            for what in _RESOURCES:
                place = f"{one.name}/{container.name}: {what}"
                if what not in requests or what not in limits:
                    yield f"{place} has no request or no limit"
                elif quantity(requests[what]) > quantity(limits[what]):
                    yield f"{place}: the request is above the limit"
        yield from _sizes(one)


def _sizes(one: Workload) -> Iterator[str]:
    limits = [
        quantity(container.spec.get("resources", {}).get("limits", {}).get(_RESOURCES[2], 0))
        for container in one.containers
    ]
    temporary = [
        quantity(volume["emptyDir"]["sizeLimit"])
        for volume in one.pod.get("volumes", ())
        if volume.get("emptyDir", {}).get("sizeLimit")
    ]
    if temporary and sum(temporary) > sum(limits) > 0:
        yield f"{one.name}: its temporary volumes may be larger than its limit of disk"


def images(manifests: Manifests) -> Iterator[str]:
    """Every image is named by digest: no tag moves under a running cluster."""
    for one in manifests.workloads:
        for container in one.containers:
            if not re.fullmatch(
                r"[^@\s:]+(:\d+/[^@:\s]+)?@sha256:[0-9a-f]{64}", container.spec["image"]
            ):
                yield f"{one.name}/{container.name}: {container.spec['image']} is by no digest"


def tokens(manifests: Manifests) -> Iterator[str]:
    """No pod gets the API server's token; one that is projected is for one audience, and short."""
    for account in manifests.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount/{account['metadata']['name']} mounts its token everywhere"
    for one in manifests.workloads:
        if one.pod.get("automountServiceAccountToken") is not False:
            yield f"{one.name} mounts the API server's token"
        if one.pod.get("enableServiceLinks") is not False:
            yield f"{one.name} gets the addresses of all services into its environment"
        for volume in one.pod.get("volumes", ()):
            for source in volume.get("projected", {}).get("sources", ()):
                token = source.get("serviceAccountToken")
                if token is not None and not (
                    token.get("audience") and token.get("expirationSeconds", 3600) <= 3600
                ):
                    yield f"{one.name}: the token in {volume['name']} is not bound to an audience"


RULES: Final[dict[str, Rule]] = {
    "restricted": restricted,
    "read-only root": read_only_root,
    "resources": resources,
    "images": images,
    "tokens": tokens,
}
