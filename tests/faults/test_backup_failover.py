"""A server that loses writes, or only restarts, in the middle of a backup or a restore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fix_faults import Proxies, Servers, client, raw_to
from fix_ledger import everything
from fix_state import until

from llmspell_dist.backup import scanning, segments
from llmspell_dist.backup.creating import Creator
from llmspell_dist.backup.errors import (
    BackupDivergedError,
    BackupError,
    BaseMissingError,
    PointNotCoveredError,
)
from llmspell_dist.backup.segments import LogReader

pytestmark = [
    pytest.mark.integration,
    pytest.mark.backup,
    pytest.mark.needs("kill", "replicas"),
    pytest.mark.one_server,
]
HASTY: dict[str, Any] = {"call_timeout": 5.0, "retry_budget": 10.0, "health_check_interval": 0.2}
NAMESPACE = "failover"
ACCOUNTS = 8
LOST, AFTER = 1_000_000, 2_000_000
State = dict[str, dict[str, Any]]


async def transfer(state: Any, count: int, mark: int) -> None:
    """Move amounts between accounts, and mark both: who did it, and that both are of one commit."""
    for number in range(count):
        first, second = number % ACCOUNTS, (number * 3 + 1) % ACCOUNTS
        async with state.transaction() as tx:
            tx.increment(f"agent:{first}", "balance", -number)
            tx.increment(f"agent:{second}", "balance", number)
            for one in {first, second}:
                tx.set(f"agent:{one}", f"mark{number % 5}", mark + number)
                tx.set(f"agent:{one}", f"mark-{mark}-{number}", mark + number)
                tx.set(f"agent:{one}", "text", f"{mark + number} {'x' * 300}")


def marks(found: State) -> set[int]:
    """Return of which history the marks are: 0 for the common one."""
    return {
        value // LOST * LOST
        for scope in found.values()
        for key, value in scope.items()
        if key.startswith("mark")
    } - {0}


def is_of_one_history(found: State) -> bool:
    """Whether sums are right, and nothing of both histories is there."""
    balance = sum(scope.get("balance", 0) for scope in found.values())
    return balance == 0 and len(marks(found)) <= 1


class Pair:
    """A server and the replica that takes its place, without the last writes."""

    def __init__(self, master: Any, replica: Any, proxy: Any) -> None:
        self.master, self.replica, self.proxy = master, replica, proxy
        self.lost = False

    async def catch_up(self) -> None:
        """Wait until the replica has everything."""
        raw, link = raw_to(self.master), raw_to(self.replica)
        keys = [b"failover:{0}:log", b"failover:{0}:ctl"]
        await until(lambda: all(raw("DUMP", key) == link("DUMP", key) for key in keys), within_s=20)
        raw.close()
        link.close()

    def cut_off(self) -> None:
        """Let the replica have nothing more: what is written from now on will be lost."""
        link = raw_to(self.replica)
        link("REPLICAOF", "NO", "ONE")
        link.close()

    async def fail_over(self) -> None:
        """Let everybody have the replica, which others have written to already."""
        async with client(self.replica, NAMESPACE) as other:
            await transfer(other.state, 40, AFTER)
        self.proxy.upstream = str(self.replica.socket)
        self.proxy.reset_peer()
        self.lost = True

    async def restart(self) -> None:
        """Kill the server and start it again: it loses nothing."""
        self.master.kill()
        await asyncio.to_thread(self.master.start)
        self.proxy.reset_peer()
        self.lost = True


@pytest.fixture
async def pair(own_server: Servers, fault_proxy: Proxies, free_port: Callable[[], int]) -> Pair:
    """A server with a replica that is connected."""
    port = free_port()
    master = own_server(port=port, config={"repl-diskless-sync-delay": 0}, fsync="always")
    replica = own_server()
    raw, link = raw_to(master), raw_to(replica)
    link("REPLICAOF", "127.0.0.1", port)
    await until(lambda: b"state=online" in raw("INFO", "replication"), within_s=20)
    raw.close()
    link.close()
    return Pair(master, replica, fault_proxy(master))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a middle: everything is read in many calls."""
    monkeypatch.setattr(scanning, "SCOPES_PAGE", 2)
    monkeypatch.setattr(scanning, "GROUP_BYTES", 600)
    monkeypatch.setattr(segments, "PAGE_BYTES", 2000)
    monkeypatch.setattr(segments, "MOST_ENTRIES", 4)


Act = Callable[[], Awaitable[None]]


@asynccontextmanager
async def after_pages(act: Act, pages: int) -> AsyncIterator[None]:
    """Do something when so many pages of the log were read."""
    real, left = LogReader.pages, [pages]

    async def turned(self: LogReader, *arguments: Any) -> AsyncIterator[Any]:
        async for page in real(self, *arguments):
            yield page
            left[0] -= 1
            if not left[0]:
                await act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogReader, "pages", turned)
        yield
    assert left[0] <= 0, "it was over before"


@asynccontextmanager
async def after_scans(act: Act, scopes: int) -> AsyncIterator[None]:
    """Do something when so many scopes were read."""
    real, left = scanning.Scanner.run, [scopes]

    async def turned(self: scanning.Scanner) -> AsyncIterator[None]:
        async for _ in real(self):
            yield
            left[0] -= 1
            if not left[0]:
                await act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning.Scanner, "run", turned)
        yield
    assert left[0] <= 0, "it was over before"


def followed_by(step: Any, act: Act) -> Any:
    """Return a step of a backup that something happens behind."""

    async def both(*arguments: Any) -> None:
        await step(*arguments)
        await act()

    return both


@pytest.mark.parametrize("fault", ["failover", "restart"])
@pytest.mark.parametrize("moment", ["scan", "log", "incremental"])
async def test_a_backup_is_never_of_two_histories(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, fault: str
) -> None:
    """It is refused as diverged, or it is right; the next one is."""
    async with (
        client(pair.proxy, NAMESPACE, **HASTY) as spell,
        spell.backups.to(f"file://{tmp_path}/b") as store,
    ):
        await transfer(spell.state, 60, 0)
        await store.create()
        await transfer(spell.state, 40, 0)
        kind = "incremental" if moment == "incremental" else "full"
        act = pair.fail_over if fault == "failover" else pair.restart
        during = after_scans(act, 3) if moment == "scan" else after_pages(act, 14)

        async def go_wrong() -> None:
            await pair.catch_up()
            if fault == "failover":
                pair.cut_off()
            await transfer(spell.state, 80, LOST)

        if moment == "scan":
            await go_wrong()
        else:  # when the hold is there, and before the end of the log is looked at
            step = "_go_on_from" if moment == "incremental" else "_scan"
            monkeypatch.setattr(Creator, step, followed_by(getattr(Creator, step), go_wrong))
        made = None
        async with during:
            try:
                made = await store.create(type=kind)
            except BackupDivergedError:
                made = None
        monkeypatch.undo()
        assert pair.lost
        server = pair.replica if fault == "failover" else pair.master
        if made is None:
            assert len(await store.list()) == 1
        else:
            found = await elsewhere(store, server, made.id)
            assert is_of_one_history(found)
            assert found == await everything(spell)  # nobody writes any more
        right = await everything(spell)
        again = await store.create()
        assert await elsewhere(store, server, again.id) == right
        assert is_of_one_history(right)


async def elsewhere(store: Any, server: Any, at: Any, **options: Any) -> State:
    """Return what a moment is, restored into another namespace."""
    there = f"{NAMESPACE}-there"
    await store.restore(at, namespace=there, rollback=False, **options)
    async with client(server, there) as other:
        return await everything(other)


@pytest.mark.parametrize("fault", ["failover", "restart"])
async def test_a_restore_out_of_the_log_is_never_of_two_histories(
    pair: Pair, tmp_path: Path, fault: str
) -> None:
    """The live log is read on after a failover: refused, or right; nothing is half restored."""
    async with (
        client(pair.proxy, NAMESPACE, **HASTY) as spell,
        spell.backups.to(f"file://{tmp_path}/b") as store,
    ):
        await transfer(spell.state, 60, 0)
        await store.create()
        await transfer(spell.state, 40, 0)
        await pair.catch_up()
        if fault == "failover":
            pair.cut_off()
        await transfer(spell.state, 40, LOST)
        act = pair.fail_over if fault == "failover" else pair.restart
        server = pair.replica if fault == "failover" else pair.master
        there = f"{NAMESPACE}-there"
        done = False
        async with after_pages(act, 14):
            try:
                await store.restore(namespace=there, rollback=False)
                done = True
            except BackupError:
                pass
        async with client(server, there) as other:
            found = await everything(other)
        assert is_of_one_history(found)
        assert done or not found
        assert await elsewhere(store, server, None) == await everything(spell)


async def test_a_backup_of_what_was_lost_is_no_base_for_what_came_after(
    pair: Pair, tmp_path: Path
) -> None:
    """A backup that ends in the lost past, one from before, and the log that goes on."""
    async with (
        client(pair.proxy, NAMESPACE, **HASTY) as spell,
        spell.backups.to(f"file://{tmp_path}/b") as store,
    ):
        await transfer(spell.state, 60, 0)
        await store.create()
        await pair.catch_up()
        pair.cut_off()
        await transfer(spell.state, 40, LOST)
        past = await everything(spell)
        lost = await store.create()
        await pair.fail_over()
        moment = (await spell.log.stat()).last
        right = await everything(spell)
        await transfer(spell.state, 5, AFTER)
        with pytest.raises(BackupDivergedError):
            await store.create(type="incremental")
        await store.create()
        assert await elsewhere(store, pair.replica, lost.id) == past
        assert await elsewhere(store, pair.replica, moment) == right


async def test_a_log_that_is_trimmed_while_it_is_restored_from_is_noticed(
    pair: Pair, tmp_path: Path
) -> None:
    """Entries that are missing at its beginning look like none: refused, and nothing changes."""
    log = b"failover:{0}:log"
    async with (
        client(pair.proxy, NAMESPACE, **HASTY) as spell,
        spell.backups.to(f"file://{tmp_path}/b") as store,
    ):
        await transfer(spell.state, 20, 0)
        await store.create()
        await transfer(spell.state, 60, LOST)
        raw = raw_to(pair.master)
        staged = asyncio.Event()

        async def trim() -> None:
            raw("XTRIM", log, "MAXLEN", "=", 5)
            staged.set()

        real = LogReader.pages

        async def late(self: LogReader, *arguments: Any) -> AsyncIterator[Any]:
            await trim()
            async for page in real(self, *arguments):
                yield page

        right = await everything(spell)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LogReader, "pages", late)
            with pytest.raises(PointNotCoveredError, match="trimmed"):
                await store.restore(rollback=False)
        assert staged.is_set()
        assert await everything(spell) == right
        raw.close()


async def test_a_log_that_was_trimmed_since_an_empty_backup_cannot_be_gone_on_from(
    pair: Pair, tmp_path: Path
) -> None:
    """What the first commits were nobody knows any more."""
    async with (
        client(pair.proxy, NAMESPACE, **HASTY) as spell,
        spell.backups.to(f"file://{tmp_path}/b") as store,
    ):
        await store.create()
        await transfer(spell.state, 20, 0)
        made = await store.create(type="incremental")
        assert await elsewhere(store, pair.master, made.id) == await everything(spell)
        empty = (await store.list())[0].id
        raw = raw_to(pair.master)
        raw("XTRIM", b"failover:{0}:log", "MAXLEN", "=", 5)
        raw.close()
        with pytest.raises(BaseMissingError):
            await store.create(type="incremental", parent=empty)
