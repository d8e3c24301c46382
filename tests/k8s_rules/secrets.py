"""Rules for secrets and references: nothing secret is written down, nothing named is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from k8s_rules.model import Container, Manifests, Rule, Workload

GIVEN: Final[dict[str, set[str]]] = {
    "llmspell-redis": {"url", "password"},
    "llmspell-access": {"access.toml"},
    "llmspell-gateway-tls": {"tls.crt", "tls.key"},
    "llmspell-backup-keys": {"ring"},
    "llmspell-load": {"token"},
    **{
        f"llmspell-backup-{role}": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        for role in ("writer", "pruner", "reader", "archiver")
    },
}
"""Secrets and their keys that the user makes; docs/kubernetes lists them, which a test compares."""

_ROOT_CA: Final = "kube-root-ca.crt"
"""Kubernetes puts it into every namespace."""

_SECRET_NAME: Final = re.compile(
    r"PASSW|SECRET|TOKEN|CREDENTIAL|APIKEY|(ACCESS|PRIVATE|API|SIGNING)_KEY|KEY_RING|AUTH$|(^|_)URL$"
)
_HARMLESS: Final = re.compile(r"(s3|gs|file|https?)://[^@?]*", re.ASCII)
"""URLs that hold no user: a place, not a right."""
_IN_TEXT: Final = re.compile(
    r"://[^/\s$]*:[^/\s$]+@|-----BEGIN|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{10,}\."
    r"|(?i:requirepass|password|token|secret)[\s=:\"]+[^\s$\"]{6,}"
)


def secrets(manifests: Manifests) -> Iterator[str]:
    """Secrets come by reference: no literal, no Secret, none in a ConfigMap or argument."""
    for one in manifests.of("Secret"):
        yield f"Secret/{one['metadata']['name']} is written down"
    for one in manifests.of("ConfigMap"):
        # What shows measurements talks of tokens and holds none; it is JSON of the dashboard's own.
        if "grafana_dashboard" in one["metadata"].get("labels", {}):
            continue
        for name, text in one.get("data", {}).items():
            if _literal(name, text) or _IN_TEXT.search(text):
                yield f"ConfigMap/{one['metadata']['name']}: {name} holds a secret"
    for workload in manifests.workloads:
        for container in workload.containers:
            place = f"{workload.name}/{container.name}"
            for name in container.env:
                text = container.value(name)
                if text is not None and (_literal(name, text) or _IN_TEXT.search(text)):
                    yield f"{place}: {name} is a literal"
            words = [*container.spec.get("command", ()), *container.spec.get("args", ())]
            if any(_IN_TEXT.search(f"{one} {two}") for one, two in pairwise([*words, ""])):
                yield f"{place}: an argument holds a secret"


def _literal(name: str, text: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _HARMLESS.fullmatch(text)


def references(manifests: Manifests) -> Iterator[str]:
    """Every ConfigMap, Secret, claim, account and volume named is there, or is the user's."""
    accounts = {one["metadata"]["name"] for one in manifests.of("ServiceAccount")}
    maps = {one["metadata"]["name"]: set(one.get("data", ())) for one in manifests.of("ConfigMap")}
    claims = {one["metadata"]["name"] for one in manifests.of("PersistentVolumeClaim")}
    for one in manifests.workloads:
        account = one.pod.get("serviceAccountName")
        if account is not None and account not in accounts:
            yield f"{one.name}: no ServiceAccount {account}"
        for volume in one.pod.get("volumes", ()):
            yield from (f"{one.name}: {why}" for why in _volume(volume, maps, claims))
        for container in one.containers:
            place = f"{one.name}/{container.name}"
            yield from (f"{place}: {why}" for why in _environment(container, maps))
            yield from (f"{place}: {why}" for why in _mounts(one, container))


def _volume(volume: dict[str, Any], maps: dict[str, set[str]], claims: set[str]) -> Iterator[str]:
    secret = volume.get("secret", {}).get("secretName")
    if secret is not None and secret not in GIVEN:
        yield f"no Secret {secret}"
    sources = [volume, *volume.get("projected", {}).get("sources", ())]
    for config in (one.get("configMap", {}).get("name") for one in sources):
        if config is not None and config not in maps and config != _ROOT_CA:
            yield f"no ConfigMap {config}"
    claim = volume.get("persistentVolumeClaim", {}).get("claimName")
    if claim is not None and claim not in claims:
        yield f"no PersistentVolumeClaim {claim}"


def _environment(container: Container, maps: dict[str, set[str]]) -> Iterator[str]:
    for source in container.spec.get("envFrom", ()):
        if "secretRef" in source:
            yield "takes a whole Secret: say which keys"
        elif source["configMapRef"]["name"] not in maps:
            yield f"no ConfigMap {source['configMapRef']['name']}"
    for name, one in container.env.items():
        by = one.get("valueFrom", {})
        secret, config = by.get("secretKeyRef"), by.get("configMapKeyRef")
        if secret and secret["key"] not in GIVEN.get(secret["name"], ()):
            yield f"{name}: no Secret {secret['name']} with {secret['key']}"
        if config and config["key"] not in maps.get(config["name"], ()):
            yield f"{name}: no ConfigMap {config['name']} with {config['key']}"


def _mounts(one: Workload, container: Container) -> Iterator[str]:
    templates = one.doc["spec"].get("volumeClaimTemplates", ())
    volumes = {volume["name"] for volume in one.pod.get("volumes", ())}
    volumes |= {claim["metadata"]["name"] for claim in templates}
    mounts = container.spec.get("volumeMounts", ())
    for mount in mounts:
        if mount["name"] not in volumes:
            yield f"no volume {mount['name']}"
        if "subPath" in mount:
            yield f"{mount['name']} by subPath never changes in a running pod"
    for name in container.env:
        text = container.value(name) or ""
        folders = tuple(f"{mount['mountPath']}/" for mount in mounts)
        if text.startswith("/") and not text.startswith(folders):
            yield f"{name}: {text} is in no volume"


RULES: Final[dict[str, Rule]] = {"secrets": secrets, "references": references}
