"""Trying things out on a server, without leaving anything behind: rights, and a whole commit."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from llmspell_dist.doctor.facts import CommitTrial, MissingRight, Rights
from llmspell_dist.doctor.rights import (
    UNTRIED,
    WRITES,
    Question,
    distinct,
    missing_right,
    questions,
    scratch_key,
)
from llmspell_dist.doctor.server import Server
from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.keys import KeySpace
from llmspell_dist.scope import Scope
from llmspell_dist.state.core import Core
from llmspell_dist.state.driver import AsyncDriver
from llmspell_dist.state.manager import StateManager

__all__ = ["try_commit", "try_rights"]

SCRATCH_MS: Final = 60_000
"""If this process ends in the middle, what it left goes after so long."""
_SCOPE: Final = Scope.custom("doctor")


async def try_rights(server: Server, user: str, *, writable: bool) -> Rights:
    """Return which rights `user`, who is logged in, lacks.

    The server is asked where it can be (``ACL DRYRUN``); otherwise each request is tried.
    """
    token = secrets.token_hex(8)
    asked = list(questions(server.keyspace, token))
    if await server.said("ACL", "DRYRUN", user, "PING") == "OK":
        said = await asyncio.gather(
            *[server.said("ACL", "DRYRUN", user, *question.request) for question in asked]
        )
        return Rights(user, "dryrun", distinct(map(missing_right, asked, said)))
    if not writable:
        return Rights(user, "none")
    return Rights(user, "probe", await _try_out(server, asked, token))


async def _try_out(
    server: Server, asked: Sequence[Question], token: str
) -> tuple[MissingRight, ...]:
    """Send each request on the scratch key, and remove that; leave writes out if it cannot be."""
    key = scratch_key(server.keyspace, token)
    can_remove = await server.ask("UNLINK", key) is not None
    left_out = UNTRIED if can_remove else UNTRIED | WRITES
    usable = [question for question in asked if question.need.name not in left_out]
    try:
        # One after the other: the first leaves a hash, so that later ones fail before they write.
        said = [await server.said(*question.request) for question in usable]
    finally:
        await server.ask("UNLINK", key)
    return distinct(map(missing_right, usable, said))


async def try_commit(server: Server) -> CommitTrial:
    """Set, read and delete in a namespace of its own, and leave nothing of it."""
    core = _scratch_core(server)
    name, keys = core.keyspace.namespace, _keys(server, core.keyspace)
    try:
        trial = await _round(server, core, keys)
    except SpellError as error:
        said = str(error)
        if "permission" in said.lower() and "key" in said.lower():
            # The rights check has asked about the keys of the real namespace.
            said = f"the user may not touch the scratch namespace {name}"
            trial = CommitTrial(ok=False, tried=False, said=said)
        else:
            trial = CommitTrial(ok=False, said=said)
    finally:
        with contextlib.suppress(SpellError):
            await server.ask("UNLINK", *keys)
    left = await server.ask("EXISTS", *keys)
    return replace(trial, left_behind=int(left or 0), namespace=name)


async def _round(server: Server, core: Core, keys: Sequence[bytes]) -> CommitTrial:
    state = StateManager(AsyncDriver(core, server.lanes))
    value = {"written": "by the doctor"}
    await state.set(_SCOPE, "trial", value, ttl=SCRATCH_MS / 1000)
    await asyncio.gather(*[server.ask("PEXPIRE", key, SCRATCH_MS) for key in keys])
    if await state.get(_SCOPE, "trial") != value:
        return CommitTrial(ok=False, said="the value did not come back")
    if not await state.delete(_SCOPE, "trial"):
        return CommitTrial(ok=False, said="the value could not be deleted")
    return CommitTrial(ok=True)


def _scratch_core(server: Server) -> Core:
    """Return what makes the requests for a namespace that nobody uses, over the same connection."""
    core, token = server.assembly.core, secrets.token_hex(4)
    try:
        keyspace = KeySpace(f"{core.keyspace.namespace}-doctor-{token}")
    except InvalidArgumentError:  # too long
        keyspace = KeySpace(f"doctor-{token}")
    return Core(keyspace, core.values, core.rules, core.clock, server=core.server)


def _keys(server: Server, keyspace: KeySpace) -> list[bytes]:
    """Return every key that the trial can make."""
    shard = "0"
    return [
        keyspace.scope(_SCOPE),
        keyspace.ttl(_SCOPE),
        keyspace.generations(_SCOPE),
        keyspace.log(shard),
        keyspace.due(shard),
        keyspace.ctl(shard),
        keyspace.trash(shard),
        keyspace.ring(shard, server.lanes.fast.ring.client),
    ]
