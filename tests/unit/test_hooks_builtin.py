"""The built-in hooks and the compositions: each does what its name says."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from decimal import Decimal
from inspect import isawaitable
from typing import Any

import pytest

from llmspell_dist import Revision, StateClass
from llmspell_dist.context import context
from llmspell_dist.errors import (
    ConflictError,
    InvalidArgumentError,
    OutcomeUnknownError,
    StoreTimeoutError,
)
from llmspell_dist.hooks.builtin import (
    AuditHook,
    CachingHook,
    CostTrackingHook,
    DebuggingHook,
    LoggingHook,
    MetricsHook,
    Price,
    RateLimitHook,
    RetryHook,
    SecurityHook,
    ValidationHook,
    accounting,
)
from llmspell_dist.hooks.builtin.secrets import redacted
from llmspell_dist.hooks.composite import FirstMatch, Parallel, Sequential, TieBreaker, Voting
from llmspell_dist.hooks.context import ComponentId, HookContext
from llmspell_dist.hooks.hook import HookMetadata
from llmspell_dist.hooks.points import HookPoint as P
from llmspell_dist.hooks.results import (
    CONTINUE,
    Cache,
    Cancel,
    Fork,
    ForkOperation,
    Modified,
    Redirect,
    Replace,
    Retry,
)

ME = ComponentId("system", "state")
# Put together here, so that no scanner takes this file for a leak.
KEY = "sk-" + "a1B2c3D4" * 4


def _ctx(point: str = P.BEFORE_STATE_WRITE, operation: str = "set", **data: Any) -> HookContext:
    given = {"scope": "agent:a", "key": "k", **data}
    return HookContext(point, ME, given, operation=operation)


def _failed(error: BaseException, operation: str = "set", **data: Any) -> HookContext:
    ctx = _ctx(P.AFTER_STATE_WRITE, operation, **data)
    ctx.finished(P.AFTER_STATE_WRITE, None, error)
    return ctx


# --- observing ------------------------------------------------------------------------------------


def test_logging_says_what_happens_and_never_a_value(caplog: pytest.LogCaptureFixture) -> None:
    """Point, method, scope, key, actor, correlation, the kind of error."""
    with caplog.at_level(logging.INFO), context(actor="ann", correlation_id="run-1"):
        LoggingHook().execute(_ctx(value="hunter2"))
        LoggingHook(level=logging.DEBUG).execute(_ctx(value="quiet"))
        LoggingHook("mine").execute(_failed(ValueError("hunter2")))
    first, second = caplog.messages
    for word in ("BeforeStateWrite", "set", "agent:a", "key=k", "ann", "run-1"):
        assert word in first
    assert "failed: ValueError" in second
    assert "hunter2" not in caplog.text
    assert caplog.records[1].name == "mine"


def test_metrics_count_and_measure_by_method() -> None:
    """From the hook before to the hook behind."""
    now = [10.0]
    hook = MetricsHook(clock=lambda: now[0])
    for seconds in (0.1, 0.2, 0.3):
        ctx = _ctx()
        hook.execute(ctx)
        now[0] += seconds
        ctx.finished(P.AFTER_STATE_WRITE, None, None if seconds < 0.3 else ValueError())
        hook.execute(ctx)
    hook.execute(_ctx(P.AFTER_STATE_READ, "get"))
    timing = hook.timing("set")
    assert [timing.count, timing.minimum] == pytest.approx([3, 0.1])
    assert [timing.p50, timing.maximum] == pytest.approx([0.2, 0.3])
    assert (hook.counts, hook.failures) == ({"set": 3, "get": 1}, {"set": 1})
    assert hook.timing("get").count == 0


def test_debugging_keeps_the_last_ones_and_calls() -> None:
    """Shapes, not values; `then` for those that were looked for."""
    called: list[HookContext] = []
    hook = DebuggingHook(keep=2, when=lambda c: c.data["key"] == "hit", then=called.append)
    for key in ("a", "b", "hit"):
        hook.execute(_ctx(key=key, value=["hunter2"]))
    assert [one.key for one in hook.captured] == ["b", "hit"]
    assert hook.captured[-1].data["value"] == "list[1]"
    assert [one.data["key"] for one in called] == ["hit"]
    assert "hunter2" not in repr(hook.captured)
    with pytest.raises(InvalidArgumentError, match="keep"):
        DebuggingHook(keep=0)


# --- guarding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "data", "refused"),
    [
        ({"scopes": ["agent:*"]}, {}, None),
        ({"scopes": ["user:*"]}, {}, "scope agent:a is not allowed"),
        ({"denied": ["agent:a"]}, {}, "scope agent:a is not allowed"),
        ({"scopes": ["agent:a"]}, {"target": "user:b"}, "target user:b is not allowed"),
        ({"keys": ["public.*"]}, {}, "key k is not allowed"),
        ({"keys": ["k"], "secrets": None}, {"value": KEY}, None),
        ({"max_bytes": 10}, {"value": "x" * 11}, "at most 10 are allowed"),
        ({"secrets": "refuse"}, {"value": {"deep": [KEY]}}, "looks like a secret"),
        ({"secrets": "refuse"}, {"value": {"password": "x"}}, "looks like a secret"),
        ({"secrets": "refuse"}, {"value": "nothing"}, None),
    ],
)
def test_security_lets_only_what_is_allowed_through(
    rules: dict[str, Any], data: dict[str, Any], refused: str | None
) -> None:
    """The reason names the rule and never the value."""
    answer = SecurityHook(**rules).execute(_ctx(**data))
    if refused is None:
        assert answer is None
    else:
        assert isinstance(answer, Cancel)
        assert refused in answer.reason
        assert KEY not in answer.reason


def test_security_redacts_what_looks_like_a_secret() -> None:
    """Wherever it is; what else there is stays as it was."""
    value = {"note": f"use {KEY} today", "api_key": "plain", "list": (1, b"x"), "n": 1}
    answer = SecurityHook().execute(_ctx(value=value))
    assert answer == Modified(
        {"value": {"note": "use *** today", "api_key": "***", "list": (1, b"x"), "n": 1}}
    )
    assert value["api_key"] == "plain"
    with pytest.raises(InvalidArgumentError, match="secrets"):
        SecurityHook(secrets="shout")
    with pytest.raises(InvalidArgumentError, match="scopes"):
        SecurityHook(scopes="agent:*")


@pytest.mark.parametrize(
    "secret",
    [
        KEY,
        "AKIA" + "ABCDEFGH12345678",
        "gh" + "p_" + "a" * 36,
        "xox" + "b-1234567890-abc",
        "-----BEGIN RSA " + "PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
        "eyJ" + "hbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
        "Authorization: Bearer " + "abcdefghijklmnop1234",
        "redis://user:" + "hunter2@host/0",
    ],
)
def test_secrets_are_found_by_their_shape(secret: str) -> None:
    """In text, in bytes, deep inside."""
    value: Any
    for value in (secret, secret.encode(), [{"a": (secret,)}], {"a": {secret: 1}}):
        assert redacted(value) is not value
        assert secret.rpartition(" ")[2] not in repr(redacted(value))
    for value in ("a sk-short one", {"tokens": 5, "secretary": "Ann"}, 7, None, [b"\xff\x00"]):
        assert redacted(value) is value


@pytest.mark.parametrize("secret", [KEY, KEY.encode(), (1, KEY)], ids=["str", "bytes", "tuple"])
@pytest.mark.parametrize("point", [P.BEFORE_STATE_WRITE, P.AFTER_STATE_READ], ids=str)
def test_secrets_are_found_in_names_of_maps(point: P, secret: Any) -> None:
    """Masked or refused, also below a key that is named as a secret; no value is lost."""
    for key in ("k", "password"):
        value: Any = {"by key": {secret: None, redacted(secret): None, "other": None}}
        answer = SecurityHook().execute(_ctx(point, key=key, value=value))
        assert isinstance(answer, Modified)
        assert KEY not in repr(answer.data)
        (inner,) = answer.data["value"].values()
        assert len(inner) == 3
        assert redacted(secret) in inner
        refused = SecurityHook(secrets="refuse").execute(_ctx(point, key=key, value=value))
        assert isinstance(refused, Cancel)
    two = redacted({KEY: 1, "x": 2, f"{KEY}z": 3, "***": 4})
    assert two == {"*** 2": 1, "x": 2, "*** 3": 3, "***": 4}


def test_validation_refuses_what_is_too_large_or_does_not_fit() -> None:
    """By default more than 1 MiB."""
    hook = ValidationHook()
    assert hook.execute(_ctx(value="x" * 1_000_000)) is None
    assert "1,048,576" in str(hook.execute(_ctx(value="x" * 1_100_000)))
    assert hook.execute(_ctx()) is None

    def schema(value: Any) -> bool | None:
        if value == "raises":
            raise ValueError("hunter2")
        return False if value == "false" else None

    hook = ValidationHook(schema=schema)
    assert hook.execute(_ctx(value="fine")) is None
    assert hook.execute(_ctx(value="false")) == Cancel("the value does not fit its schema")
    answer = hook.execute(_ctx(value="raises"))
    assert answer == Cancel("the value does not fit its schema: ValueError")
    sees = ValidationHook(schema=lambda _, c: c.data["key"] == "other", with_context=True)
    assert isinstance(sees.execute(_ctx(value=1)), Cancel)


@pytest.mark.parametrize("key", ["password", "db_password", "mail.api_key", "user:Secret"])
def test_security_masks_what_is_named_as_a_secret(key: str) -> None:
    """By its key too; lists and maps keep their shape, so that they can be appended and merged."""
    for value, clean in (
        ("hunter2", "***"),
        (1234, "***"),
        (["a"], ["***"]),
        ({"a": 1}, {"a": "***"}),
    ):
        for point in (P.BEFORE_STATE_WRITE, P.AFTER_STATE_READ):
            assert SecurityHook().execute(_ctx(point, key=key, value=value)) == Modified(
                {"value": clean}
            )
        refused = SecurityHook(secrets="refuse").execute(_ctx(key=key, value=value))
        assert isinstance(refused, Cancel)
    nothing: tuple[Any, ...] = (None, "", "***", ["***"], {"a": "***"}, {}, [])
    for value in nothing:
        assert SecurityHook().execute(_ctx(key=key, value=value)) is None
    assert SecurityHook().execute(_ctx(operation="increment", key=key, value=1)) is None
    there = _ctx(P.AFTER_STATE_READ, "exists", key=key, value=False)
    assert SecurityHook().execute(there) is None
    assert SecurityHook(secrets=None).execute(_ctx(key=key, value="hunter2")) is None
    for other in ("passwords_seen", "note", "secret.note"):
        assert SecurityHook().execute(_ctx(key=other, value="hunter2")) is None


@dataclass
class _Login:
    user: str
    password: str


@dataclass
class _Pin:
    passphrase: int


def test_security_keeps_the_type_of_what_it_masks() -> None:
    """Also inside lists; where a mask does not fit, nobody gets the value."""
    for value, clean in (
        (_Login("ann", "hunter2"), _Login("ann", "***")),
        ([_Login("ann", "hunter2")], [_Login("ann", "***")]),
        ({"x": _Login("ann", "hunter2")}, {"x": _Login("ann", "***")}),
    ):
        for point in (P.BEFORE_STATE_WRITE, P.AFTER_STATE_READ):
            assert SecurityHook().execute(_ctx(point, value=value)) == Modified({"value": clean})
    assert SecurityHook().execute(_ctx(value=_Login("ann", "***"))) is None
    written = SecurityHook().execute(_ctx(value=_Pin(1234)))
    assert written == Modified({"value": {"passphrase": "***"}})
    read = SecurityHook().execute(_ctx(P.AFTER_STATE_READ, value=_Pin(1234)))
    assert isinstance(read, Cancel)
    assert "1234" not in read.reason


def test_a_rate_limit_reserves_a_place_for_who_waits() -> None:
    """One after the other at the rate, whoever comes first; nobody waits for longer than said."""
    now = [0.0]
    hook = RateLimitHook(100, 1, over="retry", max_wait=0.5, clock=lambda: now[0])
    waiting = [_ctx() for _ in range(60)]
    answers = [hook.execute(ctx) for ctx in waiting]
    assert answers[0] is None
    delays = [one.delay for one in answers[1:51] if isinstance(one, Retry)]
    assert delays == pytest.approx([place / 100 for place in range(1, 51)])
    assert all(isinstance(one, Cancel) for one in answers[51:])
    assert hook.stats() == {"refused": 9, "waited": 50, "buckets": 1}
    now[0] = 0.005
    early = hook.execute(waiting[1])
    assert isinstance(early, Retry)
    assert early.delay == pytest.approx(0.005)
    now[0] = 0.1
    passed = [hook.execute(ctx) is None for ctx in waiting[1:51]]
    assert passed == [True] * 10 + [False] * 40
    assert isinstance(hook.execute(_ctx()), Retry)  # behind those that wait
    now[0] = 10.0
    inside = Parallel(hook, _says(None))
    ctxs = [_ctx() for _ in range(3)]
    assert [type(inside.execute(ctx)) for ctx in ctxs] == [type(CONTINUE), Retry, Retry]
    now[0] = 10.02
    assert [inside.execute(ctx) for ctx in ctxs[1:]] == [CONTINUE, CONTINUE]


def test_a_rate_limit_lets_so_many_through() -> None:
    """Bursts first, then the rate; each scope for itself."""
    now = [0.0]
    hook = RateLimitHook(2, 3, clock=lambda: now[0])
    answers = [hook.execute(_ctx()) for _ in range(5)]
    assert answers[:3] == [None] * 3
    assert answers[3:] == [Cancel("more than 2 operations a second")] * 2
    assert hook.execute(_ctx(scope="agent:b")) is None
    now[0] += 0.5
    assert hook.execute(_ctx()) is None
    assert hook.execute(_ctx()) is not None
    waits = RateLimitHook(10, 1, per="client", over="retry", max_attempts=4, clock=lambda: now[0])
    assert waits.execute(_ctx()) is None
    answer = waits.execute(_ctx(scope="agent:b"))
    assert isinstance(answer, Retry)
    assert [answer.delay, answer.max_attempts] == pytest.approx([0.1, 4])
    own = RateLimitHook(1, per=lambda c: c.data["key"], clock=lambda: now[0])
    assert [own.execute(_ctx(key=key)) is None for key in "aab"] == [True, False, True]
    bad: dict[str, Any]
    for bad in ({"rate": 0}, {"burst": 0}, {"per": "x"}, {"over": 1}):
        with pytest.raises(InvalidArgumentError, match=next(iter(bad))):
            RateLimitHook(**dict[str, Any]({"rate": 1, **bad}))


# --- keeping --------------------------------------------------------------------------------------


def test_caching_names_where_a_plain_get_is_kept() -> None:
    """By scope, key and whatever `key` says; until this client writes there."""
    hook = CachingHook(5)

    def asked(hook: CachingHook = hook, operation: str = "get", **data: Any) -> Any:
        return hook.execute(_ctx(P.BEFORE_STATE_READ, operation, **data))

    answer = asked()
    assert (type(answer), answer.ttl, answer.until_written) == (Cache, 5, True)
    assert asked() == answer
    by_actor = CachingHook(5, key=lambda ctx: ctx.metadata.get("actor"))
    assert asked(by_actor) is None
    others = (asked(key="other"), asked(scope="agent:b"), asked(CachingHook(5)))
    assert len({answer.key, *(one.key for one in others)}) == 4
    assert asked(operation="count") is None
    assert hook.execute(_ctx(P.AFTER_STATE_WRITE)) is None
    ctx = _ctx(P.BEFORE_STATE_READ, "get")
    ctx.metadata["batch"] = "transaction"
    assert hook.execute(ctx) is None
    for ttl in (0, -1, float("inf"), "5", True):
        with pytest.raises(InvalidArgumentError, match="ttl"):
            CachingHook(ttl)  # type: ignore[arg-type]


def test_retry_asks_again_only_for_what_may_be_repeated() -> None:
    """With a growing delay, so many times; never a write that would count twice."""
    hook = RetryHook(max_attempts=3, delay=1, factor=10, max_delay=5)
    ctx = _failed(StoreTimeoutError("there", "late"))
    first, second, third = (hook.execute(ctx) for _ in range(3))
    assert first is not None
    assert second is not None
    assert 0.5 <= first.delay <= 1
    assert 2.5 <= second.delay <= 5
    assert third is None
    unknown = OutcomeUnknownError("there", "cut")
    assert RetryHook().execute(_failed(unknown, "increment", value=1)) is None
    assert RetryHook().execute(_failed(unknown, "set", value=1)) is not None
    assert RetryHook().execute(_failed(ValueError())) is None
    assert RetryHook(errors=(ValueError,)).execute(_failed(ValueError())) is not None
    assert hook.stats() == {"retries": 2}
    for delay, longest in ((0.0, 0), (1, 5)):
        patient = RetryHook(max_attempts=5000, delay=delay)
        ctx = _failed(StoreTimeoutError("there", "late"))
        ctx.metadata[patient._place] = "4000"
        again = patient.execute(ctx)
        assert again is not None
        assert longest / 2 <= again.delay <= longest


def test_retries_of_two_hooks_are_counted_apart() -> None:
    """One for other errors has all its attempts, whatever the first has made of its own."""
    first = RetryHook(errors=(KeyError,), max_attempts=3, delay=0.1)
    second = RetryHook(errors=(ValueError,), max_attempts=3, delay=0.1)
    ctx = _failed(KeyError())
    assert [type(first.execute(ctx)) for _ in range(3)] == [Retry, Retry, type(None)]
    ctx.finished(P.AFTER_STATE_WRITE, None, ValueError())
    again = second.execute(ctx)
    assert again is not None
    assert 0.05 <= again.delay <= 0.1
    assert second.retries == 1


def test_retry_overwrites_a_conflict_only_if_that_is_wanted() -> None:
    """The last writer wins, then."""
    actual = Revision.parse(b"7-1")
    for overwrite in (False, True):
        ctx = _failed(ConflictError(None, actual, []), "compare_and_set", expected=None)
        ctx.point = P.STATE_CONFLICT
        answer = RetryHook(overwrite=overwrite).execute(ctx)
        assert (answer is not None) == overwrite
        assert ctx.data["expected"] == (actual if overwrite else None)


# --- accounting -----------------------------------------------------------------------------------


def test_costs_add_up_by_model_and_scope_until_the_budget_is_used_up() -> None:
    """Exactly: decimals."""
    prices = {"large": Price(Decimal(10), Decimal(30)), "small": Price(Decimal(1), Decimal(2))}
    hook = CostTrackingHook(prices, budget=Decimal("0.05"))
    before = _ctx(P.BEFORE_AGENT_EXECUTION)
    assert hook.execute(before) is None

    def use(model: str, scope: str, tokens_in: int, tokens_out: int) -> None:
        usage = {"model": model, "input_tokens": tokens_in, "output_tokens": tokens_out}
        assert hook.execute(_ctx(P.AFTER_AGENT_EXECUTION, scope=scope, usage=usage)) is None

    use("large", "agent:a", 1000, 500)
    use("small", "agent:b", 10_000, 5_000)
    assert hook.cost() == Decimal("0.045")
    assert hook.cost(model="large") == hook.cost(scope="agent:a") == Decimal("0.025")
    assert hook.tokens(scope="agent:a") == (1000, 500)
    assert hook.stats()["small"]["calls"] == 1
    use("large", "agent:a", 500, 0)
    answer = hook.execute(before)
    assert isinstance(answer, Cancel)
    assert answer.reason.startswith("the budget is used up: 0.05")
    with pytest.raises(InvalidArgumentError, match="usage"):
        hook.execute(_ctx(P.AFTER_AGENT_EXECUTION, usage=5))


def test_costs_of_ever_new_scopes_take_no_more_than_their_share_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In all everything counts; of scopes the least recently used are forgotten."""
    monkeypatch.setattr(accounting, "_NAMES", 3, raising=False)
    hook = CostTrackingHook({"m": Price(1, 0)}, budget=2, per_scope=True)
    usage = {"model": "m", "input_tokens": 1_000_000}
    for _ in range(2):
        hook.execute(_ctx(P.AFTER_AGENT_EXECUTION, scope="agent:full", usage=usage))
    for number in range(100):
        hook.execute(_ctx(P.AFTER_AGENT_EXECUTION, scope=f"session:{number}", usage=usage))
        # Whoever goes on asking is not forgotten.
        full = hook.execute(_ctx(P.BEFORE_AGENT_EXECUTION, scope="agent:full"))
        assert isinstance(full, Cancel)
    assert hook.cost() == hook.cost(model="m") == 102
    assert hook.stats()["m"]["calls"] == 102
    assert hook.cost(scope="session:99") == 1
    assert hook.cost(scope="session:0") == 0
    assert len(hook._by_scope.items()) == len(hook._by_both.items()) == 3
    for number in range(5):
        other = {**usage, "model": f"new {number}"}
        hook.execute(_ctx(P.AFTER_AGENT_EXECUTION, scope="agent:a", usage=other))
    assert len(hook.unpriced) == len(hook._by_model.items()) == 3
    assert hook.tokens() == (107_000_000, 0)


@pytest.mark.parametrize("tenth", [Decimal("0.1"), 0.1])
def test_prices_are_exact_whatever_they_are_given_as(tenth: Any) -> None:
    """Of a float the digits that are shown count."""
    hook = CostTrackingHook({"m": Price(tenth, 3)}, budget=0.3)
    usage = {"model": "m", "input_tokens": 1_000_000}
    for spent in ("0.1", "0.2", "0.3"):
        assert hook.execute(_ctx(P.BEFORE_AGENT_EXECUTION)) is None
        hook.execute(_ctx(P.AFTER_AGENT_EXECUTION, usage=usage))
        assert hook.cost() == Decimal(spent)
    assert isinstance(hook.execute(_ctx(P.BEFORE_AGENT_EXECUTION)), Cancel)


@pytest.mark.parametrize(
    "bad", [-1, -0.5, Decimal(-1), float("nan"), float("inf"), Decimal("NaN"), "3", None, True]
)
def test_prices_that_make_no_sense_are_refused(bad: Any) -> None:
    """By name."""
    with pytest.raises(InvalidArgumentError, match=r"^input must be"):
        Price(bad, 1)
    with pytest.raises(InvalidArgumentError, match=r"^output must be"):
        Price(1, bad)
    if bad is not None:
        with pytest.raises(InvalidArgumentError, match=r"^budget must be"):
            CostTrackingHook({}, budget=bad)
        with pytest.raises(InvalidArgumentError, match=r"^default must be"):
            CostTrackingHook({}, default=bad)


def test_a_budget_cannot_be_kept_with_a_model_without_a_price() -> None:
    """Nothing more passes, unless a default says what it costs."""
    usage = {"model": "new", "input_tokens": 1_000_000, "output_tokens": 0}
    before, used = P.BEFORE_AGENT_EXECUTION, P.AFTER_AGENT_EXECUTION

    def told(hook: CostTrackingHook, point: str, **data: Any) -> Any:
        return hook.execute(_ctx(point, **data))

    prices = {"m": Price(1, 1)}
    hook = CostTrackingHook(prices, budget=5)
    assert told(hook, before, model="m") is None
    assert "model new has no price" in told(hook, before, model="new").reason
    told(hook, used, usage=usage)
    assert "model new has no price" in told(hook, before).reason
    assert hook.unpriced == {"new"}
    hook = CostTrackingHook(prices, budget=5, per_scope=True)
    told(hook, used, usage=usage, scope="agent:b")
    assert told(hook, before, scope="agent:a") is None
    assert isinstance(told(hook, before, scope="agent:b"), Cancel)
    hook = CostTrackingHook(prices, budget=5, default=Price(4, 0))
    told(hook, used, usage=usage)
    assert told(hook, before, model="new") is None
    assert hook.cost() == 4
    assert not hook.unpriced
    hook = CostTrackingHook(prices)
    told(hook, used, usage=usage)
    assert told(hook, before, model="new") is None
    assert hook.cost() == 0
    assert hook.unpriced == {"new"}


async def test_audit_writes_down_who_changed_what() -> None:
    """Without values, or with secrets masked; the sink may be a coroutine function."""
    entries: list[dict[str, Any]] = []
    with context(actor="ann", correlation_id="run-1"):
        assert AuditHook(entries.append).execute(_failed(ValueError(), value=KEY)) is None
    (entry,) = entries
    assert (entry["actor"], entry["correlation_id"], entry["error"]) == (
        "ann",
        "run-1",
        "ValueError",
    )
    assert (entry["operation"], entry["scope"], entry["key"]) == ("set", "agent:a", "k")
    assert "value" not in entry

    async def sink(entry: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        entries.append(entry)

    hook = AuditHook(sink, values=True)
    await hook.execute(_ctx(P.AFTER_STATE_WRITE, value={"a": KEY}))
    await hook.execute(_ctx(P.AFTER_STATE_WRITE, value="plain", state_class=StateClass.SENSITIVE))
    assert [one["value"] for one in entries[1:]] == [{"a": "***"}, "***"]
    await hook.execute(_ctx(P.AFTER_STATE_WRITE, "move_scope", target="agent:b"))
    assert (entries[-1]["operation"], entries[-1]["target"]) == ("move_scope", "agent:b")


# --- compositions ---------------------------------------------------------------------------------


def _later(hook: Any) -> Any:
    async def coroutine(ctx: HookContext) -> Any:
        await asyncio.sleep(0)
        return hook(ctx)

    return coroutine


async def _run(composite: Any, ctx: HookContext) -> Any:
    answer = composite.execute(ctx)
    return await answer if isawaitable(answer) else answer


def _says(answer: Any) -> Any:
    return lambda _: answer


each_kind = pytest.mark.parametrize("kind", [lambda hook: hook, _later], ids=["plain", "coroutine"])


@each_kind
async def test_a_sequence_hands_on_what_each_makes_of_it(kind: Any) -> None:
    """Until one ends it."""

    def add(ctx: HookContext) -> Modified:
        return Modified({"value": ctx.data["value"] + 1})

    one, two = (Fork((ForkOperation(name, "get"),)) for name in "ab")
    ctx = _ctx(value=0)
    assert await _run(Sequential(kind(add), add, kind(_says(None))), ctx) == Modified({"value": 2})
    assert await _run(Sequential(kind(_says(None))), ctx) is CONTINUE
    forks = Sequential(kind(_says(one)), kind(_says(two)))
    assert await _run(forks, ctx) == Fork((*one.operations, *two.operations))
    ended = Sequential(kind(add), kind(_says(Cancel("x"))), kind(add))
    assert await _run(ended, ctx) == Cancel("x")
    ctx = _ctx()
    assert await _run(Sequential(kind(_says(one)), kind(_says(Redirect("global")))), ctx)
    assert ctx.forks == [("Sequential", one)], "carried out where it was sent"


@each_kind
async def test_a_sequence_at_a_point_of_ones_own_hands_on_new_names(kind: Any) -> None:
    """As hooks that stand there one by one do."""

    def greet(_: HookContext) -> Modified:
        return Modified({"greeting": "hello"})

    def shout(ctx: HookContext) -> Modified:
        return Modified({"greeting": ctx.data["greeting"].upper()})

    greeted = await _run(Sequential(kind(greet), kind(shout)), _ctx("session:start"))
    assert greeted == Modified({"greeting": "HELLO"})


@each_kind
async def test_side_by_side_none_sees_what_another_did(kind: Any) -> None:
    """The first in their order that ends it counts, else everything together."""

    def add(ctx: HookContext) -> Modified:
        assert ctx.data["value"] == 0
        ctx.data["value"] = 99
        return Modified({"value": 1})

    ctx = _ctx(value=0)
    both = Parallel(kind(add), kind(_says(Modified({"ttl": 5}))), kind(add))
    assert await _run(both, ctx) == Modified({"value": 1, "ttl": 5})
    assert ctx.data["value"] == 0
    ended = Parallel(kind(add), kind(_says(Replace(1))), kind(_says(Cancel("x"))))
    assert await _run(ended, ctx) == Replace(1)


@each_kind
async def test_the_first_that_says_something_counts(kind: Any) -> None:
    """The others are not asked."""

    def never(_: HookContext) -> None:
        raise AssertionError

    first = FirstMatch(kind(_says(None)), kind(_says(Modified({"value": 1}))), kind(never))
    assert await _run(first, _ctx()) == Modified({"value": 1})
    assert await _run(FirstMatch(kind(_says(None))), _ctx()) is CONTINUE


class _Voter:
    def __init__(self, answer: Any, priority: int) -> None:
        self.metadata = HookMetadata("voter", priority=priority)
        self._answer = answer

    def execute(self, _: HookContext) -> Any:
        return self._answer


@each_kind
async def test_votes_are_counted(kind: Any) -> None:
    """Equal answers add up; without enough of them the operation goes on."""
    cancel = Cancel("x")
    votes = [cancel, cancel, None, Replace(1), Replace(2)]
    voters = [kind(_says(vote)) for vote in votes]
    assert await _run(Voting(*voters, threshold=0.4), _ctx()) == cancel
    assert await _run(Voting(*voters, threshold=0.5), _ctx()) is CONTINUE
    most = Voting(*[kind(_says(cancel))] * 11, *[kind(_says(None))] * 9, threshold=0.55)
    assert await _run(most, _ctx()) == cancel, "11 of 20 are 0.55 of them"


@each_kind
async def test_refusals_are_one_kind_of_vote(kind: Any) -> None:
    """Whatever their reasons; all of them are given."""
    votes = [Cancel("too long"), None, Cancel("too loud"), Cancel("too long")]
    voting = Voting(*(kind(_says(vote)) for vote in votes), threshold=0.75)
    assert await _run(voting, _ctx()) == Cancel("too long; too loud")


@each_kind
async def test_a_refusal_counts_though_another_part_fails(kind: Any) -> None:
    """Wherever they stand; anything else is lost with the failure, which is the whole's."""

    def fails(_: HookContext) -> None:
        raise KeyError

    for parts in ((fails, kind(_says(Cancel("no")))), (kind(_says(Cancel("no"))), kind(fails))):
        assert await _run(Parallel(*parts), _ctx()) == Cancel("no")
    with pytest.raises(KeyError):
        await _run(Parallel(kind(fails), kind(_says(Replace(1)))), _ctx())
    with pytest.raises(KeyError):
        await _run(Voting(kind(fails), kind(_says(Cancel("no")))), _ctx())


@each_kind
@pytest.mark.parametrize("whole", [Sequential, Parallel])
async def test_all_forks_of_a_composition_are_carried_out(kind: Any, whole: Any) -> None:
    """Sixteen of each part; who uses an id again gets a number."""
    ids = [f"f{number}" for number in range(16)]
    fork = Fork(tuple(ForkOperation(one, "get") for one in ids))
    answer = await _run(whole(*[kind(_says(fork))] * 3), _ctx())
    forked = [one.id for one in answer.operations]
    assert forked == [*ids, *(f"{one}#2" for one in ids), *(f"{one}#3" for one in ids)]


@each_kind
@pytest.mark.parametrize("whole", [Sequential, Parallel])
async def test_unknown_names_are_handed_on_to_be_refused(kind: Any, whole: Any) -> None:
    """Also where a fork hides them; points of one's own take any."""
    parts = (kind(_says(Modified({"nope": 1}))), _says(Fork((ForkOperation("x", "get"),))))
    ctx = _ctx()
    assert await _run(whole(*parts), ctx) == Modified({"nope": 1})
    assert "nope" not in ctx.data
    ctx = _ctx("session:start")
    assert isinstance(await _run(whole(*parts), ctx), Fork)
    assert ctx.data["nope"] == 1


@pytest.mark.parametrize(
    ("breaker", "expected"),
    [
        (TieBreaker.FIRST_RESULT, Replace(1)),
        ("prefer_continue", CONTINUE),
        ("prefer_action", Replace(1)),
        ("by_priority", Cancel("x")),
    ],
)
async def test_ties_are_broken_as_asked(breaker: Any, expected: Any) -> None:
    """Each way."""
    voters = [_Voter(Replace(1), 5), _Voter(None, 3), _Voter(Cancel("x"), -1)]
    voting = Voting(*voters, threshold=0.1, tie_breaker=breaker)
    assert await _run(voting, _ctx()) == expected


def test_bad_compositions_are_refused() -> None:
    """By name."""
    for make in (
        Sequential,
        lambda: Voting(_says(1), threshold=0),
        lambda: Voting(_says(1), tie_breaker="coin"),
        lambda: Parallel(5),
    ):
        with pytest.raises(InvalidArgumentError):
            make()


async def test_a_part_that_fails_leaves_no_coroutine_behind() -> None:
    """Those that had begun are closed; the failure is the composition's."""

    def fails(_: HookContext) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await _run(Parallel(_later(_says(None)), fails), _ctx())
    with pytest.raises(TypeError, match="part 1 returned int"):
        await _run(Sequential(_says(5)), _ctx())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fork(()),
        lambda: Fork(tuple(ForkOperation(str(n), "get") for n in range(17))),
        lambda: Fork((ForkOperation("a", "get"), ForkOperation("a", "set"))),
        lambda: Cache("", 1),
        lambda: Cache("k", 0),
        lambda: Cancel(""),
        lambda: Retry(-1),
        lambda: Retry(1, 0),
        lambda: Modified([1]),  # type: ignore[arg-type]
    ],
)
def test_a_result_that_makes_no_sense_cannot_be_made(make: Any) -> None:
    """It is named where it is made."""
    with pytest.raises(InvalidArgumentError):
        make()
