"""Reading an agent: all parts as of one moment, in two or three round trips whatever their number.

The first script call reads the fixed keys; the tools named there may need a second one. A long
conversation follows as pages: elements of a list never change, so its first `count` ones are those
of that moment whatever is appended meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.agents.conversation import Conversation, Home
from llmspell_dist.agents.layout import CONVERSATION, FIXED_KEYS, MAPS, TOOLS, Parts, tool_keys
from llmspell_dist.agents.messages import MessageCodec
from llmspell_dist.agents.snapshot import Snapshot, encoded_map
from llmspell_dist.classes import StateClass
from llmspell_dist.errors import CorruptRecordError, InvalidArgumentError
from llmspell_dist.records import ENCRYPTED, Head, Kind, StoredRecord, unpack_head, unpack_meta
from llmspell_dist.records import unpack_record as _unpack_record
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.resp import pack
from llmspell_dist.state.core import field_of

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.reads import Reads
    from llmspell_dist.state.steps import Steps

__all__ = ["AgentReads", "Loaded"]

_INLINE_BYTES: Final = 64 * 1024
"""Elements up to this come in the script call."""
_PAGE_BYTES: Final = 512 * 1024
_PAGES_TOGETHER: Final = 4
_RESTARTS: Final = 8
_NOTHING: Final = Head(0, 0, "")


class Loaded(NamedTuple):
    """An agent as it was read."""

    snapshot: Snapshot
    parts: Parts
    inline: list[bytes] | None
    """The messages, if they came along."""
    now_ms: int
    """The server's time as of which it was read."""


class AgentReads:
    """Reads agents, as steps."""

    def __init__(self, core: Core, reads: Reads) -> None:
        self.core = core
        self.reads = reads

    def everything(self, scope: Scope, tail: int | None = None) -> Steps[Loaded | None]:
        """Return an agent with its messages, or the last `tail` of them; None if there is none."""
        scope_key = self.core.scope_key(scope)
        for _ in range(_RESTARTS):
            loaded = yield from self.parts(scope)
            if not loaded.snapshot.exists:
                return None
            head = loaded.snapshot.conversation
            start = 0 if tail is None else max(0, head.count - tail)
            if loaded.inline is not None:
                return loaded._replace(inline=loaded.inline[start:])
            raws = yield from self.messages(scope, loaded.snapshot, start, head.count)
            if len(raws) == head.count - start:
                return loaded._replace(inline=raws)
        raise CorruptRecordError(scope_key.scope.text, CONVERSATION, "its elements are not there")

    def parts(self, scope: Scope) -> Steps[Loaded]:
        """Return everything but long conversations, as of one moment."""
        scope_key = self.core.scope_key(scope)
        tools: list[str] = []
        for _ in range(_RESTARTS):
            keys = [*FIXED_KEYS, *(key for tool in tools for key in tool_keys(tool))]
            loaded = yield from self._read(scope_key, keys)
            if loaded is None:
                continue
            named = [tool for tool in loaded.parts.maps[TOOLS] if type(tool) is str and tool]
            if set(named) <= set(tools):
                return loaded
            tools = named
        raise CorruptRecordError(scope_key.scope.text, TOOLS, "its parts do not fit together")

    def _read(self, scope: ScopeKey, keys: Sequence[str]) -> Steps[Loaded | None]:
        """Read some keys in one call; None if what had to be read after it had changed."""
        text = scope.scope.text
        fields = [field_of(scope, key) for key in keys]
        call = self.core.read_call(scope, fields, most_bytes=_INLINE_BYTES, bulk=True)
        now, meta, *flat = yield call
        snapshot = Snapshot(self.core.keyspace.namespace, text, unpack_meta(meta, text).revision)
        values: dict[str, Any] = {}
        maps: dict[str, dict[str, Any]] = {key: {} for key in MAPS}
        inline: list[bytes] | None = []
        codec = self.core.values.codec
        for key, raw, elements in zip(keys, flat[::2], flat[1::2], strict=True):
            if raw is None:
                continue
            stored = _unpack_record(raw, text, key)
            snapshot.revisions[key] = stored.revision
            snapshot.kinds[key] = stored.kind
            snapshot.classes[key] = StateClass(stored.state_class)
            if key == CONVERSATION and stored.kind == Kind.LIST:
                snapshot.conversation = unpack_head(stored.payload, text, key)
                if elements is None:
                    inline = None
                elif len(elements) != snapshot.conversation.count:
                    return None
                else:
                    inline = self._opened(stored.state_class, elements, text)
                continue
            if stored.kind <= Kind.NUMBER:
                value = self.core.values.decode(
                    stored.kind, stored.flags, stored.payload, text, key
                )
            else:
                value = yield from self._composite(scope, key, stored, elements)
                if value is None:
                    return None
            if key == CONVERSATION:
                inline = [codec.encode(item) for item in _a(list, value, text, key)]
                snapshot.conversation = Head(len(inline), 0, "")
            elif key in MAPS:
                maps[key] = _a(dict, value, text, key)
                snapshot.maps[key] = encoded_map(codec, key, maps[key])
            else:
                values[key] = value
                snapshot.values[key] = codec.encode(value)
        return Loaded(snapshot, Parts(values, maps), inline, int(now))

    def _composite(
        self, scope: ScopeKey, key: str, stored: StoredRecord, elements: list[bytes] | None
    ) -> Steps[Any]:
        """Return the value of a list, map or large value; None if it changed meanwhile."""
        head = unpack_head(stored.payload, scope.scope.text, key)
        wanted = 2 * head.count if stored.kind == Kind.MAP else head.count
        if elements is not None:
            if len(elements) != wanted:
                return None
            return self.reads.join(stored, elements, scope, key)
        found = yield from self.reads.find(scope.scope, key)
        if found is None or found.stored.revision != stored.revision:
            return None
        return found.value

    def _opened(self, state_class: int, elements: list[bytes], scope: str) -> list[bytes]:
        """Decrypt messages that lie encrypted, each alone."""
        if state_class != StateClass.SENSITIVE:
            return elements
        plain = self.core.values.plain
        return [plain(ENCRYPTED, element, scope, CONVERSATION) for element in elements]

    def messages(
        self, scope: Scope, snapshot: Snapshot, start: int, stop: int
    ) -> Steps[list[bytes]]:
        """Return the bytes of some messages; fewer, if the conversation was replaced meanwhile."""
        head = snapshot.conversation
        if not head.generation or start >= stop:
            return []
        generation = self.core.keyspace.generation(scope, head.generation)
        step = max(1, _PAGE_BYTES * head.count // max(1, head.size))
        pages = [(first, min(first + step, stop) - 1) for first in range(start, stop, step)]
        raws: list[bytes] = []
        for at in range(0, len(pages), _PAGES_TOGETHER):
            replies = yield [
                Command(pack(b"LRANGE", generation, first, last), "LRANGE", bulk=True)
                for first, last in pages[at : at + _PAGES_TOGETHER]
            ]
            for reply in replies:
                raws += reply
        return self._opened(snapshot.classes[CONVERSATION], raws, snapshot.scope)

    def conversation(
        self, raws: Iterable[bytes], scope: str, missing: int = 0, home: Home | None = None
    ) -> Conversation:
        """Return messages that are decoded when somebody looks at them."""
        codec = MessageCodec(self.core.values.codec, scope, CONVERSATION)
        return Conversation(codec, raws, missing, home)


def _a(kind: type, value: Any, scope: str, key: str) -> Any:
    if type(value) is not kind:
        raise CorruptRecordError(scope, key, f"it is a {type(value).__name__}, no {kind.__name__}")
    return value


def check_count(argument: str, value: int) -> int:
    """Return how many messages somebody wants; anything but a count is refused."""
    if type(value) is not int or value < 0:
        raise InvalidArgumentError(argument, value, "must be an int of at least 0")
    return value
