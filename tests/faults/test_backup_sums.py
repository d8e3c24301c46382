"""A thousand transactions a second between accounts: sums are exact in every restored moment."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from fix_faults import client
from fix_lease_faults import at_most, chance, report
from fix_servers import Server

from llmspell_dist import Revision
from llmspell_dist.backup import scanning
from llmspell_dist.backup.creating import Creator
from llmspell_dist.backup.segments import LogReader
from llmspell_dist.security.keyring import FileKeys

pytestmark = [
    pytest.mark.integration,
    pytest.mark.backup,
    pytest.mark.needs("process"),
    pytest.mark.one_server,
]
ACCOUNTS = 200
START = 1000
WRITERS = 24


class Bank:
    """Accounts, a scope each, and writers that move amounts between them."""

    def __init__(self, spell: Any, drawn: random.Random) -> None:
        self.spell = spell
        self.drawn = drawn
        self.commits: list[tuple[Revision, int, int, int]] = []
        self.stop = asyncio.Event()

    async def open(self) -> None:
        """Give everybody the same."""
        for number in range(ACCOUNTS):
            async with self.spell.state.transaction() as tx:
                tx.set(f"agent:{number}", "balance", START)
                tx.set(f"agent:{number}", "text", "x" * 200)

    async def write(self) -> None:
        """Move amounts until told to stop."""
        while not self.stop.is_set():
            first, second = self.drawn.sample(range(ACCOUNTS), 2)
            amount = self.drawn.randrange(1, 100)
            async with self.spell.state.transaction() as tx:
                tx.increment(f"agent:{first}", "balance", -amount)
                tx.increment(f"agent:{second}", "balance", amount)
            self.commits.append((tx.revision, first, second, amount))

    def at(self, moment: Revision) -> dict[int, int]:
        """Return the balances as of a moment, as those say who moved them."""
        balances = dict.fromkeys(range(ACCOUNTS), START)
        for revision, first, second, amount in self.commits:
            if revision <= moment:
                balances[first] -= amount
                balances[second] += amount
        return balances


async def balances(server: Server, namespace: str) -> dict[int, int]:
    """Return what a namespace holds."""
    found = {}
    async with client(server, namespace) as there:
        for number in range(ACCOUNTS):
            found[number] = await there.state.get(f"agent:{number}", "balance")
    return found


async def bank_under_load(
    server: Server, namespace: str, folder: Path, *, at_least: int
) -> tuple[Bank, list[Any], Any, float]:
    """Take backups and archive while writers move amounts; the bank, backups, store, rate."""
    spell = await client(server, namespace).__aenter__()
    keys = FileKeys(folder / "keys")
    keys.generate()
    store = spell.backups.to(f"file://{folder}/b", keys=keys)
    bank = Bank(spell, chance("sums in restored moments"))
    await bank.open()
    shipper, end = store.archive(interval=0.05), asyncio.Event()
    shipping = asyncio.create_task(shipper.run(end))
    began = monotonic()
    writers = [asyncio.create_task(bank.write()) for _ in range(WRITERS)]
    taken: list[Any] = []
    while len(bank.commits) < at_least or len(taken) < 3:
        kind = "incremental" if len(taken) % 3 else "full"
        taken.append(await store.create(type=kind))
    bank.stop.set()
    await asyncio.gather(*writers)
    rate = len(bank.commits) / (monotonic() - began)
    end.set()
    await shipping
    return bank, taken, store, rate


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("commits", "moments"), [(1500, 5), pytest.param(60_000, 100, marks=pytest.mark.slow)]
)
async def test_sums_are_exact_in_every_moment(
    server: Server, namespace: str, tmp_path: Path, commits: int, moments: int
) -> None:
    """Of every backup, and of moments drawn from all commits since, by way of the archive."""
    bank, taken, store, rate = await bank_under_load(server, namespace, tmp_path, at_least=commits)
    there = f"{namespace}-there"
    during = sum(info.stats.entries for info in taken)
    since = [one[0] for one in bank.commits if one[0] > taken[0].revision]
    tried = 0
    # Without the server's own log: out of what is stored.
    for at in [*(info.id for info in taken), *bank.drawn.sample(since, moments)]:
        done = await store.restore(at, namespace=there, rollback=False)
        found = await balances(server, there)
        assert sum(found.values()) == ACCOUNTS * START, f"{at}: the sum is wrong"
        assert found == bank.at(done.revision), at
        tried += 1
    report(
        "sums in restored moments",
        commits=len(bank.commits),
        per_second=round(rate),
        backups=len(taken),
        entries_in_them=during,
        wrong=at_most(tried),
    )
    assert during > 100, "too little happened during the backups: void"
    await store.close()
    await bank.spell.close()


async def test_without_the_log_the_sums_are_wrong(
    server: Server, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what is scanned, alone, is of no one moment."""

    async def nothing(self: Creator, shard: Any, uploads: Any) -> None:
        del uploads
        reader = LogReader(self._driver, shard.name)
        shard.at, shard.operation = await reader.last()

    monkeypatch.setattr(Creator, "_catch_up", nothing)
    monkeypatch.setattr(scanning, "SCOPES_PAGE", 10)
    monkeypatch.setattr(scanning, "GROUP_BYTES", 2000)
    bank, taken, store, _ = await bank_under_load(server, namespace, tmp_path, at_least=500)
    sums = set()
    for info in taken:
        if info.type.value == "full":
            await store.restore(info.id, namespace=f"{namespace}-there", rollback=False)
            sums.add(sum((await balances(server, f"{namespace}-there")).values()))
    assert sums != {ACCOUNTS * START}, "the control shows nothing: void"
    await store.close()
    await bank.spell.close()
