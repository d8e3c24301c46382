"""The command line through a sidecar: ``--url http://…`` for all that it can do."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fix_remote import Grants
from fix_sidecar import running_sidecar

from llmspell_dist import connect
from llmspell_dist.doctor import Finding, Severity
from llmspell_dist.sidecar.auth.access import Access

pytestmark = [pytest.mark.integration, pytest.mark.one_server]

ALICE = "agent:alice"
Run = Callable[..., Any]
Serve = Callable[..., str]


@pytest.fixture
def serve(url: str, namespace: str, sidecar_port: Callable[[], int]) -> Iterator[Serve]:
    """A function that serves in a thread with an event loop of its own; the sidecar's URL."""
    ended: list[tuple[Callable[[], object], threading.Thread]] = []

    def start(access: Access | None = None, **settings: Any) -> str:
        ready = threading.Event()
        loop, stop, found = asyncio.new_event_loop(), asyncio.Event(), []

        async def serving() -> None:
            async with running_sidecar(
                url, namespace, sidecar_port(), access, **settings
            ) as sidecar:
                found.append(sidecar.url)
                ready.set()
                await stop.wait()

        def work() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serving())

        thread = threading.Thread(target=work)
        thread.start()
        ended.append((lambda: loop.call_soon_threadsafe(stop.set), thread))
        assert ready.wait(20), "the sidecar did not come up"
        return found[0]

    yield start
    for end, thread in ended:
        end()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's is shown."""
    for name in ("TOKEN", "TOKEN_FILE", "BACKUP_URL", "BACKUP_KEYS", "BACKUP_OLDER_KEYS"):
        monkeypatch.delenv(f"LLMSPELL_{name}", raising=False)


def test_state_is_read_and_changed_through_a_sidecar(run: Run, serve: Serve) -> None:
    """The namespace is the sidecar's; the answers are those that Redis itself gives."""
    url = serve()

    def there(*words: str) -> Any:
        done = run("--url", url, *words)
        assert done.code == 0, done.err
        return done

    there("set", ALICE, "mood", '"calm"')
    there("set", ALICE, "count", "2")
    assert json.loads(there("get", ALICE, "mood").out) == "calm"
    assert sorted(there("ls", ALICE).out.split()) == ["count", "mood"]
    assert ALICE in there("scopes").out
    assert "keys\t2" in there("stat", ALICE).out
    there("del", ALICE, "mood")
    past = [line.split("\t") for line in there("history", ALICE, "mood").out.splitlines()]
    assert [change[2] for change in past] == ["delete", "set"]


def test_changes_come_as_lines_through_a_sidecar(run: Run, serve: Serve) -> None:
    """From a revision on, until the limit."""
    url = serve()
    for key in ("a", "b"):
        assert run("--url", url, "set", ALICE, key, "1").code == 0
    done = run("--url", url, "watch", ALICE, "--since", "0-0", "--limit", "2")
    assert (done.code, done.err) == (0, "")
    assert [line.split("\t")[3] for line in done.out.splitlines()] == ["a", "b"]


def test_a_token_is_shown_from_a_file_or_the_environment(
    run: Run, serve: Serve, granted: Grants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, and for what it is not granted, the sidecar refuses: exit code 4."""
    access, token = granted((ALICE, "read write"))
    url, file = serve(access), tmp_path / "token"
    file.write_text(token)
    refused = run("--url", url, "set", ALICE, "k", "1")
    assert refused.code == 4
    assert "UNAUTHENTICATED" in refused.err
    assert "--token-file" in refused.err
    assert run("--url", url, "--token-file", str(file), "set", ALICE, "k", "1").code == 0
    monkeypatch.setenv("LLMSPELL_TOKEN", token)
    assert run("--url", url, "get", ALICE, "k").out == "1\n"
    forbidden = run("--url", url, "del", ALICE, "k")
    assert forbidden.code == 4
    assert "FORBIDDEN" in forbidden.err
    assert token not in forbidden.err


def test_leases_are_looked_at_through_a_sidecar(run: Run, serve: Serve) -> None:
    """Nobody holds one: exit code 1 of `show`."""
    url = serve()
    assert run("--url", url, "lease", "ls").code == 0
    shown = run("--url", url, "lease", "show", ALICE)
    assert (shown.code, shown.err) == (1, "")


def test_a_lease_is_broken_and_a_queue_removed_through_a_sidecar(run: Run, serve: Serve) -> None:
    """What asks before it does something works there too; nobody is asked with --yes."""
    url = serve()
    taken = httpx.post(f"{url}/v1/leases/{ALICE}/main", json={"ttl": 60})
    assert taken.status_code == 200, taken.text
    broken = run("--url", url, "--json", "lease", "break", ALICE, "--reason", "hangs", "--yes")
    assert broken.code == 0, broken.err
    assert len(json.loads(broken.out)["broken"]) == 1
    made = httpx.put(f"{url}/v1/subscriptions/mails", json={"pattern": "mail.*"})
    assert made.status_code < 300, made.text
    removed = run("--url", url, "--json", "events", "remove", "mails", "--confirm")
    assert json.loads(removed.out) == {"name": "mails", "removed": True}


def test_a_timeline_is_drawn_through_a_sidecar(run: Run, serve: Serve) -> None:
    """As on the server itself: a line for each entry, with the keys that changed."""
    url = serve()
    assert run("--url", url, "events", "publish", "a.done", "--correlation", "run").code == 0
    shown = run("--url", url, "timeline", "run")
    assert (shown.code, shown.err) == (0, "")
    assert "a.done" in shown.out
    documents = json.loads(run("--url", url, "--json", "timeline", "run").out)
    assert [one["type"] for one in documents["entries"]] == ["a.done"]
    assert run("--url", url, "timeline", "another").code == 1


@pytest.mark.backup
def test_backups_are_made_and_restored_through_a_sidecar(
    run: Run, serve: Serve, tmp_path: Path
) -> None:
    """In the place that it was given, from the first to the last step."""
    url = serve(backups=f"file://{tmp_path}")

    def there(*words: str, code: int = 0) -> Any:
        done = run("--url", url, *words)
        assert done.code == code, done.err
        return done

    there("set", ALICE, "note", '"before"')
    made = there("backup", "create", "--tag", "for=test").out.strip()
    assert made in there("backup", "list").out
    assert "full" in there("backup", "info").out
    there("backup", "verify", "--level", "full")
    there("set", ALICE, "note", '"after"')
    meant = ("--scope", ALICE, "--at", made)
    differs = there("backup", "diff", *meant, "--key", "note", code=1)
    assert differs.out.split() == ["changed", ALICE, "note"]
    there("backup", "restore", *meant, code=1)
    restored = json.loads(there("--json", "backup", "restore", *meant, "--confirm").out)
    assert json.loads(there("get", ALICE, "note").out) == "before"
    there("backup", "rollback", restored["rollback"], "--confirm")
    assert json.loads(there("get", ALICE, "note").out) == "after"
    there("backup", "drill")
    assert "yes" in there("backup", "drills").out
    assert made in there("backup", "prune", "--policy", "last=1 everything").out
    there("backup", "prune", "--policy", "last=1", "--confirm")
    there("backup", "gc", "--confirm")
    there("backup", "archive", code=1)


@pytest.mark.backup
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("list", "--to", "file:///tmp"), "--to"),
        (("list", "--keys", "env:KEY"), "--keys"),
        (("create", "--compression", "gzip"), "zstd"),
        (("restore", "--namespace-into", "another", "--confirm"), "one namespace"),
        (("export", "latest", "file"), "machine"),
        (("archive", "--once"), "--archive"),
        (("schedule", "--cron", "0 * * * *", "--once"), "process"),
        (("rewrap",), "operator"),
    ],
)
def test_what_of_backups_needs_redis_itself_says_why(
    run: Run, serve: Serve, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    """As wrong usage."""
    url = serve(backups=f"file://{tmp_path}")
    assert run("--url", url, "backup", "create").code == 0
    done = run("--url", url, "backup", *words)
    assert done.code == 2
    assert said in done.err


@pytest.mark.backup
def test_a_place_of_the_environment_is_not_passed_over(
    run: Run, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is restored would come from elsewhere than was meant."""
    url = serve(backups=f"file://{tmp_path}")
    monkeypatch.setenv("LLMSPELL_BACKUP_URL", "s3://elsewhere")
    done = run("--url", url, "backup", "list")
    assert done.code == 2
    assert "LLMSPELL_BACKUP_URL" in done.err


def test_another_namespace_than_the_sidecars_is_refused(run: Run, serve: Serve) -> None:
    """Exit code 5, with both names."""
    done = run("--url", serve(), "--namespace", "another", "get", ALICE, "k")
    assert done.code == 5
    assert "another" in done.err


def test_the_doctor_looks_at_the_server_behind_a_sidecar(
    run: Run, serve: Serve, url: str, namespace: str
) -> None:
    """What it finds there itself, with the same exit code; a check can be left out."""
    address = serve()
    through = run("--url", address, "--json", "doctor")
    direct = run("--url", url, "--namespace", namespace, "--json", "doctor")
    told, found = json.loads(through.out), json.loads(direct.out)
    assert told["url"] == address
    assert [told[name] for name in ("server", "namespace")] == [
        found[name] for name in ("server", "namespace")
    ]
    # How long a round trip takes is another each time.
    assert _checks(told) == _checks(found)
    left = run("--url", address, "--json", "doctor", "--ignore", "version")
    assert "version" not in {one["check"] for one in json.loads(left.out)["findings"]}
    assert run("--url", address, "doctor", "--ignore", "nothing").code == 2
    lines = [line.split("\t")[1] for line in run("--url", address, "doctor").out.splitlines()]
    assert lines == [one["check"] for one in told["findings"]]


def _checks(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (one["check"], one["severity"]) for one in document["findings"] if one["check"] != "latency"
    ]


def test_problems_behind_a_sidecar_are_the_exit_code(
    run: Run, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 for a problem, unless it is left out."""
    finding = Finding("eviction", Severity.PROBLEM, "it throws state away", "set noeviction")
    monkeypatch.setattr("llmspell_dist.doctor.diagnose", lambda _facts: [finding])
    address = serve()
    done = run("--url", address, "doctor")
    assert (done.code, done.out.strip()) == (
        *(10, "problem\teviction\tit throws state away\tset noeviction"),
    )
    assert run("--url", address, "doctor", "--ignore", "eviction").code == 0


def test_the_namespace_is_measured_through_a_sidecar(
    run: Run, serve: Serve, url: str, namespace: str
) -> None:
    """As it is without one, but for the bytes, which a sidecar does not count."""
    address = serve()
    assert run("--url", address, "set", ALICE, "k", "1").code == 0
    told = json.loads(run("--url", address, "--json", "stat").out)
    found = json.loads(run("--url", url, "--namespace", namespace, "--json", "stat").out)
    for one in found["log"]:
        one["bytes"] = one["bytes_per_entry"] = None
    found["server"]["used_memory"] = None
    assert told == found
    assert told["log"][0]["entries"] >= 1
    assert "log.entries" in run("--url", address, "stat").out


def test_recorded_runs_of_hooks_are_shown_through_a_sidecar(
    run: Run, serve: Serve, url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is known of them without one, page by page."""

    def stamp(ctx: Any) -> None:
        ctx.now()
        if ctx.data["value"] == 2:
            raise ValueError("two")

    async def record() -> None:
        async with connect(url, namespace=namespace) as spell:
            spell.hooks.register("BeforeStateWrite", stamp, replayable=True)
            for value in ({1, 2}, 2, b"x", (3,), 4):
                await spell.state.set(ALICE, "k", value)
            await spell.hooks.history.flush()

    asyncio.run(record())
    monkeypatch.setattr("llmspell_dist.remote.operators._PAGE", 2)
    address = serve()
    for words in (
        ("history",),
        ("history", "--limit", "3"),
        ("history", "--failed"),
        ("history", "--hook", "stamp", "--point", "BeforeStateWrite"),
        ("history", "--hook", "another"),
    ):
        for form in ((), ("--json",)):
            told = run("--url", address, *form, "hooks", *words)
            direct = run("--url", url, "--namespace", namespace, *form, "hooks", *words)
            assert (told.code, told.out) == (0, direct.out), told.err
    ids = [
        one["id"]
        for one in json.loads(run("--url", address, "--json", "hooks", "history").out)["executions"]
    ]
    assert len(ids) == 5
    for one in ids:
        told = run("--url", address, "--json", "hooks", "show", one)
        direct = run("--url", url, "--namespace", namespace, "--json", "hooks", "show", one)
        assert (told.code, json.loads(told.out)) == (0, json.loads(direct.out)), told.err
    missing = run("--url", address, "hooks", "show", "nothing")
    direct = run("--url", url, "--namespace", namespace, "hooks", "show", "nothing")
    assert (missing.code, missing.err) == (direct.code, direct.err)


def test_what_operators_see_needs_the_right_to_administer(
    run: Run, serve: Serve, granted: Grants, tmp_path: Path
) -> None:
    """Exit code 4, with the right."""
    access, token = granted(("agent:*", "read list"))
    address = serve(access)
    file = tmp_path / "token"
    file.write_text(token)
    for words in (("doctor",), ("stat",), ("hooks", "history"), ("hooks", "show", "x")):
        done = run("--url", address, "--token-file", str(file), *words)
        assert (done.code, "admin" in done.err) == (4, True), done.err


@pytest.mark.parametrize(
    "words", [("hooks", "schedules"), ("hooks", "replay", "x", "--hook", "json:dumps")]
)
def test_what_needs_redis_itself_says_so(run: Run, serve: Serve, words: tuple[str, ...]) -> None:
    """As wrong usage of --url."""
    done = run("--url", serve(), *words)
    assert done.code == 2
    assert "must name Redis itself" in done.err


def test_nobody_at_the_url_is_told_at_once(run: Run, sidecar_port: Callable[[], int]) -> None:
    """Exit code 4, with the address."""
    port = sidecar_port()
    done = run("--url", f"http://127.0.0.1:{port}", "get", ALICE, "k")
    assert done.code == 4
    assert str(port) in done.err
