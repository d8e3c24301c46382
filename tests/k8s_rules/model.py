"""Manifests as the rules see them: workloads with their pods, and what selects them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

Doc = dict[str, Any]
Rule = Callable[["Manifests"], Iterable[str]]
"""What is wrong, in a sentence each; nothing if all is well."""

_TEMPLATE: Final[dict[str, tuple[str, ...]]] = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}


@dataclass(frozen=True)
class Container:
    """A container, and what kind of one it is in its pod."""

    spec: Doc
    init: bool

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def sidecar(self) -> bool:
        """Whether it is a native sidecar: an init container that goes on running."""
        return self.init and self.spec.get("restartPolicy") == "Always"

    @property
    def image(self) -> str:
        """The image's name without registry, tag and digest."""
        return re.split(r"[@:]", str(self.spec["image"]).rpartition("/")[2])[0]

    @property
    def ours(self) -> bool:
        """Whether it runs the command line of this project."""
        return self.image == "llmspell-dist"

    @property
    def env(self) -> dict[str, Doc]:
        return {one["name"]: one for one in self.spec.get("env", ())}

    def value(self, name: str) -> str | None:
        """Return what stands literally in the environment."""
        found = self.env.get(name, {}).get("value")
        return None if found is None else str(found)

    @property
    def ports(self) -> dict[str, int]:
        return {one["name"]: one["containerPort"] for one in self.spec.get("ports", ())}


@dataclass(frozen=True)
class Workload:
    """Something that makes pods."""

    doc: Doc

    @property
    def kind(self) -> str:
        return str(self.doc["kind"])

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.doc['metadata']['name']}"

    @property
    def namespace(self) -> str:
        return str(self.doc["metadata"].get("namespace", "default"))

    @property
    def template(self) -> Doc:
        found = self.doc
        for part in _TEMPLATE[self.kind]:
            found = found[part]
        return found

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.template.get("metadata", {}).get("labels", {}))

    @property
    def pod(self) -> Doc:
        return dict(self.template["spec"])

    @property
    def job(self) -> Doc | None:
        """The specification of the job, if it is one or makes some."""
        if self.kind == "CronJob":
            return dict(self.doc["spec"]["jobTemplate"]["spec"])
        return dict(self.doc["spec"]) if self.kind == "Job" else None

    @property
    def serves(self) -> bool:
        """Whether its pods run until somebody stops them."""
        return self.job is None

    @property
    def containers(self) -> list[Container]:
        pod = self.pod
        first = [Container(one, init=True) for one in pod.get("initContainers", ())]
        return first + [Container(one, init=False) for one in pod["containers"]]

    @property
    def grace(self) -> int:
        return int(self.pod.get("terminationGracePeriodSeconds", 30))


@dataclass(frozen=True)
class Manifests:
    """All documents of one overlay."""

    docs: list[Doc]

    def of(self, *kinds: str) -> Iterator[Doc]:
        return (one for one in self.docs if one["kind"] in kinds)

    def get(self, name: str) -> Doc:
        """Return the document that `Kind/name` names; a generated name's hash may be missing."""
        kind, _, wanted = name.partition("/")
        for one in self.of(kind):
            if re.fullmatch(re.escape(wanted) + "(-[a-z0-9]{10})?", one["metadata"]["name"]):
                return one
        raise KeyError(name)

    @property
    def workloads(self) -> list[Workload]:
        return [Workload(one) for one in self.of(*_TEMPLATE)]

    @cached_property
    def autoscaled(self) -> dict[str, Doc]:
        """Who is scaled, by `Kind/name`."""
        found = self.of("HorizontalPodAutoscaler")
        targets = [(one["spec"]["scaleTargetRef"], one) for one in found]
        return {f"{target['kind']}/{target['name']}": one for target, one in targets}

    def several(self, workload: Workload) -> bool:
        """Whether there may be more than one of its pods."""
        spec = workload.doc["spec"]
        many = spec.get("replicas", 1) > 1 or spec.get("parallelism", 1) > 1
        return many or workload.name in self.autoscaled


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector means these labels; an empty one means everything."""
    chosen = selector or {}
    for key, value in chosen.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for one in chosen.get("matchExpressions", ()):
        has, value = one["key"] in labels, labels.get(one["key"])
        fits = {
            "In": value in one.get("values", ()),
            "NotIn": value not in one.get("values", ()),
            "Exists": has,
            "DoesNotExist": not has,
        }
        if not fits[one["operator"]]:
            return False
    return True
