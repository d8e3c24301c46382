"""Ids whose random bytes are asked for many at a time: still nobody's but one's own."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta

import pytest
from fix_forks import ended_well, in_a_fork

from llmspell_dist.backup.repository import new_backup_id
from llmspell_dist.ids import new_id

pytestmark = pytest.mark.unit

COUNT = 300
"""More than are asked for at once."""


def _random_part(one: str) -> str:
    return one[14:]


def test_a_forked_child_makes_other_ids_than_its_parent() -> None:
    """Also in the same millisecond: nothing random is left over from the parent."""
    new_id()  # the parent has some in hand
    reading, writing = os.pipe()

    def child() -> None:
        with os.fdopen(writing, "w") as out:
            out.write("\n".join(new_id() for _ in range(COUNT)))

    pid = in_a_fork(child)
    os.close(writing)
    with os.fdopen(reading) as answer:
        childs = answer.read().split("\n")
    assert ended_well(pid)
    mine = [new_id() for _ in range(COUNT)]
    assert len({*map(_random_part, [*childs, *mine])}) == 2 * COUNT


def test_threads_make_different_ids() -> None:
    """Each takes its random bytes in one step."""
    made: list[str] = []

    def work() -> None:
        made.extend(new_id() for _ in range(5000))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*map(_random_part, made)}) == 20_000


def test_ids_of_backups_come_in_order_also_within_one_moment() -> None:
    """And while the clock steps back a little; what is older by far keeps its time."""
    moment = datetime.now(UTC)
    made = [new_backup_id(moment) for _ in range(50)]
    made += [new_backup_id(moment - timedelta(seconds=n)) for n in range(30)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert new_backup_id(moment - timedelta(days=1)) < made[0]
