"""Rules for the Prometheus operator's kinds, of which Kubernetes itself has no schema.

The schemas are ours, of the fields that are used; an unknown field is a typing error that the API
server would drop silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import jsonschema
from k8s_rules.model import Manifests, Rule, selects
from k8s_rules.network import FRIENDS

KINDS: Final = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
_TEXT: Final[dict[str, Any]] = {"type": "string", "minLength": 1}
_DURATION: Final[dict[str, Any]] = {"type": "string", "pattern": r"^(\d+(ms|[smhdwy]))+$"}
_LABELS: Final[dict[str, Any]] = {
    "type": "object",
    "propertyNames": {"pattern": r"^[a-zA-Z_]\w*$"},
    "additionalProperties": {"type": "string"},
}
_SELECTOR: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
        "matchExpressions": {"type": "array"},
    },
    "additionalProperties": False,
    "minProperties": 1,
}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": item}


_ENDPOINT: Final = _object(
    ["port", "path"],
    port=_TEXT,
    path={"type": "string", "pattern": "^/"},
    scheme={"enum": ["http", "https"]},
    interval=_DURATION,
    scrapeTimeout=_DURATION,
    honorLabels={"type": "boolean"},
    relabelings={"type": "array"},
    metricRelabelings={"type": "array"},
)
_NAMESPACES: Final = _object(
    [], any={"type": "boolean"}, matchNames={"type": "array", "items": _TEXT}
)
_RULE: Final = _object(
    ["expr"],
    alert={"type": "string", "pattern": r"^[A-Za-z_]\w*$"},
    record={"type": "string", "pattern": r"^[a-zA-Z_:][\w:]*$"},
    expr={"type": ["string", "integer"]},
    labels=_LABELS,
    annotations=_LABELS,
    keep_firing_for=_DURATION,
    **{"for": _DURATION},
) | {"oneOf": [{"required": ["alert"]}, {"required": ["record"]}]}
_GROUP: Final = _object(
    ["name", "rules"], name=_TEXT, interval=_DURATION, labels=_LABELS, rules=_many(_RULE)
)
_SPECS: Final = {
    "ServiceMonitor": _object(
        ["selector", "endpoints"],
        selector=_SELECTOR,
        namespaceSelector=_NAMESPACES,
        endpoints=_many(_ENDPOINT),
        jobLabel=_TEXT,
        targetLabels={"type": "array", "items": _TEXT},
    ),
    "PodMonitor": _object(
        ["selector", "podMetricsEndpoints"],
        selector=_SELECTOR,
        namespaceSelector=_NAMESPACES,
        podMetricsEndpoints=_many(_ENDPOINT),
        jobLabel=_TEXT,
    ),
    "PrometheusRule": _object(["groups"], groups=_many(_GROUP)),
}
SCHEMAS: Final = {
    kind: {
        "type": "object",
        "properties": {
            "apiVersion": {"const": "monitoring.coreos.com/v1"},
            "kind": {"const": kind},
            "metadata": {"type": "object", "required": ["name"]},
            "spec": spec,
        },
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
    }
    for kind, spec in _SPECS.items()
}


def schema(manifests: Manifests) -> Iterator[str]:
    """The operator's kinds have the fields that they have, of the right type."""
    for one in manifests.of(*KINDS):
        validator = jsonschema.Draft202012Validator(SCHEMAS[one["kind"]])
        for error in validator.iter_errors(one):
            where = ".".join(map(str, error.path))
            yield f"{one['kind']}/{one['metadata']['name']}: {where}: {error.message}"


def scraped(manifests: Manifests) -> Iterator[str]:
    """A monitor leads to something that is there, at a port of the name that it asks for."""
    for one in manifests.of("ServiceMonitor"):
        chosen = one["spec"].get("selector")
        found = [s for s in manifests.of("Service") if selects(chosen, s["metadata"]["labels"])]
        ports = {port["name"] for service in found for port in service["spec"]["ports"]}
        for end in one["spec"].get("endpoints", ()):
            if end.get("port") not in ports:
                yield f"ServiceMonitor/{one['metadata']['name']}: no service has {end.get('port')}"
    workloads = manifests.workloads
    for one in manifests.of("PodMonitor"):
        chosen = one["spec"].get("selector")
        pods = [each for each in workloads if selects(chosen, each.labels)]
        if not pods and not any(selects(chosen, friend.labels) for friend in FRIENDS):
            yield f"PodMonitor/{one['metadata']['name']} is about nobody"
        ports = {name for each in pods for container in each.containers for name in container.ports}
        for end in one["spec"].get("podMetricsEndpoints", ()):
            if pods and end.get("port") not in ports:
                yield f"PodMonitor/{one['metadata']['name']}: no pod has {end.get('port')}"


RULES: Final[dict[str, Rule]] = {"operator schema": schema, "scraped": scraped}
