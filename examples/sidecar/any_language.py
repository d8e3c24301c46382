"""What an app of any language does: plain HTTP to a sidecar, here with urllib.

Two workers change one plan. The entity tag says who was too late, and an idempotency key lets a
request be sent twice without being applied twice.

Run: python examples/sidecar/any_language.py [URL]
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

PLAN = "/v1/state/agent:example-plan/plan"


@contextmanager
def sidecar(store: str) -> Iterator[str]:
    """Run a sidecar as Kubernetes would, beside the app; SIGTERM ends it."""
    with socket.socket() as held:  # a free port, and nobody else's until the sidecar has it
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        command = [sys.executable, "-m", "llmspell_dist.cli", "sidecar", "--bind", address]
        options = ["--url", store, "--namespace", "example-sidecar"]
        with subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL) as process:
            base = f"http://{address}"
            try:
                while not ready(base):
                    assert process.poll() is None, "the sidecar has ended"
                yield base
            finally:
                process.terminate()


def ready(base: str) -> bool:
    """Ask as a startup probe does."""
    try:
        return bool(urlopen(f"{base}/readyz", timeout=5).status == 200)  # noqa: S310 - http
    except URLError:
        time.sleep(0.05)
        return False


def ask(method: str, url: str, body: Any = None, **headers: str) -> tuple[int, Any, str | None]:
    """Send one request; status, document and entity tag of the answer."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None
    if body is not None:
        data, given = json.dumps(body).encode(), {"content-type": "application/json", **given}
    request = Request(url, data=data, headers=given, method=method)  # noqa: S310 - http
    try:
        answer = urlopen(request, timeout=10)  # noqa: S310 - as above
    except HTTPError as refused:
        return refused.code, json.load(refused), None
    text = answer.read()
    return answer.status, json.loads(text) if text else None, answer.headers["etag"]


def main(store: str) -> None:
    """Show it, against a store of this process or a real one."""
    with sidecar(store) as base:
        ask("DELETE", base + PLAN)
        ask("PUT", base + PLAN, {"steps": ["search"]})

        # Two workers read the same revision, and both write.
        _, plan, tag = ask("GET", base + PLAN)
        assert tag is not None
        status, _, _ = ask("PUT", base + PLAN, {"steps": [*plan["steps"], "read"]}, if_match=tag)
        print("first worker:", status)
        status, problem, _ = ask("PUT", base + PLAN, {"steps": ["rewrite"]}, if_match=tag)
        print("second worker:", status, problem["code"])
        assert (status, problem["code"]) == (412, "CONFLICT")

        # A request whose answer was lost is sent again: the sum does not know.
        add = base + PLAN.replace("/plan", "/turns") + "/increment"
        before = ask("POST", add, {"by": 0})[1]["value"]
        sums = [
            ask("POST", add, {"by": 1}, idempotency_key=f"turn-{before}")[1]["value"] for _ in "ab"
        ]
        print("counted once:", sums[0] - before, sums[1] - before)
        assert sums == [before + 1, before + 1]

        _, past, _ = ask("GET", base + PLAN + "/history?limit=1")
        print("last change:", past["changes"][0]["value"])
        assert past["changes"][0]["value"] == {"steps": ["search", "read"]}


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "memory://example-sidecar")
