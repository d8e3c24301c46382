"""NetworkPolicies, evaluated: who may talk to whom, and whether anybody is left uncovered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final

from k8s_rules.model import Doc, Manifests, Rule, selects

SIDES: Final = {"Ingress": "from", "Egress": "to"}


@dataclass(frozen=True)
class Peer:
    """A pod, or with `address` somebody outside of the cluster."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    address: str = ""


DNS: Final = Peer(
    labels={"k8s-app": "kube-dns"},
    namespace="kube-system",
    namespace_labels={"kubernetes.io/metadata.name": "kube-system"},
)
CLIENT: Final = {"llmspell-redis-client": "true"}
FRIENDS: Final = [
    Peer(labels=CLIENT, namespace="my-agents"),
    Peer(labels=CLIENT | {"llmspell-sidecar": "native"}, namespace="my-agents"),
]
"""Pods that users bring, by the labels that docs/kubernetes tells them."""
PROMETHEUS: Final = Peer(
    labels={"app.kubernetes.io/name": "prometheus"},
    namespace="monitoring",
    namespace_labels={"kubernetes.io/metadata.name": "monitoring"},
)


def peers(manifests: Manifests) -> dict[str, Peer]:
    """Return the pods of every workload, by `Kind/name`."""
    found = {}
    for one in manifests.workloads:
        ports = {name: port for c in one.containers for name, port in c.ports.items()}
        about = {"kubernetes.io/metadata.name": one.namespace}
        found[one.name] = Peer(one.labels, one.namespace, about, ports)
    return found


@dataclass(frozen=True)
class _Packet:
    """One end's view of a packet: who sends or gets it, who is at the other end, to which port."""

    side: str
    one: Peer
    other: Peer
    port: int
    protocol: str

    @property
    def named(self) -> Mapping[str, int]:
        """The ports of whoever gets it."""
        return (self.one if self.side == "Ingress" else self.other).ports


def allowed(
    manifests: Manifests, source: Peer, target: Peer, port: int, *, protocol: str = "TCP"
) -> bool:
    """Whether a packet passes: out of the one and into the other."""
    policies = list(manifests.of("NetworkPolicy"))
    out = _Packet("Egress", source, target, port, protocol)
    into = _Packet("Ingress", target, source, port, protocol)
    return _passes(policies, out) and _passes(policies, into)


def _passes(policies: Sequence[Doc], packet: _Packet) -> bool:
    about = [policy for policy in policies if _is_about(policy, packet.side, packet.one)]
    rules = [rule for policy in about for rule in policy["spec"].get(packet.side.lower(), ())]
    return not about or any(_matches(rule, packet) for rule in rules)


def _is_about(policy: Doc, side: str, one: Peer) -> bool:
    where = policy["metadata"].get("namespace", "default")
    return (
        side in policy["spec"]["policyTypes"]
        and where == one.namespace
        and selects(policy["spec"]["podSelector"], one.labels)
    )


def _matches(rule: Doc, packet: _Packet) -> bool:
    ports = rule.get("ports", [])
    if ports and not any(
        each.get("protocol", "TCP") == packet.protocol
        and packet.named.get(each["port"], each["port"]) == packet.port
        for each in ports
    ):
        return False
    ends = rule.get(SIDES[packet.side], [])
    return not ends or any(_is(end, packet.one, packet.other) for end in ends)


def _is(end: dict[str, Any], one: Peer, other: Peer) -> bool:
    block = end.get("ipBlock")
    if block is not None:
        if not other.address:
            return False
        address = ip_address(other.address)
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(each) for each in block.get("except", ())
        )
    if other.address or not selects(end.get("podSelector"), other.labels):
        return False
    if "namespaceSelector" in end:
        return selects(end["namespaceSelector"], other.namespace_labels)
    return other.namespace == one.namespace


def coverage(manifests: Manifests) -> Iterator[str]:
    """Every pod is closed both ways by some policy, and nobody may reach the node's own rights."""
    policies = list(manifests.of("NetworkPolicy"))
    metadata = Peer(address="169.254.169.254")
    for name, one in peers(manifests).items():
        for side in SIDES:
            if not any(_is_about(policy, side, one) for policy in policies):
                yield f"{name}: nothing limits its {side}"
        if allowed(manifests, one, metadata, 80) or allowed(manifests, one, metadata, 443):
            yield f"{name} reaches the cloud's metadata"
    for policy in policies:
        chosen = policy["spec"]["podSelector"]
        somebody = [*peers(manifests).values(), *FRIENDS]
        if not any(selects(chosen, one.labels) for one in somebody):
            yield f"NetworkPolicy/{policy['metadata']['name']} is about nobody"


RULES: Final[dict[str, Rule]] = {"network": coverage}
