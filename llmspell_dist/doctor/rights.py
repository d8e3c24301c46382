"""Which rights the library needs, as a table, and how to find out which of them a user lacks.

Two ways, the same requests: ``ACL DRYRUN`` tells without doing (Redis 7, Valkey; itself needs a
right). Otherwise each request is tried. The server checks rights before it looks at a request's
arguments, so the requests of this table are ones that are refused afterwards, or find nothing; the
few that do write, write to a key that nobody else uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from llmspell_dist.doctor.facts import MissingRight
from llmspell_dist.keys import KeySpace
from llmspell_dist.scope import Scope

__all__ = ["NEEDS", "Need", "Question", "advice", "missing_right", "questions"]


@dataclass(frozen=True, slots=True)
class Need:
    """One command that the library sends, or that its scripts call."""

    name: str
    """As an ACL rule spells it: ``hget``, ``client|id``."""
    words: str
    """A harmless request; KEY is a scratch key, NONE and OTHER keys that do not exist."""
    purpose: str = "the scripts"
    essential: bool = True

    def request(self, key: str, channel: str) -> tuple[str, ...]:
        """Return the request, with names in place."""
        names = {"KEY": key, "NONE": f"{key}-none", "OTHER": f"{key}-other", "CHANNEL": channel}
        return tuple(names.get(word, word) for word in self.words.split(" "))


def _need(words: str, purpose: str = "the scripts", *, essential: bool = True) -> Need:
    first, second = (*words.split(" "), "")[:2]
    name = f"{first}|{second}" if first in {"CLIENT", "SCRIPT", "CONFIG", "MEMORY"} else first
    return Need(name.lower(), words, purpose, essential)


_CONNECTING: Final = "connecting"
_OPTIONAL: Final = (
    _need("INFO server", "knowing the server's version and replicas", essential=False),
    _need("CLIENT ID", "ending what a lost connection left behind", essential=False),
    _need("CLIENT KILL ID 0", "ending what a lost connection left behind", essential=False),
    _need("CLIENT LIST", "a sidecar that tells who is connected", essential=False),
    _need("CLIENT SETNAME llmspell-doctor", "being listed by name", essential=False),
    _need("WAIT 0 1", "waiting for replicas (state class Critical)", essential=False),
    _need("WAITAOF 0 0 1", "waiting for the disk (state class Critical)", essential=False),
    _need("PUBLISH CHANNEL x", "telling watchers at once", essential=False),
    _need("SUBSCRIBE CHANNEL", "waiting for a lease", essential=False),
    _need("UNSUBSCRIBE CHANNEL", "waiting for a lease", essential=False),
    _need("PUBSUB NUMSUB CHANNEL", "telling waiters that are gone", essential=False),
    _need("PSUBSCRIBE CHANNEL", "hearing events live", essential=False),
    _need("PUNSUBSCRIBE CHANNEL", "hearing events live", essential=False),
    *(
        _need(words, "durable events", essential=False)
        for words in (
            "XGROUP DESTROY NONE g",
            "XREADGROUP GROUP g c STREAMS NONE >",
            "XACK NONE g 0-1",
            "XCLAIM NONE g c 0 0-1",
            "XPENDING NONE g",
            "XINFO GROUPS NONE",
            "XDEL NONE 0-1",
            "GET KEY",
            "SET KEY v NX XX",
        )
    ),
    *(
        _need(words, "correlations and recorded hooks", essential=False)
        for words in (
            "LTRIM NONE 0 0",
            "LINDEX NONE -1",
            "ZREMRANGEBYSCORE NONE 0 1",
            "ZREVRANGEBYSCORE NONE 1 0",
            "ZRANGEBYLEX NONE - +",
            "ZREVRANGEBYLEX NONE + -",
            "ZLEXCOUNT NONE - +",
        )
    ),
    _need("HKEYS NONE", "backups that hold events", essential=False),
    _need("TYPE NONE", "backups that hold events", essential=False),
    _need("CONFIG GET maxmemory", "this diagnosis", essential=False),
    _need("MEMORY USAGE NONE", "`stat`: bytes per log entry", essential=False),
)
NEEDS: Final = (
    _need("PING", _CONNECTING),
    _need("TIME", _CONNECTING),
    _need("SCRIPT LOAD return(1)", _CONNECTING, essential=False),
    _need("EVAL return(1) 1 KEY", "every commit"),
    _need(f"EVALSHA {'0' * 40} 1 KEY", "every commit"),
    # HSETNX first: what follows then finds a hash, and refuses to add a list or set element.
    _need("HSETNX KEY f v", "making a namespace"),
    _need("HGET KEY f", "reading"),
    _need("HMGET KEY f", "reading"),
    _need("HGETALL KEY", "reading"),
    _need("LRANGE NONE 0 0", "reading lists"),
    _need("XRANGE NONE - + COUNT 1", "reading the log"),
    _need("XREVRANGE NONE + - COUNT 1", "reading the log"),
    _need("XLEN NONE", "reading the log"),
    _need("ZSCAN NONE 0", "listing scopes"),
    _need("HSCAN KEY 0", "listing keys"),
    _need("HSET KEY f v x"),
    _need("HDEL KEY none"),
    _need("HEXISTS KEY f"),
    _need("HLEN KEY"),
    _need("HVALS KEY", "leases"),
    _need("HINCRBY KEY f 1", "leases"),
    _need("HSTRLEN KEY f"),
    _need("RPUSH KEY v"),
    _need("LLEN NONE"),
    _need("SADD KEY m"),
    _need("SREM NONE m"),
    _need("SPOP NONE"),
    _need("SRANDMEMBER NONE"),
    _need("SCARD NONE"),
    _need("XADD NONE 0-0 f v", "the log entry of every commit"),
    _need("XTRIM NONE MAXLEN 0", "shortening the log"),
    _need("ZADD KEY no-number m"),
    _need("ZREM NONE m"),
    _need("ZCARD NONE"),
    _need("ZCOUNT NONE 0 1"),
    _need("ZRANGE NONE 0 0"),
    _need("ZRANK NONE m", "leases"),
    _need("ZRANGEBYSCORE NONE 0 1"),
    _need("EXISTS KEY"),
    _need("PEXPIRE KEY no-number"),
    _need("PERSIST NONE"),
    _need("RENAME NONE OTHER", "clearing and moving scopes"),
    _need("COPY NONE OTHER", "copying scopes"),
    _need("UNLINK NONE", "removing what was replaced"),
    *_OPTIONAL,
)

UNTRIED: Final = frozenset({"subscribe", "unsubscribe", "psubscribe", "punsubscribe"})
"""What cannot be tried on a connection that is used for more; ``ACL DRYRUN`` tells."""
WRITES: Final = frozenset({"hsetnx", "rpush", "sadd"})
"""What leaves a key behind when it is tried out; removing that needs UNLINK."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request whose refusal shows that a right is missing."""

    need: Need
    request: tuple[str, ...]
    pattern: str
    """The rule for keys or channels that it would take."""


def scratch_key(keyspace: KeySpace, token: str) -> str:
    """Return a key inside the namespace that nothing uses: one of a scope that never existed."""
    return keyspace.scope(Scope.custom(f"doctor-{token}")).decode()


def questions(keyspace: KeySpace, token: str) -> Iterator[Question]:
    """Yield every request to ask or try: each command, and each kind of key."""
    key = scratch_key(keyspace, token)
    pattern = f"{key.partition(':{')[0]}:*"
    for need in NEEDS:
        yield Question(need, need.request(key, key), pattern)
    writes = next(need for need in NEEDS if need.name == "hset")
    for sample in _sample_keys(keyspace):
        # Refused for its number of arguments, so nothing happens to the key, whatever it is.
        yield Question(writes, ("HSET", sample, "f", "v", "x"), pattern)


def _sample_keys(keyspace: KeySpace) -> Iterator[str]:
    """Yield one key of each kind, as users restrict them: by shard, by scope."""
    shard = "0"
    for key in (
        keyspace.log(shard),
        keyspace.due(shard),
        keyspace.ctl(shard),
        keyspace.trash(shard),
        keyspace.ring(shard, "doctor"),
        keyspace.scope(Scope.global_()),
        keyspace.scope(Scope.agent("doctor")),
        keyspace.ttl(Scope.agent("doctor")),
        keyspace.generation(Scope.agent("doctor"), "doctor"),
    ):
        yield key.decode()


def missing_right(question: Question, said: str) -> MissingRight | None:
    """Return what a reply says about the right; `said` is DRYRUN's answer or an error reply.

    None if the right is there, or the server does not know the command.
    """
    text = said.lower()
    if "permission" not in text:
        return None
    need = question.need
    if "run the" in text:
        return MissingRight("command", need.name, need.purpose, need.essential)
    kind = "channel" if "channel" in text else "key"
    purpose = "telling watchers at once" if kind == "channel" else "the keys of the namespace"
    return MissingRight(kind, question.pattern, purpose, need.essential and kind == "key")


def distinct(missing: Iterable[MissingRight | None]) -> tuple[MissingRight, ...]:
    """Return each missing right once, the essential ones first."""
    found: dict[tuple[str, str], MissingRight] = {}
    for right in missing:
        if right is not None:
            place = (right.kind, right.name)
            if place not in found or right.essential:
                found[place] = right
    return tuple(sorted(found.values(), key=lambda right: not right.essential))


def advice(user: str, missing: Iterable[MissingRight]) -> str:
    """Return the command that an administrator types to grant what is missing."""
    signs = {"command": "+", "key": "~", "channel": "&"}
    rules = " ".join(f"{signs[right.kind]}{right.name}" for right in missing)
    return f"ACL SETUSER {user} {rules}"
