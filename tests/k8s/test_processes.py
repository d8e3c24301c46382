"""The containers' commands, really run: with the arguments and the environment of the manifests.

A pod's life in short: it starts, the probes find what they ask for, SIGTERM ends it in time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fix_k8s import Render
from fix_pods import Run
from k8s_rules.model import Workload

if TYPE_CHECKING:
    from fix_servers import Server

pytestmark = [pytest.mark.integration, pytest.mark.needs("process"), pytest.mark.one_server]


@pytest.mark.parametrize(
    ("name", "workload"),
    [
        ("dev", "Deployment/llmspell-gateway"),
        ("sidecar-example", "Deployment/my-app"),
        ("sidecar-example", "Job/my-run"),
    ],
)
def test_what_the_manifests_start_passes_its_probes_and_stops_in_time(
    overlay: Render, run_container: Run, name: str, workload: str
) -> None:
    """Started, alive, ready, measured; then SIGTERM, and exit code 0 within the time to stop."""
    manifests = overlay(name)
    running = run_container(manifests, workload)
    running.wait_started()
    assert running.probe("livenessProbe") == 200
    running.wait_ready()
    assert running.ask("/metrics") == 200
    assert running.ask("/livez", port=running.data) == 200
    assert running.ask("/v1/state/agent:a", port=running.health) == 404
    running.process.send_signal(signal.SIGTERM)
    grace = Workload(manifests.get(workload)).grace
    assert running.process.wait(grace) == 0


def test_it_runs_where_only_one_folder_can_be_written(
    overlay: Render, run_container: Run, read_only: tuple[list[str], Path]
) -> None:
    """A read-only root file system is no surprise: nothing is written but to the temporary one."""
    within, scratch = read_only
    manifests = overlay("sidecar-example")
    places = {"HOME": str(scratch), "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    running = run_container(manifests, "Deployment/my-app", within=within, **places)
    running.wait_started()
    running.wait_ready()
    assert running.ask("/v1/state/agent:a/mood", port=running.data) == 404
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0


def test_backups_take_the_environment_of_their_pods(
    overlay: Render, server: Server, namespace: str, tmp_path: Path
) -> None:
    """Made, proved and pruned by the CronJobs' arguments, with keys out of the environment."""
    manifests = overlay("production")
    codes = {}
    for job in ("create", "drill", "prune", "gc"):
        one = Workload(manifests.get(f"CronJob/llmspell-backup-{job}"))
        (container,) = one.containers
        environment = {key: text for key in container.env if (text := container.value(key))}
        environment |= {
            "LLMSPELL_URL": server.url,
            "LLMSPELL_NAMESPACE": namespace,
            "LLMSPELL_BACKUP_URL": (tmp_path / "backups").as_uri(),
            "LLMSPELL_BACKUP_KEY_RING": "v1:" + "11" * 32,
        }
        done = subprocess.run(
            [sys.executable, "-m", "llmspell_dist.cli", *container.spec["args"]],
            env=os.environ | environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        codes[job] = (done.returncode, done.stderr.decode() if done.returncode else "")
    assert codes == dict.fromkeys(codes, (0, ""))
