"""The native sidecar: one patch for every kind of workload, first in, last out, Jobs finish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from fix_k8s import K8S, ROOT, Render, documents, rendered
from k8s_rules.life import APP_STOPS_S, SPARE_S
from k8s_rules.model import Workload

pytestmark = pytest.mark.unit

FOLDER = K8S / "components" / "native-sidecar"
KINDS = {"Deployment/my-app", "Job/my-run", "CronJob/my-nightly"}
BY_LABEL = {"llmspell-sidecar": "native"}


def _read(file: Path) -> dict[str, Any]:
    (found,) = documents(file.read_text(encoding="utf-8"))
    return found


def _made(folder: Path, *workloads: dict[str, Any]) -> list[Workload]:
    """Render workloads of a test with the component."""
    (folder / "app.yaml").write_text(yaml.safe_dump_all(workloads))
    return [Workload(one) for one in rendered(folder, ["app.yaml"], ["native-sidecar"])]


def _workload(kind: str, labels: dict[str, str], **pod: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "app", "image": "app"}], **pod}
    return {
        "apiVersion": "batch/v1" if kind == "Job" else "apps/v1",
        "kind": kind,
        "metadata": {"name": f"my-{kind.lower()}", "labels": labels},
        "spec": {"template": {"metadata": {"labels": {"app": "mine"}}, "spec": spec}},
    }


def test_the_page_shows_the_patch_that_is_shipped() -> None:
    """What readers copy is what the tests have seen, to the letter."""
    page = (ROOT / "docs" / "kubernetes" / "README.md").read_text(encoding="utf-8")
    assert f"```yaml\n{(FOLDER / 'pod.yaml').read_text(encoding='utf-8')}```" in page


def test_the_patch_of_cron_jobs_is_the_same_pod() -> None:
    """Two files, because a CronJob has its pod elsewhere; one content."""
    pod = _read(FOLDER / "pod.yaml")["spec"]["template"]
    cron = _read(FOLDER / "cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]
    assert cron == pod


def test_every_kind_with_the_label_gets_it(overlay: Render) -> None:
    """A service, a job and a cron job; Valkey beside them does not."""
    found = {one.name: one for one in overlay("sidecar-example").workloads}
    assert {name for name, one in found.items() if one.containers[0].sidecar} == KINDS


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "Job"])
def test_it_comes_before_the_apps_own_init_containers(tmp_path: Path, kind: str) -> None:
    """Whatever they do, migrations for example, can use the state already."""
    mine = [{"name": "migrate", "image": "app"}]
    (one,) = _made(tmp_path, _workload(kind, BY_LABEL, initContainers=mine))
    assert [container.name for container in one.containers] == ["llmspell", "migrate", "app"]
    assert [container.sidecar for container in one.containers] == [True, False, False]


def test_an_app_without_the_label_stays_as_it_is(tmp_path: Path) -> None:
    """The component can be given to a whole overlay."""
    bare = _workload("Deployment", {})
    (one,) = _made(tmp_path, bare)
    assert one.doc == bare


def test_what_the_app_has_stays(tmp_path: Path) -> None:
    """Its labels, containers and volumes; only the time to stop is replaced."""
    volumes = [{"name": "mine", "emptyDir": {}}]
    (one,) = _made(
        tmp_path,
        _workload("Deployment", BY_LABEL, volumes=volumes, terminationGracePeriodSeconds=10),
    )
    assert one.labels["app"] == "mine"
    assert {volume["name"] for volume in one.pod["volumes"]} == {"mine", "llmspell-tmp"}
    assert one.pod["containers"] == [{"name": "app", "image": "app"}]
    drain = int(one.containers[0].value("LLMSPELL_SIDECAR_DRAIN") or 0)
    assert one.grace >= APP_STOPS_S + drain + SPARE_S > 10


def test_traces_are_added_to_whatever_has_it(tmp_path: Path) -> None:
    """Behind it, a component adds the variables of OpenTelemetry, and takes none away."""
    (tmp_path / "app.yaml").write_text(yaml.safe_dump(_workload("Deployment", BY_LABEL)))
    made = rendered(tmp_path, ["app.yaml"], ["native-sidecar", "telemetry"])
    one = next(Workload(each) for each in made if each["kind"] == "Deployment")
    env = one.containers[0].env
    assert env["OTEL_EXPORTER_OTLP_ENDPOINT"]["valueFrom"]["configMapKeyRef"]
    assert env.keys() >= {"LLMSPELL_URL", "LLMSPELL_SIDECAR_BIND", "OTEL_TRACES_SAMPLER"}
    assert len(one.containers) == 2


def test_a_job_with_it_can_finish(overlay: Render) -> None:
    """Containers that a Job waits for must end; the sidecar is none of them.

    Kubernetes counts the containers of `containers` alone, and stops a sidecar when they are done.
    """
    for name in ("Job/my-run", "CronJob/my-nightly"):
        one = next(each for each in overlay("sidecar-example").workloads if each.name == name)
        waited_for = [each.name for each in one.containers if not each.init]
        assert waited_for == ["app"]
        assert one.pod["restartPolicy"] == "Never"
        assert one.containers[0].spec["restartPolicy"] == "Always"


def test_the_app_reaches_it_on_loopback_and_the_kubelet_from_outside(overlay: Render) -> None:
    """Data never leaves the pod; probes do not carry data."""
    one = next(each for each in overlay("sidecar-example").workloads if each.name in KINDS)
    sidecar = one.containers[0]
    assert sidecar.value("LLMSPELL_SIDECAR_BIND") == "127.0.0.1:8750"
    assert sidecar.ports == {"llmspell-health": 8751}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert sidecar.spec[probe]["httpGet"]["port"] == "llmspell-health"
