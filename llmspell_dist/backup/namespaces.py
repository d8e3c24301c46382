"""Another namespace on the same server: where a restore may go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmspell_dist.errors import NamespaceMismatchError
from llmspell_dist.keys import KeySpace
from llmspell_dist.records import FORMAT
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.resp import pack
from llmspell_dist.state.core import Core

if TYPE_CHECKING:
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["in_namespace"]


async def in_namespace(driver: AsyncDriver, namespace: str) -> AsyncDriver:
    """Return a driver of another namespace, which is entered if it is new."""
    core = driver.core
    keyspace = KeySpace(namespace, core.keyspace.shards)
    other = Core(keyspace, core.values, core.rules, core.clock, actor=core.own_actor)
    other.server = core.server
    ctl = keyspace.ctl("0")
    ask = Command(pack(b"HMGET", ctl, b"format", b"shards"), "HMGET")
    found = await driver.execute(ask)
    if None in found:
        for name, value in ((b"format", FORMAT), (b"shards", keyspace.shards)):
            await driver.execute(Command(pack(b"HSETNX", ctl, name, value), "HSETNX"))
        found = await driver.execute(ask)
    stored_format, shards = map(int, found)
    if stored_format != FORMAT:
        raise NamespaceMismatchError(namespace, "format", FORMAT, stored_format)
    if shards != keyspace.shards:
        other.use_shards(shards)
    return driver.over(other)
