"""S3 that fails in the middle of whatever works on backups: bounded retries, or a clear error."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any

import pytest
from fix_lease_faults import chance, report
from fix_ledger import everything
from fix_s3_faults import KINDS, S3Faults
from fix_state import Store

from llmspell_dist import Spell, connect
from llmspell_dist.backup.errors import BackupError, TargetError, TargetPermissionError
from llmspell_dist.backup.service import BackupStore
from llmspell_dist.security.keyring import FileKeys

pytestmark = [
    pytest.mark.integration,
    pytest.mark.backup,
    pytest.mark.one_server,
    pytest.mark.needs("process"),
]
OPERATIONS = ("full", "incremental", "archive", "restore", "prune", "gc", "verify")
Fault = Callable[[S3Faults, int], object]


def _for_ever(kind: str, s3: S3Faults, after: int) -> None:
    s3.fail(kind, times=None, after=after)


def _denied(kind: str, s3: S3Faults, after: int) -> None:
    s3.deny(kind, after=after)


def _lost(kind: str, s3: S3Faults, after: int) -> None:
    s3.lose(kind, after=after)


FAULTS: dict[str, Fault] = {
    **{f"500 {kind}": partial(_for_ever, kind) for kind in KINDS},
    **{f"denied {kind}": partial(_denied, kind) for kind in KINDS},
    **{f"lost {kind}": partial(_lost, kind) for kind in KINDS},
    "503 three times": lambda s3, _: s3.throttle(3),
    "full": lambda s3, n: s3.full(after=n),
    "over quota": lambda s3, n: s3.full(code="QuotaExceeded", after=n),
    "upload cut": lambda s3, n: s3.cut_upload(20, after=n),
    "uploads cut for ever": lambda s3, n: s3.cut_upload(20, times=None, after=n),
    "download cut": lambda s3, n: s3.cut_download(20, after=n),
    "away": lambda s3, _: s3.down(),
}
PASSING = {name for name in FAULTS if name.startswith("lost")} | {
    "503 three times",
    "upload cut",
    "download cut",
}
"""After which the operation succeeds: they are asked again."""
AT_ONCE = {"503 three times", "away"}
"""Strike at the first call, whatever comes before."""
MOST_CALLS = 40


class Work:
    """What is done with the backups of one namespace."""

    def __init__(self, spell: Spell, url: str, namespace: str, s3: S3Faults, keys: Any) -> None:
        self.spell, self.url, self.namespace, self.s3 = spell, url, namespace, s3
        more = {"tries": 4, "patience_s": 1.0}
        self.target, self.straight = s3.place.open(**more), s3.place.open(**more)
        self.kept: BackupStore = spell.backups.to(self.target, keys=keys)
        self.base = ""
        self.written = 0

    async def write(self) -> None:
        """Have something to back up."""
        self.written += 1
        async with self.spell.state.transaction() as tx:
            for number in range(3):
                tx.set(f"agent:{number}", "v", [self.written] * 20)

    async def do(self, operation: str) -> Any:
        """Carry an operation out."""
        match operation:
            case "full" | "incremental":
                return await self.kept.create(type=operation)
            case "archive":
                return await self.kept.archive().once()
            case "restore":
                there = f"{self.namespace}-there"
                return await self.kept.restore(self.base, namespace=there, rollback=False)
            case "prune":
                return await self.kept.prune("last=2 tag=stays", confirm=True)
            case "gc":
                self.kept._upkeep._now = lambda: datetime.now(UTC) + timedelta(days=30)
                return await self.kept.gc(confirm=True, grace=timedelta(seconds=1))
            case _:
                return await self.kept.verify(level="full")

    async def there(self) -> dict[str, Any]:
        """Return what was restored."""
        async with connect(self.url, namespace=f"{self.namespace}-there") as there:
            return await everything(there)


@pytest.fixture
async def work(
    spell: Spell, url: str, namespace: str, s3_faults: S3Faults, tmp_path: Any
) -> AsyncIterator[Work]:
    """A namespace with a backup."""
    keys = FileKeys(tmp_path / "keys")
    keys.generate()
    work = Work(spell, url, namespace, s3_faults, keys)
    await work.write()
    work.base = (await work.kept.create(tags={"stays": "yes"})).id
    yield work
    await work.kept.close()
    work.target.close()
    work.straight.close()


async def disturb(work: Work, operation: str, fault: str, after: int) -> str:
    """Let a fault come in the middle; what became of the operation."""
    await work.write()
    if operation == "prune":
        for _ in range(2):
            await work.kept.create()
    before = {info.id for info in await work.kept.list()}
    there = await work.there()
    work.s3.forget()
    FAULTS[fault](work.s3, after)
    began, what = monotonic(), "done"
    failed: BackupError | None = None
    try:
        got = await work.do(operation)
        if operation == "verify" and not got.ok:
            what = "found"
    except BackupError as error:
        failed = error
        what = "denied" if isinstance(error, TargetPermissionError) else "failed"
    if fault.startswith(("500", "denied")) or fault in {"full", "over quota"}:
        assert failed is None or isinstance(failed, TargetError), f"{fault}: {failed!r}"
    struck = work.s3.struck.total()
    calls = len(work.s3.calls)
    work.s3.up()
    work.s3.clear()
    took = monotonic() - began
    assert took < 30, f"{operation}, {fault}: {took:.1f} s"
    assert calls < 300, f"{operation}, {fault}: {calls} calls"
    if not struck and fault != "away":
        return "missed"
    after_it = {info.id for info in await work.kept.list()}
    if operation in {"full", "incremental"}:
        assert (what == "done") == (len(after_it) == len(before) + 1), f"{fault}: {what}"
    elif operation == "prune":
        assert after_it <= before
        assert work.base in after_it
    else:
        assert after_it == before
    if operation == "restore" and what != "done":
        assert await work.there() == there, f"{fault}: half restored"
    if fault in PASSING:
        assert what == "done", f"{operation}, {fault}: {what}"
    # The next one does what this one could not.
    got = await work.do(operation)
    if operation == "verify":
        assert got.ok, f"{fault}: {got}"
    return what


async def unharmed(work: Work, store: Store) -> None:
    """All backups verify and restore, the newest exactly; nothing is left behind."""
    assert (await work.kept.verify(level="full")).findings == []
    right = await everything(work.spell)
    made = await work.kept.create()
    for info in await work.kept.list():
        await work.kept.restore(info.id, namespace=f"{work.namespace}-there", rollback=False)
        if info.id == made.id:
            assert await work.there() == right
    stat = await work.spell.log.stat()
    assert set(stat.holds) <= {"archive"}, "a hold is left"
    assert not [key for key in store.all_keys() if b":restore" in key]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_fault_of_s3_in_the_middle_harms_nothing(
    work: Work, store: Store, operation: str
) -> None:
    """Some faults, behind some calls; all backups that list verify and restore."""
    drawn = chance(f"faults of s3 {operation}")
    told: dict[str, Counter[str]] = {}
    for fault in drawn.sample(list(FAULTS), 4):
        what = await disturb(work, operation, fault, drawn.choice([0, 0, 1, 2]))
        told.setdefault(fault, Counter())[what] += 1
    await unharmed(work, store)
    report(f"faults of s3 in {operation}", **{name: dict(said) for name, said in told.items()})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_each_fault_of_s3_at_each_call_harms_nothing(
    work: Work, store: Store, operation: str, fault: str
) -> None:
    """Behind no call, one, two, and so on, until the operation ends before the fault strikes."""
    told: Counter[str] = Counter()
    for after in range(1 if fault in AT_ONCE else MOST_CALLS):
        what = await disturb(work, operation, fault, after)
        told[what] += 1
        if what == "missed":
            break
    else:
        assert fault in AT_ONCE, f"{operation} makes over {MOST_CALLS} calls that {fault} strikes"
    await unharmed(work, store)
    report(f"{fault} in {operation}", **told)


async def test_a_place_that_cannot_be_read_is_not_taken_for_an_empty_one(work: Work) -> None:
    """What needs an earlier backup raises the place's error; a full one needs none."""
    work.s3.fail("get", times=None)
    with pytest.raises(TargetError, match="InternalError"):
        await work.kept.create(type="incremental")
    with pytest.raises(TargetError, match="InternalError"):
        await work.kept.restore(at=datetime.now(UTC), namespace=f"{work.namespace}-there")
    whole = await work.kept.create()
    work.s3.clear()
    await work.write()
    assert (await work.kept.create(type="incremental")).parent == whole.id
    assert (await work.kept.verify(level="full")).ok
