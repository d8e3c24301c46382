"""A long listing as one JSON document, also when it is cut off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from llmspell_dist.cli.output import Output

pytestmark = pytest.mark.unit


async def _items(count: int, *, fails: bool) -> AsyncIterator[int]:
    for number in range(count):
        yield number
    if fails:
        raise ValueError("cut off")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_stream_is_one_document(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """With what stands before it, and how it ended."""
    output = Output(as_json=True, quiet=False)
    asyncio.run(output.stream({"scope": "s"}, "keys", _items(count, fails=False), lambda: 2))
    document = json.loads(capsys.readouterr().out)
    keys = list(range(count))
    assert document == {"scope": "s", "keys": keys, "unreadable": 2, "complete": True}


def test_a_stream_that_is_cut_off_is_still_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    """Which says that it is not complete; the error goes on its way."""
    output = Output(as_json=True, quiet=False)
    with pytest.raises(ValueError, match="cut off"):
        asyncio.run(output.stream({"scope": "s"}, "keys", _items(2, fails=True), lambda: 0))
    document = json.loads(capsys.readouterr().out)
    assert (document["keys"], document["complete"]) == ([0, 1], False)


def test_rows_on_a_pipe_have_tabs_and_no_heading(capsys: pytest.CaptureFixture[str]) -> None:
    """So that cut and awk work; a tab inside a cell is escaped."""
    Output(as_json=False, quiet=False).table(("A", "B"), [("1", "x\ty"), ("2", "z")])
    assert capsys.readouterr().out == "1\tx\\ty\n2\tz\n"


def test_quiet_leaves_confirmations_out(capsys: pytest.CaptureFixture[str]) -> None:
    """A script looks at the exit code."""
    Output(as_json=False, quiet=True).say("done")
    assert capsys.readouterr().out == ""
    Output(as_json=False, quiet=False).say("done")
    assert capsys.readouterr().out == "done\n"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_ids_are_never_folded(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other commands take them, so other columns give way; those never vanish."""
    monkeypatch.setenv("COLUMNS", str(width))
    ids = ("20261126T231815Z-04ee0914", "20261126T231816Z-04ee0915")
    row = (ids[0], "incremental", "2026-11-26T23:18:15.123+00:00", "12", "3", "1.2 kB", ids[1])
    output = Output(as_json=False, quiet=False)
    output.terminal = True
    columns = ("ID", "TYPE", "MOMENT", "SCOPES", "RECORDS", "SIZE", "PARENT", "TAGS", "MADE FOR")
    output.table(columns, [(*row, "why=release 7", "manual, some scopes")])
    shown = capsys.readouterr().out
    assert all(one in shown for one in (*ids, "TYPE", "TAGS"))
    assert max(map(len, shown.splitlines())) <= max(width, 120)
