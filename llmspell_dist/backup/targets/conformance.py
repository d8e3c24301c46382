"""What every target has to do, as checks that run on any; for targets of your own too.

::

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    def test_my_target(check):
        check(MyTarget(...))

Each check works below a prefix of its own, so the target need not be empty, and removes what it
has put. A check that fails raises AssertionError; its docstring is the rule.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, Final, cast

from llmspell_dist.backup.errors import ObjectMissingError
from llmspell_dist.backup.targets.base import Target
from llmspell_dist.backup.targets.unfinished import KeepsUnfinished
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.ids import new_id

__all__ = ["CHECKS", "Check"]

Check = Callable[[Target], None]

_LONG: Final = (16 << 20) + 4321
"""More than targets send in one piece."""
_MANY: Final = 1003
"""More than S3 lists, or deletes, in one call."""
_AT_ONCE: Final = 8
_BAD_NAMES: Final = (
    "",
    "/a",
    "a/",
    "a//b",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    "a\\b",
    "a\0b",
    "a b",
    "a\nb",
    "a~b",
    "ü",
    "x" * 300,
    "y/" * 500 + "y",
)


def _expect(held: object, rule: str) -> None:
    if not held:
        raise AssertionError(rule)


@contextmanager
def _below(target: Target) -> Iterator[str]:
    prefix = f"conformance/{new_id()}/"
    try:
        yield prefix
    finally:
        target.delete([info.name for info in target.list(prefix)])


def _pattern(size: int) -> bytes:
    """Return bytes in which a part that is missing, twice or elsewhere shows."""
    numbers = b"".join(i.to_bytes(8, "big") for i in range(-(-size // 8)))
    return numbers[:size]


def returns_what_was_put(target: Target) -> None:
    """Whatever bytes are put, get and open return just these."""
    with _below(target) as below:
        for number, data in enumerate((b"", b"\0", bytes(range(256)) * 5, _pattern(1 << 20))):
            name = f"{below}{number}"
            _expect(target.put(name, data) is True, "put returns True")
            _expect(target.get(name) == data, f"get returns the {len(data)} bytes that were put")
            with target.open(name) as file:
                _expect(file.read() == data, f"open reads the {len(data)} bytes that were put")


def puts_again(target: Target) -> None:
    """Put an object again: it stays whole, and counts as put later."""
    with _below(target) as below:
        name = f"{below}again"
        target.put(name, b"the same")
        first = target.head(name)
        _expect(target.put(name, b"the same") is True, "put of the same name returns True")
        second = target.head(name)
        _expect(first is not None and second is not None, "head knows what was put")
        if first is not None and second is not None:
            _expect(second.modified >= first.modified, "an object put again is no older")
        _expect(target.get(name) == b"the same", "the object is there after putting it again")


def streams_files(target: Target) -> None:
    """Files are read from their position to their end, however long, in pieces of any size."""
    with _below(target) as below:
        data = _pattern(_LONG)
        file = io.BytesIO(b"not this" + data)
        file.seek(8)
        target.put(f"{below}long", file)
        info = target.head(f"{below}long")
        _expect(info is not None and info.size == len(data), "head tells the size of a long file")
        got = bytearray()
        with target.open(f"{below}long") as found:
            while piece := found.read(777_777):
                got += piece
        _expect(got == data, "a long file comes back as it was")
        target.put(f"{below}pipe", cast("BinaryIO", _Pipe(data[: 1 << 20])))
        _expect(target.get(f"{below}pipe") == data[: 1 << 20], "a pipe is stored whole")
        target.put(f"{below}bytes", data)
        _expect(target.get(f"{below}bytes") == data, "long bytes come back as they were")


def stores_nothing_of_a_file_that_fails(target: Target) -> None:
    """If reading the file fails, nothing is stored and nothing stays behind."""
    with _below(target) as below:
        name = f"{below}broken"
        try:
            target.put(name, cast("BinaryIO", _Pipe(_pattern(_LONG), fails=True)))
        except _BrokenPipeError:
            pass
        else:
            raise AssertionError("put raises what reading the file has raised")
        _expect(target.head(name) is None, "an object that was not read to its end is not there")
        if isinstance(target, KeepsUnfinished):
            left = [found for found in target.unfinished() if found.name == name]
            _expect(not left, "nothing of it stays behind")


def says_what_is_missing(target: Target) -> None:
    """Read what is missing: an error names it, and its head is None."""
    with _below(target) as below:
        name = f"{below}missing"
        _expect(target.head(name) is None, "head of a missing object is None")
        for read in (target.get, target.open):
            try:
                read(name)
            except ObjectMissingError as error:
                _expect(error.name == name, "the error names the object")
            else:
                raise AssertionError("reading a missing object raises ObjectMissingError")


def leaves_alone_what_is_there(target: Target) -> None:
    """With only_new what is there stays, short or long, and False says so."""
    with _below(target) as below:
        for size in (3, _LONG):
            name = f"{below}{size}"
            _expect(target.put(name, _pattern(size), only_new=True) is True, "new: True")
            for other in (b"other", b"o" * _LONG):
                told = target.put(name, other, only_new=True)
                _expect(told is False, "only_new of what is there returns False")
            _expect(target.get(name) == _pattern(size), "only_new changes nothing that is there")


def lets_one_of_several_win(target: Target) -> None:
    """Of several who put at once with only_new one is told True, and its bytes are there."""
    with _below(target) as below, ThreadPoolExecutor(_AT_ONCE) as threads:
        target.put(f"{below}first", b"", only_new=True)  # a target may learn from its first
        for attempt in range(5):
            name = f"{below}{attempt}"
            each = [f"writer {number}".encode() for number in range(_AT_ONCE)]

            def put(data: bytes, name: str = name) -> bool:
                return target.put(name, data, only_new=True)

            won = [data for data, told in zip(each, threads.map(put, each), strict=True) if told]
            _expect(len(won) == 1, f"one of {_AT_ONCE} wins, not {len(won)}")
            _expect(target.get(name) == won[0], "what is there is the winner's")


def lists_in_order(target: Target) -> None:
    """Names come in order of their bytes, those with the prefix, those behind `after`."""
    flat = ("0", "A", "a", "a+b", "a-b", "a.b", "a0", "a=b", "a_b", "d-e", "d.e", "d0")
    put = (*flat, "b/c/d", "d/b", "d/c-d/e", "d/c.d", "d/c/d")
    with _below(target) as below:
        moment = datetime.now(UTC)
        for name in reversed(put):
            target.put(below + name, name.encode())
        found = list(target.list(below))
        listed = [info.name.removeprefix(below) for info in found]
        _expect(listed == sorted(put), f"names come in order: {listed}")
        for info in found:
            short = info.name.removeprefix(below)
            _expect(info.size == len(short), f"the size of {short} is told")
            _expect(info.modified.tzinfo is not None, "times are aware")
            near = abs(info.modified - moment) < timedelta(hours=1)
            _expect(near, "an object's time is that of its putting")
        for prefix in ("a", "a-", "d/", "d/c", "b/c/", "none", "a=b"):
            got = [i.name.removeprefix(below) for i in target.list(below + prefix)]
            _expect(got == [n for n in listed if n.startswith(prefix)], f"prefix {prefix}: {got}")
        for after in ("", *listed, "a", "d", "d/", "zz"):
            got = [i.name.removeprefix(below) for i in target.list(below, after=below + after)]
            _expect(got == [n for n in listed if n > after], f"after {after!r}: {got}")


def lists_and_removes_many(target: Target) -> None:
    """More objects than fit into one call are listed and removed."""
    with _below(target) as below, ThreadPoolExecutor(_AT_ONCE) as threads:
        names = [f"{below}{number:04}" for number in range(_MANY)]
        list(threads.map(lambda name: target.put(name, b"x"), names))
        _expect([info.name for info in target.list(below)] == names, "all are listed, in order")
        after = [info.name for info in target.list(below, after=names[-3])]
        _expect(after == names[-2:], "a listing may begin near the end")
        _expect(next(target.list(below)).name == names[0], "a listing need not be read to its end")
        target.delete([*names, f"{below}never-there"])
        _expect(not list(target.list(below)), "all are removed")


def removes(target: Target) -> None:
    """Delete just what is named; what is not there counts as removed."""
    with _below(target) as below:
        for name in ("a", "b", "c/d", "c/e"):
            target.put(below + name, b"x")
        target.delete([])
        target.delete([f"{below}a", f"{below}c/d", f"{below}never", f"{below}never/there"])
        left = [info.name.removeprefix(below) for info in target.list(below)]
        _expect(left == ["b", "c/e"], f"just these are removed: {left}")
        target.delete([f"{below}a"])
        target.put(f"{below}a", b"y")
        _expect(target.get(f"{below}a") == b"y", "a removed object can be put again")


def refuses_bad_names(target: Target) -> None:
    """Names that are not of the alphabet, or would lead elsewhere, are refused by every method."""
    calls: tuple[Callable[[str], object], ...] = (
        lambda name: target.put(name, b"x"),
        target.get,
        target.open,
        target.head,
        lambda name: target.delete([name]),
    )
    for name in _BAD_NAMES:
        for call in calls:
            _expect(_refuses(call, name), f"the name {name[:20]!r} is refused")
    for prefix in ("../", "/", "a/../", "a//", "ü"):
        _expect(_refuses(lambda p: list(target.list(p)), prefix), f"prefix {prefix!r} is refused")


def serves_threads(target: Target) -> None:
    """Several threads write, read and list at once and never get each other's."""

    def work(number: int) -> None:
        data = _pattern(100_000 + number)
        for turn in range(5):
            name = f"{below}{number}/{turn}"
            target.put(name, data)
            _expect(target.get(name) == data, "a thread gets what it has put")
            _expect(len(list(target.list(f"{below}{number}/"))) == turn + 1, "and lists it")
            target.delete([f"{below}{number}/none"])

    with _below(target) as below, ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(work, range(_AT_ONCE)))


def takes_back_what_is_unfinished(target: Target) -> None:
    """Take back what killed writers left, and nothing that is stored."""
    if not isinstance(target, KeepsUnfinished):
        return
    with _below(target) as below:
        target.put(f"{below}there", b"x")
        target.abort_unfinished(timedelta(days=1))
        _expect(target.get(f"{below}there") == b"x", "what is stored stays")


def closes_twice(target: Target) -> None:
    """Close does no harm when called twice."""
    target.close()
    target.close()


CHECKS: Final[tuple[Check, ...]] = (
    returns_what_was_put,
    puts_again,
    streams_files,
    stores_nothing_of_a_file_that_fails,
    says_what_is_missing,
    leaves_alone_what_is_there,
    lets_one_of_several_win,
    lists_in_order,
    lists_and_removes_many,
    removes,
    refuses_bad_names,
    serves_threads,
    takes_back_what_is_unfinished,
    closes_twice,
)
"""All of them; the last closes the target."""


def _refuses(call: Callable[[str], object], name: str) -> bool:
    try:
        call(name)
    except InvalidArgumentError:
        return True
    return False


class _BrokenPipeError(Exception):
    """Reading goes no further."""


class _Pipe:
    """A file that knows no size, gives less than asked for, and may fail at its end."""

    def __init__(self, data: bytes, *, fails: bool = False) -> None:
        self._rest = memoryview(data)
        self._fails = fails

    def read(self, size: int = -1, /) -> bytes:
        """Return at most 300,000 bytes."""
        if not self._rest and self._fails:
            raise _BrokenPipeError
        size = min(size, 300_000) if size >= 0 else len(self._rest)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)
