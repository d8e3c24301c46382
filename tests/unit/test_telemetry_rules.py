"""Alert rules are ones that Prometheus takes, and fire when they should and only then."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.unit

ALERTS = Path(__file__).resolve().parents[2] / "k8s/components/monitoring/alerts.yaml"
OWN = 'llmspell_namespace="n"'
BACKUP = f'{{{OWN},llmspell_backup_place="p"}}'
FAST = f'{{{OWN},llmspell_lane="fast",instance="i"}}'
HOOK = f'{{{OWN},llmspell_hook_name="h",llmspell_hook_point="p",instance="i"}}'
QUEUE = f'{{{OWN},llmspell_subscription="q"}}'
DURATION = "db_client_operation_duration_seconds"
REQUEST = "http_server_request_duration_seconds_count"

FIRES: dict[str, dict[str, str]] = {
    "LlmspellStoreOutOfReach": {f"llmspell_lane_connected{FAST}": "0x60"},
    "LlmspellErrors": {
        f'{DURATION}_count{{{OWN},error_type=""}}': "0+100x60",
        f'{DURATION}_count{{{OWN},error_type="STORE_TIMEOUT"}}': "0+10x60",
    },
    "LlmspellSlow": {
        f'{DURATION}_bucket{{{OWN},db_operation_name="commit",le="0.1"}}': "0+1x60",
        f'{DURATION}_bucket{{{OWN},db_operation_name="commit",le="0.5"}}': "0+100x60",
        f'{DURATION}_bucket{{{OWN},db_operation_name="commit",le="+Inf"}}': "0+100x60",
    },
    "LlmspellServerMemory": {
        f"llmspell_server_memory_used_bytes{{{OWN}}}": "95x60",
        f"llmspell_server_memory_limit_bytes{{{OWN}}}": "100x60",
    },
    "LlmspellLeasesLost": {f"llmspell_lease_lost_total{{{OWN}}}": "0x50 1x10"},
    "LlmspellLogHalfFull": {
        f'llmspell_log_length{{{OWN},llmspell_shard="0"}}': "51x60",
        f'llmspell_log_cap{{{OWN},llmspell_shard="0"}}': "100x60",
    },
    "LlmspellLogNearlyFull": {
        f'llmspell_log_length{{{OWN},llmspell_shard="0"}}': "81x60",
        f'llmspell_log_cap{{{OWN},llmspell_shard="0"}}': "100x60",
    },
    "LlmspellHoldBroken": {f'llmspell_log_holds_broken{{{OWN},llmspell_shard="0"}}': "1x60"},
    "LlmspellArchiveBehind": {f"llmspell_archive_lag_seconds{BACKUP}": "301x60"},
    "LlmspellArchiveGapped": {f"llmspell_archive_gaps{BACKUP}": "1x60"},
    "LlmspellBackupOld": {f"llmspell_backup_age_seconds{BACKUP}": "1700000000x60"},
    "LlmspellBackupUnproved": {f"llmspell_backup_proof_age_seconds{BACKUP}": "700000x60"},
    "LlmspellDeadLetters": {f"llmspell_event_dead_lettered_total{QUEUE}": "0x50 1x10"},
    "LlmspellHookBreakerOpen": {f"llmspell_hook_breaker_open{HOOK}": "1x60"},
    "LlmspellSidecarErrors": {
        f'{REQUEST}{{http_route="/r",http_response_status_code="200"}}': "0+100x60",
        f'{REQUEST}{{http_route="/r",http_response_status_code="503"}}': "0+10x60",
    },
    "LlmspellSidecarRestarts": {
        'process_uptime_seconds{instance="i"}': "0+60x50 0 60 0 60 0 60 0 60 0 60"
    },
    "LlmspellAuthFailures": {
        'llmspell_http_auth_failures_total{instance="i",llmspell_http_auth_reason="forbidden"}': (
            "0+120x60"
        )
    },
}
"""By alert: series of an hour, a value a minute, that make it fire at its end."""
QUIET: dict[str, str] = {
    f"llmspell_lane_connected{FAST}": "1x60",
    f'{DURATION}_count{{{OWN},error_type=""}}': "0+100x60",
    f'{DURATION}_count{{{OWN},error_type="CONFLICT"}}': "0+50x60",
    f'{DURATION}_bucket{{{OWN},db_operation_name="commit",le="0.1"}}': "0+100x60",
    f'{DURATION}_bucket{{{OWN},db_operation_name="commit",le="+Inf"}}': "0+100x60",
    f"llmspell_server_memory_used_bytes{{{OWN}}}": "50x60",
    f"llmspell_server_memory_limit_bytes{{{OWN}}}": "100x60",
    f"llmspell_lease_lost_total{{{OWN}}}": "3x60",
    f'llmspell_log_length{{{OWN},llmspell_shard="0"}}': "10x60",
    f'llmspell_log_cap{{{OWN},llmspell_shard="0"}}': "100x60",
    f'llmspell_log_holds_broken{{{OWN},llmspell_shard="0"}}': "0x60",
    f"llmspell_archive_lag_seconds{BACKUP}": "10x60",
    f"llmspell_archive_gaps{BACKUP}": "0x60",
    f"llmspell_backup_age_seconds{BACKUP}": "0+60x60",
    f"llmspell_backup_proof_age_seconds{BACKUP}": "0+60x60",
    f"llmspell_event_dead_lettered_total{QUEUE}": "7x60",
    f"llmspell_hook_breaker_open{HOOK}": "0x60",
    f'{REQUEST}{{http_route="/r",http_response_status_code="200"}}': "0+100x60",
    f'{REQUEST}{{http_route="/r",http_response_status_code="404"}}': "0+100x60",
    'process_uptime_seconds{instance="i"}': "0+60x60",
    'llmspell_http_auth_failures_total{instance="i",llmspell_http_auth_reason="forbidden"}': (
        "0+1x60"
    ),
}
"""An hour in which nothing is wrong: conflicts, old losses and a few refusals are no alert."""


def groups() -> list[dict[str, Any]]:
    """Return the groups of the manifest."""
    found: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["spec"][
        "groups"
    ]
    return found


def test_every_alert_says_what_is_wrong_and_how_grave_it_is() -> None:
    """For who is woken by it; names are unique."""
    rules = [rule for group in groups() for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
    assert FIRES.keys() <= {rule["alert"] for rule in rules}


@pytest.fixture
def promtool() -> str:
    """Prometheus's own checker; Debian's package is `prometheus`."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not on PATH: the rules are not tried (Debian: prometheus)")
    return found


def test_prometheus_takes_the_rules(promtool: str, tmp_path: Path) -> None:
    """No syntax error, no duplicate."""
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": groups()}), encoding="utf-8")
    done = subprocess.run(
        [promtool, "check", "rules", rules], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    """Each one at the end of an hour that has what it is for, none in an hour that is as usual."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups()}), encoding="utf-8")
    tests: list[dict[str, Any]] = []
    for alert, series in FIRES.items():
        # Only that it fires: what it says is for people.
        count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": k, "values": v} for k, v in series.items()],
                "promql_expr_test": [
                    {
                        "expr": count,
                        "eval_time": "60m",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        )
    tests.append(
        {
            "interval": "1m",
            "input_series": [{"series": k, "values": v} for k, v in QUIET.items()],
            "promql_expr_test": [{"expr": "count(ALERTS)", "eval_time": "60m", "exp_samples": []}],
        }
    )
    said = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yaml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
