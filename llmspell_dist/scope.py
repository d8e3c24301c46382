r"""Scopes: whose state a key belongs to, as a value and as the text that stands in Redis.

The text is ``global``, ``<kind>:<id>`` or ``workflow:<id>/step:<name>``. In ids the characters
``% : / { } * ? [ ] \``, control characters and whitespace are percent-encoded, so no id can reach
into another scope or widen a pattern. Printing and parsing are inverse to each other.
"""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum
from typing import Final, NoReturn, final
from zlib import crc32

from llmspell_dist.errors import InvalidScopeError

__all__ = ["MAX_SCOPE_BYTES", "Scope", "ScopeKind", "decode_part", "encode_part", "shard_of"]

MAX_SCOPE_BYTES: Final = 512
_RESERVED: Final = frozenset("%:/{}*?[]\\")
_STEP: Final = "/step:"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.~@+=-]+").fullmatch


def _must_encode(char: str) -> bool:
    return char in _RESERVED or char.isspace() or unicodedata.category(char) == "Cc"


def encode_part(raw: str, argument: str = "id") -> str:
    """Return `raw`, NFC-normalised, with every reserved character percent-encoded.

    Raises InvalidScopeError, naming `argument`, if it is not a str, empty or not valid Unicode.
    """
    if not isinstance(raw, str):
        raise InvalidScopeError(argument, raw, "must be a str")
    if not raw:
        raise InvalidScopeError(argument, raw, "must not be empty")
    if len(raw) > 2 * MAX_SCOPE_BYTES:  # before the work that its length costs
        raise InvalidScopeError(argument, raw, f"must be at most {MAX_SCOPE_BYTES} bytes")
    try:
        raw.encode()
    except UnicodeEncodeError:
        rule = "must be valid Unicode (no lone surrogates)"
        raise InvalidScopeError(argument, raw, rule) from None
    return _percent_encode(unicodedata.normalize("NFC", raw))


def _percent_encode(raw: str) -> str:
    if _PLAIN(raw):
        return raw
    return "".join(
        "".join(f"%{byte:02X}" for byte in char.encode()) if _must_encode(char) else char
        for char in raw
    )


def decode_part(text: str, argument: str = "scope") -> str:
    """Return what `encode_part` printed as `text`, NFC-normalised.

    Only the one canonical spelling is understood: a raw reserved character, a lower-case escape or
    an escape that is not needed raises InvalidScopeError.
    """
    if not text:
        raise InvalidScopeError(argument, text, "must not have an empty part")
    raw = text
    try:
        if "%" in text:
            raw = _percent_decode(text)
        canonical = _percent_encode(raw) == text
    except ValueError:  # includes UnicodeError
        canonical = False
    if not canonical:
        rule = "must have reserved characters percent-encoded, in upper case"
        raise InvalidScopeError(argument, text, rule)
    # Normalised after decoding: in "%3A" + U+0300 the accent must not join the escape's "A".
    return unicodedata.normalize("NFC", raw)


def _percent_decode(text: str) -> str:
    head, *tails = text.split("%")
    out = bytearray(head.encode())
    for tail in tails:
        if len(tail) < 2:
            raise ValueError(tail)
        out.append(int(tail[:2], 16))
        out += tail[2:].encode()
    return out.decode()


class ScopeKind(StrEnum):
    """The nine kinds of scope."""

    GLOBAL = "global"
    USER = "user"
    SESSION = "session"
    AGENT = "agent"
    TOOL = "tool"
    WORKFLOW = "workflow"
    STEP = "step"
    HOOK = "hook"
    CUSTOM = "custom"


_WITH_ID: Final = {
    kind.value: kind for kind in ScopeKind if kind not in (ScopeKind.GLOBAL, ScopeKind.STEP)
}


@final
class Scope:
    """Whose state it is: everybody's, or that of one user, session, agent, tool, workflow or other.

    Immutable, hashable, ordered by its text. ``str(scope)`` is the text in Redis;
    `Scope.parse` reads it back. Constructors take any non-empty Unicode id and encode it.

    >>> str(Scope.step("w1", "plan"))
    'workflow:w1/step:plan'
    >>> str(Scope.agent("a:b"))
    'agent:a%3Ab'
    """

    __slots__ = ("_hash", "id", "kind", "size", "step_name", "text", "workflow_text")

    kind: ScopeKind
    id: str
    """The id, NFC-normalised, not encoded; of a step its workflow's; empty for global."""
    step_name: str | None
    """The name of a step; None for every other kind."""
    text: str
    """The printed scope; ``str(scope)``."""
    size: int
    """Bytes of the printed scope."""
    workflow_text: str
    """What decides the shard: the printed scope, for a step that of its workflow."""
    _hash: int

    def __init__(self, kind: ScopeKind, id: str = "", step_name: str | None = None) -> None:  # noqa: A002 - the field's word
        try:
            kind = ScopeKind(kind)
        except ValueError:
            rule = f"must be one of {', '.join(ScopeKind)}"
            raise InvalidScopeError("kind", kind, rule) from None
        if kind is ScopeKind.GLOBAL and id != "":
            raise InvalidScopeError("id", id, "must be empty for the global scope")
        if (kind is ScopeKind.STEP) != (step_name is not None):
            raise InvalidScopeError("step_name", step_name, "belongs to a step, and only to a step")
        name = None
        if kind is ScopeKind.GLOBAL:
            text = owner = "global"
        elif step_name is not None:
            owner = f"workflow:{encode_part(id)}"
            text = f"{owner}{_STEP}{encode_part(step_name, 'step_name')}"
            name = unicodedata.normalize("NFC", step_name)
        else:
            text = owner = f"{kind.value}:{encode_part(id)}"
        size = len(text.encode())
        if size > MAX_SCOPE_BYTES:
            rule = f"must be at most {MAX_SCOPE_BYTES} bytes when printed"
            raise InvalidScopeError("scope", text, rule)
        put = object.__setattr__
        put(self, "kind", kind)
        put(self, "id", unicodedata.normalize("NFC", id))
        put(self, "step_name", name)
        put(self, "text", text)
        put(self, "size", size)
        put(self, "workflow_text", owner)
        put(self, "_hash", hash(text))

    # -- constructors

    @classmethod
    def global_(cls) -> Scope:
        """Return the one scope that everybody shares."""
        return _GLOBAL

    @classmethod
    def user(cls, user_id: str) -> Scope:
        """Return the scope of a user."""
        return cls(ScopeKind.USER, user_id)

    @classmethod
    def session(cls, session_id: str) -> Scope:
        """Return the scope of a session; ids like ``<user>_<rest>`` belong to that user."""
        return cls(ScopeKind.SESSION, session_id)

    @classmethod
    def agent(cls, agent_id: str) -> Scope:
        """Return the scope of an agent."""
        return cls(ScopeKind.AGENT, agent_id)

    @classmethod
    def tool(cls, tool_id: str) -> Scope:
        """Return the scope of a tool."""
        return cls(ScopeKind.TOOL, tool_id)

    @classmethod
    def workflow(cls, workflow_id: str) -> Scope:
        """Return the scope of a workflow."""
        return cls(ScopeKind.WORKFLOW, workflow_id)

    @classmethod
    def step(cls, workflow_id: str, name: str) -> Scope:
        """Return the scope of one step of a workflow; it lies in the workflow's shard."""
        return cls(ScopeKind.STEP, workflow_id, name)

    @classmethod
    def hook(cls, hook_id: str) -> Scope:
        """Return the scope of a hook."""
        return cls(ScopeKind.HOOK, hook_id)

    @classmethod
    def custom(cls, name: str) -> Scope:
        """Return a scope of your own making."""
        return cls(ScopeKind.CUSTOM, name)

    # -- text

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Return the scope that was printed as `text`.

        Raises InvalidScopeError if `text` is not the canonical spelling of a scope.
        """
        if not isinstance(text, str):
            raise InvalidScopeError("scope", text, "must be a Scope or its text")
        if text == "global":
            return _GLOBAL
        prefix, colon, rest = text.partition(":")
        kind = _WITH_ID.get(prefix)
        if not colon or kind is None:
            known = ", ".join(f"{name}:<id>" for name in _WITH_ID)
            rule = f"must be global or one of {known}, workflow:<id>{_STEP}<name>"
            raise InvalidScopeError("scope", text, rule)
        if kind is ScopeKind.WORKFLOW and _STEP in rest:
            workflow, _, name = rest.partition(_STEP)
            return cls(ScopeKind.STEP, decode_part(workflow), decode_part(name))
        return cls(kind, decode_part(rest))

    @classmethod
    def coerce(cls, scope: str | Scope) -> Scope:
        """Return `scope` as a Scope; texts seen lately cost one dictionary look-up."""
        if type(scope) is Scope:
            return scope
        try:
            return _PARSED[scope]
        except (KeyError, TypeError):
            pass  # and outside of it, so that an error does not show this one
        parsed = cls.parse(scope)
        if len(_PARSED) >= _PARSED_LIMIT:
            # Clearing costs less than keeping an order, and single evictions from the front of a
            # dict get slower with each one.
            _PARSED.clear()
        _PARSED[str(scope)] = parsed
        return parsed

    def parent(self) -> Scope | None:
        """Return the scope that this one is part of; None for global.

        A step belongs to its workflow, a session ``<user>_<rest>`` to that user, the rest to
        global.
        """
        if self.kind is ScopeKind.GLOBAL:
            return None
        if self.kind is ScopeKind.STEP:
            return Scope.workflow(self.id)
        if self.kind is ScopeKind.SESSION:
            user, underscore, _ = self.id.partition("_")
            if user and underscore:
                return Scope.user(user)
        return _GLOBAL

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        if self.kind is ScopeKind.GLOBAL:
            return "Scope.global_()"
        if self.step_name is not None:
            return f"Scope.step({self.id!r}, {self.step_name!r})"
        return f"Scope.{self.kind.value}({self.id!r})"

    # -- value semantics

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if type(other) is not Scope:
            return NotImplemented
        return self.text == other.text

    def __lt__(self, other: Scope) -> bool:
        if type(other) is not Scope:
            return NotImplemented
        return self.text < other.text

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Scope cannot be changed ({name})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Scope cannot be changed ({name})")

    def __reduce__(self) -> tuple[object, ...]:
        return Scope, (self.kind, self.id, self.step_name)


_GLOBAL: Final = Scope(ScopeKind.GLOBAL)
_PARSED: Final[dict[str, Scope]] = {}
_PARSED_LIMIT: Final = 8192


def shard_of(scope: Scope, shards: int) -> str:
    """Return the number, as text, of the shard that `scope` lies in.

    A workflow's steps lie with the workflow. Stable across processes and releases.
    """
    if shards == 1:
        return "0"
    return str(crc32(scope.workflow_text.encode()) % shards)
