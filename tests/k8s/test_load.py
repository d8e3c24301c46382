"""The load test's Jobs: options and variables that Locust has, and a short run, to its end."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fix_k8s import ROOT, Render
from fix_pods import Run
from k8s_rules.model import Container, Manifests, Workload

if importlib.util.find_spec("locust") is None:  # not imported: it would patch this process
    pytest.skip("needs the extra load", allow_module_level=True)

MASTER, WORKERS = "Job/llmspell-load-master", "Job/llmspell-load-workers"
# In a process of its own: Locust patches sockets and threads where it is imported.
_PARSED = """
import json, sys
import locust.argument_parser as locust
parser = locust.get_empty_argument_parser()
locust.setup_parser_arguments(parser)
found = parser.parse_args(sys.argv[1:])
named = [one.env_var for one in parser._actions if getattr(one, "env_var", None)]
print(json.dumps({"variables": named, "workers": found.expect_workers, "time": found.run_time}))
"""


def _container(manifests: Manifests, name: str) -> Container:
    (found,) = Workload(manifests.get(name)).containers
    return found


def _told(manifests: Manifests) -> dict[str, str]:
    data: dict[str, str] = manifests.get("ConfigMap/llmspell-load")["data"]
    return data


@pytest.mark.unit
@pytest.mark.parametrize("name", [MASTER, WORKERS])
def test_locust_has_the_options_and_the_variables(overlay: Render, name: str) -> None:
    """None is misspelt, and as many workers are expected as there are."""
    manifests = overlay("load")
    told = _told(manifests)
    run = subprocess.run(
        [sys.executable, "-c", _PARSED, *_container(manifests, name).spec["args"]],
        env={"PATH": os.defpath} | told,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert {one for one in told if one.startswith("LOCUST_")} <= set(found["variables"])
    workers = Workload(manifests.get(WORKERS)).doc["spec"]
    if name == MASTER:
        assert found["workers"] == workers["parallelism"] == workers["completions"]
    # It ends by LOCUST_RUN_TIME, long before Kubernetes ends it.
    assert found["time"] + 600 <= workers["activeDeadlineSeconds"]


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.needs("process")
@pytest.mark.one_server
def test_a_load_test_ends_by_itself_and_leaves_a_report(
    overlay: Render, run_container: Run, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Gateway, master and workers as the manifests have them; the users and the time are fewer."""
    manifests = overlay("load")
    gateway = run_container(manifests, "Deployment/llmspell-gateway")
    gateway.wait_started()
    port = str(free_port())
    told = _told(manifests) | {
        "LOCUST_HOST": f"http://127.0.0.1:{gateway.data}",
        "LOCUST_USERS": "4",
        "LOCUST_SPAWN_RATE": "4",
        "LOCUST_RUN_TIME": "3s",
        "LOCUST_MASTER_BIND_HOST": "127.0.0.1",
        "LOCUST_MASTER_BIND_PORT": port,
        "LOCUST_MASTER_NODE_PORT": port,
        "LLMSPELL_LOAD_TOKEN": gateway.token,
    }

    def start(name: str) -> subprocess.Popen[bytes]:
        words = [
            word.replace("=/report/", f"={tmp_path}/").replace("llmspell-load-master", "127.0.0.1")
            for word in _container(manifests, name).spec["args"]
        ]
        file = str(ROOT / "loadtests" / "locustfile.py")
        command = [sys.executable, "-m", "locust", "-f", file, *words]
        return subprocess.Popen(command, env=os.environ | told, cwd=tmp_path)

    processes = [start(MASTER), start(WORKERS), start(WORKERS)]
    try:
        assert [one.wait(90) for one in processes] == [0, 0, 0]
    finally:
        for one in processes:
            one.kill()
            one.wait()
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8").lower()
    assert (tmp_path / "load_stats.csv").read_text().count("\n") > 2
