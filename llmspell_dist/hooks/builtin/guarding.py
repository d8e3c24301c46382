"""Hooks that refuse: security, validation, rate limits.

Register them with ``on_failure="cancel"``, so that nothing passes when they themselves fail.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from itertools import count
from math import isfinite
from time import monotonic
from typing import Any, Final

from llmspell_dist.codec import Codec
from llmspell_dist.errors import CodecError, InvalidArgumentError, LimitError
from llmspell_dist.fork import child_safe_lock
from llmspell_dist.hooks.builtin.secrets import PATTERNS, masked, names_secret, redacted
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.hook import HookMetadata, Priority
from llmspell_dist.hooks.points import HookPoint
from llmspell_dist.hooks.results import Cancel, HookResult, Modified, Retry
from llmspell_dist.typed import is_model, to_builtin

__all__ = ["RateLimitHook", "SecurityHook", "ValidationHook"]

MAX_BYTES: Final = 1024 * 1024
_BUCKETS: Final = 10_000
_NUMBERS: Final = count(1)
_SPECIAL: Final = frozenset("*?[")
_NO_VALUE: Final = ("increment", "exists")
"""Operations on a key whose `value` is not what is stored there."""


class SecurityHook:
    """Lets only allowed scopes and keys through, and keeps secrets out of what is stored.

    For ``BEFORE_STATE_WRITE`` and ``BEFORE_STATE_READ``; with secrets "redact" also for
    ``AFTER_STATE_READ``. `scopes` and `keys` are globs of what is allowed (None: all), `denied` of
    scopes that are not whatever else is said. Where keys are restricted, what reaches all keys of a
    scope is refused: `clear`, `copy_scope`, `move_scope`, and a `watch` whose prefix does not end
    before an allowed glob's ``*``. `secrets`: "redact" masks what looks like one, in names of maps
    too, and whatever is stored under a key that is named as one (``password``, ``mail.api_key``),
    "refuse" cancels the write, None does not look. Behind a typed read the value stays of its type;
    if a mask does not fit into that, the read is cancelled.
    """

    metadata = HookMetadata("security", "allowed scopes and keys, no secrets", Priority.HIGHEST)

    def __init__(
        self,
        *,
        scopes: Iterable[str] | None = None,
        keys: Iterable[str] | None = None,
        denied: Iterable[str] = (),
        max_bytes: int | None = None,
        secrets: str | None = "redact",
        patterns: Iterable[re.Pattern[str]] = PATTERNS,
    ) -> None:
        if secrets not in ("redact", "refuse", None):
            raise InvalidArgumentError("secrets", secrets, "must be redact, refuse or None")
        self._scopes = None if scopes is None else _globs("scopes", scopes)
        self._keys = None if keys is None else _globs("keys", keys)
        self._denied = _globs("denied", denied)
        self._size = None if max_bytes is None else ValidationHook(max_bytes=max_bytes)
        self._secrets = secrets
        self._patterns = tuple(patterns)

    def execute(self, ctx: HookContext) -> HookResult | None:
        """Refuse, redact, or say nothing."""
        for name in ("scope", "target"):
            scope = ctx.data.get(name)
            if scope is not None and not self._may(str(scope)):
                return Cancel(f"{name} {scope} is not allowed")
        key = ctx.data.get("key")
        if self._keys is not None and (wrong := _refused_key(ctx, key, self._keys)) is not None:
            return Cancel(wrong)
        if self._size is not None and (too_large := self._size.execute(ctx)) is not None:
            return too_large
        if self._secrets is None or "value" not in ctx.data:
            return None
        value = ctx.data["value"]
        whole = key is not None and ctx.operation_type not in _NO_VALUE
        if whole and names_secret(str(key)):
            clean = masked(value, self._patterns)
        else:
            clean = redacted(value, self._patterns)
        if clean is value:
            return None
        unfit = ctx.point == HookPoint.AFTER_STATE_READ and is_model(value) and not is_model(clean)
        if self._secrets == "refuse" or unfit:
            return Cancel("the value holds what looks like a secret")
        return Modified({"value": clean})

    def _may(self, scope: str) -> bool:
        if _matches(scope, self._denied):
            return False
        return self._scopes is None or _matches(scope, self._scopes)


def _refused_key(ctx: HookContext, key: Any, allowed: tuple[str, ...]) -> str | None:
    """Return why an operation reaches keys that are not allowed, None if it does not."""
    if key is not None:
        return None if _matches(str(key), allowed) else f"key {key} is not allowed"
    if ctx.point == HookPoint.BEFORE_STATE_WRITE:
        return f"{ctx.operation_type} is not allowed: it reaches every key of a scope"
    # Other reads of several keys are looked at key by key.
    if ctx.operation_type == "watch" and ctx.point == HookPoint.BEFORE_STATE_READ:
        prefix = str(ctx.data.get("prefix") or "")
        begins = [glob[:-1] for glob in allowed if glob.endswith("*")]
        if not any(prefix.startswith(one) and not _SPECIAL & set(one) for one in begins):
            return "watch is not allowed without a prefix behind which every key is"
    return None


def _globs(name: str, globs: Iterable[str]) -> tuple[str, ...]:
    if isinstance(globs, str):
        raise InvalidArgumentError(name, globs, "must be several globs, not one text")
    found = tuple(globs)
    for one in found:
        if type(one) is not str or not one:
            raise InvalidArgumentError(name, one, "must be globs: text that is not empty")
    return found


def _matches(text: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(text, glob) for glob in globs)


class ValidationHook:
    """Refuses values that are too large, or that a check of yours refuses.

    For ``BEFORE_STATE_WRITE``. `max_bytes`: of the encoded value, by default 1 MiB. `schema`: is
    called with the value, and the context if `with_context`; it refuses by raising, or by returning
    False.
    """

    metadata = HookMetadata("validation", "size and schema of values", Priority.HIGH)

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BYTES,
        schema: Callable[..., Any] | None = None,
        with_context: bool = False,
    ) -> None:
        if type(max_bytes) is not int or max_bytes < 1:
            raise InvalidArgumentError("max_bytes", max_bytes, "must be an int of at least 1")
        if schema is not None and not callable(schema):
            raise InvalidArgumentError("schema", schema, "must be callable")
        self._max_bytes = max_bytes
        self._schema = schema
        self._with_context = with_context
        self._codec = Codec()

    def execute(self, ctx: HookContext) -> Cancel | None:
        """Refuse, or say nothing; of a check that raises the reason names only the error's type."""
        if "value" not in ctx.data:
            return None
        value = ctx.data["value"]
        try:
            size = len(self._codec.encode(to_builtin(value) if is_model(value) else value))
        except LimitError:
            return Cancel(f"the value is larger than {self._max_bytes:,} bytes")
        except CodecError:
            return None  # it cannot be stored either: the operation says why
        if size > self._max_bytes:
            return Cancel(f"the value has {size:,} bytes, at most {self._max_bytes:,} are allowed")
        if self._schema is None:
            return None
        try:
            fits = self._schema(value, ctx) if self._with_context else self._schema(value)
        except Exception as error:  # noqa: BLE001 - whatever the check refuses with
            # Not its message: that may hold the value.
            return Cancel(f"the value does not fit its schema: {type(error).__name__}")
        return Cancel("the value does not fit its schema") if fits is False else None


class RateLimitHook:
    """Lets so many operations a second through, with bursts (a token bucket for each scope).

    For any point before something. `per`: "scope", "client" (one bucket for all) or a function of
    the context that names the bucket. `over`: "cancel", or "retry", which reserves the next free
    token and waits for it, so whoever comes first goes first; who would have to wait for longer
    than `max_wait` seconds is refused. `max_attempts`: of the `Retry`.
    """

    metadata = HookMetadata("rate limit", "so many operations a second", Priority.HIGH)

    def __init__(
        self,
        rate: float,
        burst: int | None = None,
        *,
        per: str | Callable[[HookContext], str] = "scope",
        over: str = "cancel",
        max_attempts: int = 10,
        max_wait: float | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        if type(rate) not in (int, float) or not isfinite(rate) or rate <= 0:
            raise InvalidArgumentError("rate", rate, "must be operations a second, over 0")
        burst = max(1, int(rate)) if burst is None else burst
        if type(burst) is not int or burst < 1:
            raise InvalidArgumentError("burst", burst, "must be an int of at least 1")
        if per not in ("scope", "client") and not callable(per):
            raise InvalidArgumentError("per", per, "must be scope, client or a function")
        if over not in ("cancel", "retry"):
            raise InvalidArgumentError("over", over, "must be cancel or retry")
        self._rate, self._burst = float(rate), burst
        self._per, self._over = per, over
        if type(max_attempts) is not int or max_attempts < 1:
            raise InvalidArgumentError("max_attempts", max_attempts, "must be an int of at least 1")
        if max_wait is not None and not (type(max_wait) in (int, float) and max_wait >= 0):
            raise InvalidArgumentError("max_wait", max_wait, "must be seconds of at least 0")
        self._max_attempts = max_attempts
        self._max_wait = float("inf") if max_wait is None else float(max_wait)
        self._place = f"rate_limit.{next(_NUMBERS)}"
        """Where an operation keeps the time at which its token is free."""
        self._clock = clock
        self._lock = child_safe_lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.refused = self.waited = 0

    def execute(self, ctx: HookContext) -> HookResult | None:
        """Take a token, wait for one, or refuse."""
        reserved = ctx.metadata.get(self._place)
        if reserved is None:
            wait_s = self._take(self._bucket(ctx))
        else:
            wait_s = float(reserved) - self._clock()
        if wait_s <= 1e-9:
            ctx.metadata.pop(self._place, None)
            return None
        if self._over == "retry" and wait_s <= self._max_wait:
            ctx.metadata[self._place] = repr(self._clock() + wait_s)
            return Retry(wait_s, self._max_attempts)
        return Cancel(f"more than {self._rate:g} operations a second")

    def _bucket(self, ctx: HookContext) -> str:
        if callable(self._per):
            return str(self._per(ctx))
        return "" if self._per == "client" else str(ctx.data.get("scope"))

    def _take(self, name: str) -> float:
        """Take a token; the seconds until there is one, if there is none.

        Who waits has it taken already: then there are less than none.
        """
        now = self._clock()
        with self._lock:
            tokens, since = self._buckets.pop(name, (float(self._burst), now))
            tokens = min(float(self._burst), tokens + (now - since) * self._rate)
            wait_s = 0.0 if tokens >= 1 - 1e-9 else (1 - tokens) / self._rate
            waits = self._over == "retry" and wait_s <= self._max_wait
            self._buckets[name] = (tokens - 1 if waits or not wait_s else tokens, now)
            if len(self._buckets) > _BUCKETS:
                self._buckets.popitem(last=False)
            if wait_s and not waits:
                self.refused += 1
            elif wait_s:
                self.waited += 1
        return wait_s

    def stats(self) -> dict[str, Any]:
        """Return how many operations it refused, how many waited, how many buckets it keeps."""
        return {
            "refused": self.refused,
            "waited": self.waited,
            "buckets": len(self._buckets),
        }
