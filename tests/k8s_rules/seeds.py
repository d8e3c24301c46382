"""Defects to be planted into good manifests, each with the rule that must catch it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

GONE: Final = object()
"""As a value: what stands there is removed."""
POD = "spec/template/spec"
FIRST = f"{POD}/containers/0"
SIDECAR = f"{POD}/initContainers/0"
CRON = "spec/jobTemplate/spec"
GATEWAY, ARCHIVE = "Deployment/llmspell-gateway", "Deployment/llmspell-archive"
VALKEY, DRILL = "StatefulSet/llmspell-valkey", "CronJob/llmspell-backup-drill"
APP, WORKERS = "Deployment/my-app", "Job/llmspell-load-workers"
HPA, PDB = "HorizontalPodAutoscaler/llmspell-gateway", "PodDisruptionBudget/llmspell-gateway"
CALLED = "app.kubernetes.io~1name"


class Seed(NamedTuple):
    """A defect: in which overlay, of which document, at which place, what stands there then."""

    rule: str
    overlay: str
    document: str
    path: str
    value: Any


def _env(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}


SEEDS: Final = [
    Seed("restricted", "dev", GATEWAY, f"{POD}/securityContext/runAsNonRoot", False),
    Seed("restricted", "dev", GATEWAY, f"{POD}/securityContext/runAsUser", 0),
    Seed("restricted", "dev", GATEWAY, f"{POD}/securityContext/seccompProfile", GONE),
    Seed("restricted", "dev", GATEWAY, f"{POD}/hostNetwork", True),
    Seed("restricted", "dev", VALKEY, f"{FIRST}/securityContext/allowPrivilegeEscalation", GONE),
    Seed("restricted", "dev", VALKEY, f"{FIRST}/securityContext/capabilities/drop/0", "NET_RAW"),
    Seed("restricted", "dev", VALKEY, f"{FIRST}/ports/0/hostPort", 6379),
    Seed("restricted", "dev", VALKEY, f"{POD}/volumes/0", {"name": "config", "hostPath": {}}),
    Seed("restricted", "sidecar-example", APP, f"{SIDECAR}/securityContext/privileged", True),
    Seed("restricted", "dev", "Namespace/llmspell-dev", "metadata/labels", {}),
    Seed("restricted", "dev", VALKEY, f"{FIRST}/securityContext/capabilities/add", ["SYS_ADMIN"]),
    Seed("restricted", "dev", VALKEY, f"{FIRST}/securityContext/procMount", "Unmasked"),
    Seed("read-only root", "dev", GATEWAY, f"{FIRST}/volumeMounts/tmp", GONE),
    Seed("read-only root", "dev", GATEWAY, f"{FIRST}/securityContext/readOnlyRootFilesystem", GONE),
    Seed("read-only root", "dev", GATEWAY, f"{POD}/volumes/0/emptyDir/sizeLimit", GONE),
    Seed("resources", "dev", GATEWAY, f"{FIRST}/resources/limits/memory", GONE),
    Seed("resources", "dev", GATEWAY, f"{FIRST}/resources/requests/cpu", "2"),
    Seed("resources", "dev", GATEWAY, f"{FIRST}/resources/requests/ephemeral-storage", GONE),
    Seed("resources", "dev", GATEWAY, f"{POD}/volumes/0/emptyDir/sizeLimit", "1Gi"),
    Seed("images", "dev", GATEWAY, f"{FIRST}/image", "llmspell-dist:latest"),
    Seed("images", "dev", GATEWAY, f"{FIRST}/image", "llmspell-dist"),
    Seed("tokens", "dev", GATEWAY, f"{POD}/automountServiceAccountToken", GONE),
    Seed("tokens", "dev", GATEWAY, f"{POD}/enableServiceLinks", GONE),
    Seed("tokens", "dev", "ServiceAccount/llmspell-gateway", "automountServiceAccountToken", True),
    Seed(
        *("tokens", "dev", GATEWAY, f"{POD}/volumes/+"),
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
    ),
    Seed("probes", "dev", GATEWAY, f"{FIRST}/livenessProbe/httpGet/path", "/readyz"),
    Seed("probes", "dev", GATEWAY, f"{FIRST}/livenessProbe", GONE),
    Seed("probes", "dev", GATEWAY, f"{FIRST}/readinessProbe/httpGet/path", "/livez"),
    Seed("probes", "dev", GATEWAY, f"{FIRST}/startupProbe", GONE),
    Seed("probes", "dev", GATEWAY, f"{FIRST}/startupProbe/failureThreshold", 3),
    Seed("probes", "dev", GATEWAY, f"{FIRST}/env/LLMSPELL_SIDECAR_HEALTH/value", "127.0.0.1:8751"),
    Seed("probes", "dev", GATEWAY, f"{FIRST}/env/LLMSPELL_SIDECAR_HEALTH/value", "0.0.0.0:9000"),
    Seed("probes", "dev", VALKEY, f"{FIRST}/livenessProbe", {"exec": {"command": ["ping"]}}),
    Seed("probes", "dev", GATEWAY, f"{FIRST}/readinessProbe/httpGet/port", 8751),
    Seed("sidecar order", "sidecar-example", APP, f"{SIDECAR}/restartPolicy", GONE),
    Seed("sidecar order", "sidecar-example", APP, f"{SIDECAR}/startupProbe/httpGet/path", "/livez"),
    Seed(
        "sidecar order",
        "sidecar-example",
        APP,
        f"{SIDECAR}/env/LLMSPELL_SIDECAR_BIND/value",
        "0.0.0.0:8750",
    ),
    Seed("shutdown", "dev", GATEWAY, f"{POD}/terminationGracePeriodSeconds", 25),
    Seed("shutdown", "dev", GATEWAY, f"{FIRST}/env/LLMSPELL_SIDECAR_DRAIN/value", "40"),
    Seed("shutdown", "dev", GATEWAY, f"{FIRST}/env/LLMSPELL_SIDECAR_DRAIN", GONE),
    Seed("shutdown", "dev", GATEWAY, f"{FIRST}/lifecycle", GONE),
    Seed("shutdown", "dev", GATEWAY, f"{FIRST}/lifecycle/preStop", {"exec": {"command": ["sh"]}}),
    Seed("shutdown", "sidecar-example", APP, f"{POD}/terminationGracePeriodSeconds", 50),
    Seed("shutdown", "dev", VALKEY, f"{POD}/terminationGracePeriodSeconds", 20),
    Seed("jobs", "production", DRILL, "spec/concurrencyPolicy", "Allow"),
    Seed("jobs", "production", DRILL, "spec/schedule", "weekly"),
    Seed("jobs", "production", DRILL, "spec/startingDeadlineSeconds", GONE),
    Seed("jobs", "production", DRILL, "spec/failedJobsHistoryLimit", GONE),
    Seed("jobs", "production", DRILL, f"{CRON}/activeDeadlineSeconds", GONE),
    Seed("jobs", "production", DRILL, f"{CRON}/template/spec/restartPolicy", "OnFailure"),
    Seed("jobs", "load", WORKERS, "spec/activeDeadlineSeconds", GONE),
    Seed(
        "storage", "dev", VALKEY, "spec/persistentVolumeClaimRetentionPolicy/whenDeleted", "Delete"
    ),
    Seed("storage", "dev", VALKEY, f"{FIRST}/volumeMounts/data", GONE),
    Seed("storage", "production", ARCHIVE, "spec/strategy/type", "RollingUpdate"),
    Seed("selectors", "dev", "Service/llmspell-gateway", "spec/ports/0/targetPort", "https"),
    Seed("selectors", "dev", "Service/llmspell-valkey", f"spec/selector/{CALLED}", "valkey"),
    Seed("selectors", "dev", VALKEY, f"spec/selector/matchLabels/{CALLED}", "valkey"),
    Seed(
        "selectors",
        "dev",
        VALKEY,
        "spec/selector/matchLabels",
        {"app.kubernetes.io/name": "llmspell"},
    ),
    Seed("disruption", "dev", PDB, "spec/maxUnavailable", 0),
    Seed("disruption", "dev", PDB, "spec/selector/matchLabels", {"app": "gateway"}),
    Seed("spread", "dev", GATEWAY, f"{POD}/topologySpreadConstraints", GONE),
    Seed(
        *("spread", "dev", GATEWAY, f"{POD}/topologySpreadConstraints/0/labelSelector"),
        {"matchLabels": {"app": "gateway"}},
    ),
    Seed("autoscaling", "dev", GATEWAY, "spec/replicas", 2),
    Seed("autoscaling", "dev", HPA, "spec/scaleTargetRef/name", "gateway"),
    Seed("autoscaling", "dev", HPA, "spec/maxReplicas", 1),
    Seed("autoscaling", "sidecar-example", "Deployment/my-app", "spec/replicas", GONE),
    Seed(
        "network", "sidecar-example", "NetworkPolicy/default-deny", "spec/policyTypes", ["Egress"]
    ),
    Seed(
        *("network", "production", "NetworkPolicy/llmspell-backup"),
        *("spec/egress/1/to/0/ipBlock/except", GONE),
    ),
    Seed(
        *("network", "dev", "NetworkPolicy/llmspell-redis-clients"),
        *("spec/podSelector/matchLabels", {"redis-client": "true"}),
    ),
    Seed(
        "secrets",
        "dev",
        GATEWAY,
        f"{FIRST}/env/LLMSPELL_URL",
        _env("LLMSPELL_URL", "redis://:hunter22@x"),
    ),
    Seed(
        "secrets",
        "production",
        DRILL,
        f"{CRON}/template/spec/containers/0/env/+",
        _env("AWS_SECRET_ACCESS_KEY", "x"),
    ),
    Seed("secrets", "dev", VALKEY, f"{FIRST}/args/2", "correct-horse"),
    Seed(
        *("secrets", "dev", "ConfigMap/llmspell-valkey", "data"),
        {"valkey.conf": "shutdown-timeout 20\nrequirepass correct-horse\n"},
    ),
    Seed("secrets", "production", "ConfigMap/llmspell-dashboard", "kind", "Secret"),
    Seed(
        "references", "dev", GATEWAY, f"{FIRST}/env/LLMSPELL_URL/valueFrom/secretKeyRef/key", "uri"
    ),
    Seed("references", "dev", GATEWAY, f"{POD}/volumes/1/secret/secretName", "access"),
    Seed("references", "dev", GATEWAY, f"{FIRST}/volumeMounts/tmp/name", "temp"),
    Seed("references", "dev", VALKEY, f"{POD}/volumes/config/configMap/name", "valkey"),
    Seed("references", "production", ARCHIVE, f"{FIRST}/envFrom/0", {"secretRef": {"name": "all"}}),
    Seed("references", "production", ARCHIVE, f"{FIRST}/envFrom/0/configMapRef/name", "backup"),
    Seed(
        *("references", "production", ARCHIVE),
        *(f"{FIRST}/env/OTEL_TRACES_SAMPLER/valueFrom/configMapKeyRef/key", "SAMPLER"),
    ),
    Seed("references", "dev", GATEWAY, f"{POD}/serviceAccountName", "default-one"),
    Seed("references", "dev", GATEWAY, f"{FIRST}/volumeMounts/1/subPath", "access.toml"),
    Seed(
        "references",
        "dev",
        GATEWAY,
        f"{FIRST}/env/LLMSPELL_SIDECAR_ACCESS/value",
        "/etc/access.toml",
    ),
    Seed(
        "references",
        "load",
        "PersistentVolumeClaim/llmspell-load-report",
        "metadata/name",
        "report",
    ),
    Seed("commands", "production", DRILL, f"{CRON}/template/spec/containers/0/args/1", "drrill"),
    Seed("commands", "production", DRILL, f"{CRON}/template/spec/containers/0/args/+", "--fast"),
    Seed(
        "commands",
        "production",
        "CronJob/llmspell-backup-prune",
        f"{CRON}/template/spec/containers/0/args/3",
        "often",
    ),
    Seed("commands", "dev", GATEWAY, f"{FIRST}/command", ["sh"]),
    Seed("environment", "dev", GATEWAY, f"{FIRST}/env/+", _env("LLMSPELL_SIDECAR_BINDS", "x")),
    Seed("environment", "production", "ConfigMap/llmspell-backup", "data/LLMSPELL_BACKUPS", "x"),
    Seed(
        *("operator schema", "production", "ServiceMonitor/llmspell-gateway"),
        *("spec/endpoints/0/intervall", "30s"),
    ),
    Seed("operator schema", "production", "PrometheusRule/*", "spec/groups/0/rules/0/expr", GONE),
    Seed(
        *("scraped", "production", "PodMonitor/llmspell-sidecars"),
        *("spec/podMetricsEndpoints/0/port", "metrics"),
    ),
    Seed(
        *("scraped", "production", "ServiceMonitor/llmspell-gateway"),
        *("spec/selector/matchLabels", {"app": "gateway"}),
    ),
    Seed(
        *("scraped", "production", "PodMonitor/llmspell-sidecars"),
        *("spec/selector/matchExpressions/0/values", ["sidecar"]),
    ),
]
