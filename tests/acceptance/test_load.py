"""The load tests as they are run: a smoke run of everything, and Locust alone as a pod has it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmspell_dist

pytestmark = pytest.mark.performance

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with the load tests and nothing else of the checkout: tox tests the wheel."""
    (tmp_path / "loadtests").symlink_to(ROOT / "loadtests")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def _run(
    folder: Path, *arguments: str, given: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    package = str(Path(llmspell_dist.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": package} | (given or {}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_smoke_run_loads_sidecar_and_library_and_judges_both(folder: Path) -> None:
    """All criteria that do not judge speed hold; reports, CSV, figures and plots are written."""
    done = _run(folder, "loadtests", "--quick", "--out", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    out = folder / "out"
    content = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert content["holds"] is True
    assert [load["target"] for load in content["loads"]] == ["sidecar", "library"]
    for load in content["loads"]:
        assert load["requests"] > 100
        assert load["compared"] > 10
        done_steps = {name for stage in load["stages"] for name in stage["names"]}
        assert {"append message", "close turn", "count under lease", "delivery"} <= done_steps
        with (out / load["name"] / "locust_stats.csv").open(encoding="utf-8") as file:
            rows = {row["Name"]: int(row["Request Count"]) for row in csv.DictReader(file)}
        # Locust writes the file once a second: its last lines are of a moment before the end.
        assert 0.5 * load["requests"] < rows["Aggregated"] <= load["requests"]
        report = (out / load["name"] / "locust.html").read_text(encoding="utf-8")
        assert "append message" in report
    assert "no lost update" in (out / "report.html").read_text(encoding="utf-8")
    assert len([*(out / "plots").glob("load-mixed-*.svg")]) == 3
    with (out / "samples.csv").open(encoding="utf-8") as file:
        sampled = {row["process"] for row in csv.DictReader(file)}
    assert {"sidecar", "server", "locust", "library", "machine"} <= sampled


def test_locust_alone_is_told_by_its_environment_and_fails_without_a_token(folder: Path) -> None:
    """As in a pod: host, users, time, mix and token are variables; a wrong token is an error."""
    from llmspell_dist.sidecar.auth.minting import new_token
    from loadtests.rig import running_rig

    token = new_token()
    access = folder / "access.toml"
    access.write_text(
        f'[[token]]\nname = "load"\nsha256 = "{token.sha256}"\n'
        'grants = [{ scopes = ["*"], verbs = ["*"] }]\n',
        encoding="utf-8",
    )
    with running_rig(folder / "sidecar.log", "--access", str(access)) as rig:
        codes = []
        for secret in (token.secret, new_token().secret):
            given = {
                "LOCUST_HOST": rig.http,
                "LOCUST_USERS": "16",
                "LOCUST_SPAWN_RATE": "16",
                "LOCUST_RUN_TIME": "3s",
                "LLMSPELL_LOAD_MIX": "mixed",
                "LLMSPELL_TOKEN": secret,
            }
            locustfile = str(folder / "loadtests" / "locustfile.py")
            arguments = ("-f", locustfile, "--headless", "--only-summary", "--csv", "alone")
            done = _run(folder, "locust", *arguments, given=given)
            assert secret not in done.stdout + done.stderr
            codes.append(done.returncode)
            with (folder / "alone_stats.csv").open(encoding="utf-8") as file:
                rows = {row["Name"]: int(row["Failure Count"]) for row in csv.DictReader(file)}
            assert len(rows) > 5, done.stdout + done.stderr
            assert (rows["Aggregated"] > 0) is (secret != token.secret)
    assert codes == [0, 1]
