"""Effects that run once: whoever asks, whoever died, the mail is sent once or somebody is asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fix_agents import agents_of
from fix_state import Raw, Store, until

from llmspell_dist import (
    CodecError,
    ConflictError,
    CorruptRecordError,
    InvalidArgumentError,
    InvalidTTLError,
    UnsupportedFormatError,
    connect,
    context,
)
from llmspell_dist.agents.agent import Agent
from llmspell_dist.agents.effect import Effect
from llmspell_dist.agents.effects import EffectRecord, EffectStatus, effect_key
from llmspell_dist.agents.errors import (
    AgentNotFoundError,
    EffectCommittedError,
    EffectFailedError,
    EffectInProgressError,
    EffectTakenOverError,
    EffectUnknownError,
)
from llmspell_dist.agents.manager import Agents
from llmspell_dist.agents.model import AgentState
from llmspell_dist.client import Spell
from llmspell_dist.context import current_context
from llmspell_dist.state.manager import StateManager

pytestmark = [pytest.mark.integration, pytest.mark.agent, pytest.mark.both_surfaces]

T0 = datetime(2024, 11, 23, 15, 0, tzinfo=UTC)
S = "agent:alice"
KEY = "agent.effect.mail"
SETTLED = {"layout": 1, "key": "mail", "status": "committed", "by": "w1", "token": None}
SETTLED |= {"limit_ms": 1000, "attempts": 1, "result": None}


class Mail:
    """Sends, and counts how often."""

    def __init__(self) -> None:
        self.sent = 0

    async def send(self, *to: str) -> dict[str, Any]:
        self.sent += 1
        return {"to": list(to), "id": self.sent}


class BounceError(Exception):
    """The mail server refused the mail."""


@pytest.fixture
async def agents(spell: Spell) -> Agents:
    """Agents, of which one is there."""
    agents = agents_of(spell, now=lambda: T0)
    await agents.save(AgentState.new("alice", "t", now=lambda: T0))
    return agents


@pytest.fixture
def agent(agents: Agents) -> Agent:
    """A worker's handle of the agent."""
    return agents.agent("alice", label="w1")


@pytest.fixture
def other(agents: Agents) -> Agent:
    """Another worker's handle of the agent."""
    return agents.agent("alice", label="w2")


@pytest.fixture
def mail() -> Mail:
    """What must happen once."""
    return Mail()


async def status(agent: Agent) -> EffectRecord:
    """Return the record of the only effect."""
    (record,) = await agent.effects()
    return record


async def left_behind(agent: Agent, **options: Any) -> None:
    """A claim of a process that died before it said how it ended."""
    await agent.effect("mail", **options).__aenter__()


async def past_deadline(agent: Agent, raw: Raw) -> None:
    """Wait until the limit of the only effect is over by the server's clock."""
    deadline = (await status(agent)).deadline
    await until(lambda: raw.now_ms() > deadline.timestamp() * 1000)


# --- once


async def test_an_effect_is_carried_out_once(agent: Agent, other: Agent, mail: Mail) -> None:
    """Whoever asks again gets the stored result, and nothing is sent."""
    first = await agent.effect("mail").run(mail.send, "bob")
    again = [await each.effect("mail").run(mail.send, "bob") for each in (agent, other)]
    assert first == {"to": ["bob"], "id": 1}
    assert again == [first, first]
    assert mail.sent == 1


async def test_effects_of_other_keys_and_agents_are_others(
    agents: Agents, agent: Agent, mail: Mail
) -> None:
    """Keys of any text, each for itself."""
    await agents.save(AgentState.new("bob", "t"))
    for key in ("mail", "mail:42", "mail/42", "mail%2F42", "*", "é", " "):
        await agent.effect(key).run(mail.send)
        await agents.agent("bob").effect(key).run(mail.send)
    assert mail.sent == 14
    assert {record.key for record in await agent.effects()} == {
        *("mail", "mail:42", "mail/42", "mail%2F42", "*", "é", " "),
    }


async def test_a_plain_function_is_called_too(agent: Agent) -> None:
    """It need not be a coroutine; None is a result."""
    calls: list[int] = []
    assert await agent.effect("mail").run(calls.append, 1) is None
    assert await agent.effect("mail").run(calls.append, 1) is None
    assert calls == [1]


async def test_arguments_by_name_reach_the_function(agent: Agent, mail: Mail) -> None:
    """Of a coroutine function and of a plain one, whatever they are called."""

    def plain(*, function: str, self: int) -> list[Any]:
        return [function, self]

    async def coroutine(*, key: str) -> str:
        return key

    assert await agent.effect("plain").run(plain, function="f", self=1) == ["f", 1]
    assert await agent.effect("coroutine").run(coroutine, key="k") == "k"


class Caller:
    """An object that is called like a coroutine function."""

    async def __call__(self) -> int:
        return threading.get_ident()

    def thread(self) -> Awaitable[int]:
        """Return what can be awaited, from a function that is none itself."""
        return self()


async def test_a_plain_function_does_not_hold_up_the_event_loop(agent: Agent) -> None:
    """It runs in a thread, with the caller's context variables; a coroutine on the loop."""
    begun, going = asyncio.Event(), threading.Event()
    loop, here = asyncio.get_running_loop(), threading.get_ident()

    def slow() -> list[Any]:
        loop.call_soon_threadsafe(begun.set)
        assert going.wait(10)
        return [threading.get_ident() == here, current_context().actor]

    with context(actor="planner-3"):
        task = asyncio.create_task(agent.effect("mail").run(slow))
    await begun.wait()  # the loop turns while the function waits for us
    going.set()
    assert await task == [False, "planner-3"]
    assert await agent.effect("an object").run(Caller()) == here
    assert await agent.effect("what it returns").run(Caller().thread) == here


async def test_a_plain_function_past_its_limit_goes_on_unheard(agent: Agent, other: Agent) -> None:
    """Nobody can end a thread: the outcome is unknown, and what it returns is dropped."""
    begun, going, ended = threading.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow() -> str:
        begun.set()
        assert going.wait(60)
        loop.call_soon_threadsafe(ended.set)
        return "too late"

    limit, key = 0.02, ""
    while not begun.is_set():  # a busy machine may not have begun a thread within its limit
        key = f"mail within {limit:g}"
        with pytest.raises(EffectUnknownError, match=rf"longer than its limit of {limit:g} s"):
            await agent.effect(key, limit=limit).run(slow)
        limit *= 2
    going.set()
    await ended.wait()
    record = (await agent.effects())[-1]
    assert (record.key, record.status) == (key, EffectStatus.UNKNOWN)
    with pytest.raises(EffectUnknownError):
        await other.effect(key).run(slow)


async def test_a_stop_iteration_is_heard_of(agent: Agent) -> None:
    """No future can carry one: it comes as coroutines raise it."""

    def stops() -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        await agent.effect("mail").run(stops)
    assert (await status(agent)).status is EffectStatus.UNKNOWN


async def test_of_many_at_once_one_carries_it_out(agents: Agents, mail: Mail) -> None:
    """The others hear that it is in progress, or get the result."""
    going = asyncio.Event()

    async def slow() -> int:
        await going.wait()
        await mail.send()
        return 7

    calls = [
        asyncio.create_task(agents.agent("alice", label=f"w{n}").effect("mail").run(slow))
        for n in range(20)
    ]
    await until(lambda: sum(call.done() for call in calls) == 19)
    going.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert outcomes.count(7) == 1
    assert sum(isinstance(o, EffectInProgressError) for o in outcomes) == 19
    assert mail.sent == 1
    assert await agents.agent("alice").effect("mail").run(slow) == 7


async def test_one_object_is_for_one_at_a_time(agent: Agent, mail: Mail) -> None:
    """Whoever enters while somebody is in gets an error, in the middle of it too; one mail."""
    effect = agent.effect("mail")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        begun.set()
        await go_on.wait()
        await mail.send()
        return "sent"

    first = asyncio.create_task(effect.run(slow))
    at_once = await asyncio.gather(effect.run(slow), return_exceptions=True)
    await begun.wait()
    claim = await status(agent)
    for late in (effect.run(mail.send), effect.retry(), effect.__aenter__()):
        with pytest.raises(EffectInProgressError, match="this very Effect object") as caught:
            await late
        assert (caught.value.claimed_by, caught.value.status) == ("w1", "claimed")
        assert (caught.value.since, caught.value.deadline) == (claim.claimed_at, claim.deadline)
    go_on.set()
    assert await first == "sent"
    assert [type(one) for one in at_once] == [EffectInProgressError]
    assert await effect.run(mail.send) == "sent"
    assert mail.sent == 1


async def test_a_refused_entry_leaves_the_object_free(agent: Agent, other: Agent) -> None:
    """Who was refused by the record can enter again once it allows it."""
    effect = agent.effect("mail")
    async with other.effect("mail") as first:
        with pytest.raises(EffectInProgressError):
            await effect.run(print)
        first.commit("sent")
    assert await effect.run(print) == "sent"


async def test_an_object_goes_by_the_record_and_not_by_what_it_did_before(
    agent: Agent, state: StateManager, mail: Mail
) -> None:
    """A result that was not kept for good is gone for the object that made it too."""
    effect = agent.effect("mail", keep=3600)
    assert (await effect.run(mail.send))["id"] == 1
    await state.delete(S, KEY)  # as after its time
    assert (await effect.run(mail.send))["id"] == 2
    assert (await status(agent)).status is EffectStatus.COMMITTED


async def test_as_a_block_the_outcome_is_said(agent: Agent, other: Agent, mail: Mail) -> None:
    """Inside it is not done yet; after it, everybody has the result."""
    async with agent.effect("mail") as effect:
        assert not effect.done
        with pytest.raises(InvalidArgumentError, match="no result yet: it has one once its block"):
            _ = effect.result
        effect.commit(await mail.send("bob"))
    assert (effect.done, effect.result) == (True, {"to": ["bob"], "id": 1})
    async with other.effect("mail") as again:
        assert (again.done, again.result) == (True, effect.result)
        with pytest.raises(InvalidArgumentError):
            again.commit("other")
    assert await other.effect("mail").run(mail.send) == effect.result
    assert mail.sent == 1


async def test_a_large_result_is_stored(agent: Agent, other: Agent) -> None:
    """Beyond what one request carries, and in the list of effects too."""
    result = {"text": "x" * 700_000, "when": T0}
    assert await agent.effect("mail").run(lambda: result) == result
    assert await other.effect("mail").run(print) == result
    assert (await status(agent)).result == result


async def test_a_result_is_kept_as_long_as_wanted(agent: Agent, store: Store) -> None:
    """With a time to keep the record expires; the claim before it never does."""
    async with agent.effect("mail", keep=timedelta(days=1)) as effect:
        assert store.record(S, KEY).expires_ms == 0
        effect.commit()
    record = store.record(S, KEY)
    kept_ms = record.expires_ms - record.revision.ms
    assert abs(kept_ms - 86_400_000) < 1000  # fakeredis reads its clock twice
    await agent.effect("other").run(print)
    assert store.record(S, "agent.effect.other").expires_ms == 0


# --- what is not done


async def test_a_raised_exception_leaves_the_outcome_unknown(
    agent: Agent, other: Agent, mail: Mail
) -> None:
    """The caller sees its own exception; whoever comes next is told, and nothing is repeated."""

    async def breaks() -> None:
        await mail.send()
        raise ConnectionError("the reply was lost, https://u:secret@host")

    with pytest.raises(ConnectionError):
        await agent.effect("mail").run(breaks)
    for each in (agent, other):
        with pytest.raises(EffectUnknownError) as caught:
            await each.effect("mail").run(mail.send)
        assert (caught.value.claimed_by, caught.value.status) == ("w1", "unknown")
        assert "ConnectionError: the reply was lost" in str(caught.value)
        assert "secret" not in str(caught.value)
    assert mail.sent == 1


async def test_an_exception_that_says_not_done_is_a_failure(agent: Agent, mail: Mail) -> None:
    """Then it may be retried, if the caller says so."""

    def bounce() -> None:
        raise BounceError("no such user")

    with pytest.raises(BounceError):
        await agent.effect("mail", failed_on=BounceError).run(bounce)
    with pytest.raises(EffectFailedError, match="no such user"):
        await agent.effect("mail").run(mail.send)
    assert mail.sent == 0
    assert (await agent.effect("mail", retry_failed=True).run(mail.send))["id"] == 1
    record = await status(agent)
    assert (record.status, record.attempts, record.reason) == ("committed", 2, None)


async def test_a_block_can_say_that_it_failed(agent: Agent) -> None:
    """With a text or an exception."""
    for reason, text in (("no", "no"), (BounceError("gone"), "BounceError: gone")):
        async with agent.effect("mail", retry_failed=True) as effect:
            effect.fail(reason)
        assert not effect.done
        record = await status(agent)
        assert (record.status, record.reason) == (EffectStatus.FAILED, text)
    async with agent.effect("other") as effect:
        with pytest.raises(InvalidArgumentError):
            effect.fail(5)  # type: ignore[arg-type]
        effect.commit()


async def test_a_block_that_says_nothing_leaves_the_outcome_unknown(agent: Agent) -> None:
    """Forgetting to say is no success."""
    async with agent.effect("mail"):
        pass
    record = await status(agent)
    assert record.status is EffectStatus.UNKNOWN
    assert record.reason is not None
    assert "without saying" in record.reason


async def test_what_was_said_holds_whatever_happens_after_it(agent: Agent) -> None:
    """The mail was sent, and then something else broke."""

    async def breaks() -> None:
        async with agent.effect("mail") as effect:
            effect.commit("sent")
            raise BounceError

    with pytest.raises(BounceError):
        await breaks()
    assert (await status(agent)).status is EffectStatus.COMMITTED


async def test_a_cancelled_effect_is_unknown(agent: Agent, other: Agent) -> None:
    """Who is cancelled in the middle cannot tell whether it happened."""
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(agent.effect("mail").run(hangs))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(EffectUnknownError, match="CancelledError"):
        await other.effect("mail").run(print)


@pytest.mark.parametrize("times", [2, 5])
async def test_an_effect_cancelled_again_and_again_is_unknown(
    agent: Agent, other: Agent, times: int
) -> None:
    """What was begun is stored as unknown whenever the other cancellations come."""
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(agent.effect("mail").run(hangs))
    await begun.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await status(agent)).reason == "CancelledError"
    with pytest.raises(EffectUnknownError, match="CancelledError"):
        await other.effect("mail").run(print)


async def test_a_result_is_stored_although_its_caller_is_cancelled(
    agent: Agent, other: Agent
) -> None:
    """It happened, so everybody hears that; the caller hears that it was cancelled."""
    effect = agent.effect("mail")
    tasks: list[asyncio.Task[Any]] = []

    async def sends() -> str:
        asyncio.get_running_loop().call_soon(tasks[0].cancel)
        return "sent"

    tasks.append(asyncio.create_task(effect.run(sends)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert (effect.done, effect.result) == (True, "sent")
    assert await other.effect("mail").run(print) == "sent"


async def test_who_is_cancelled_hears_of_that_when_storing_fails_too(
    agent: Agent, state: StateManager
) -> None:
    """The failure is the cause of the cancellation."""
    effect = agent.effect("mail")

    async def vanishes() -> None:
        await state.delete(S, KEY)
        asyncio.get_running_loop().call_soon(tasks[0].cancel)

    tasks = [asyncio.create_task(effect.run(vanishes))]
    with pytest.raises(asyncio.CancelledError) as caught:
        await tasks[0]
    assert isinstance(caught.value.__cause__, EffectTakenOverError)


async def test_the_limit_ends_what_takes_too_long(agent: Agent) -> None:
    """The function is cancelled, the outcome unknown, and the caller is told so."""
    cancelled = asyncio.Event()

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(EffectUnknownError, match="longer than its limit") as caught:
        await agent.effect("mail", limit=0.02).run(hangs)
    assert cancelled.is_set()
    assert (caught.value.status, caught.value.recorded) == ("unknown", "unknown")
    assert (await status(agent)).status is EffectStatus.UNKNOWN
    with pytest.raises(EffectUnknownError) as again:
        await agent.effect("mail").run(hangs)
    assert str(again.value) == str(caught.value)


async def test_what_somebody_resolved_past_the_limit_is_not_called_unknown(
    agent: Agent, other: Agent, raw: Raw
) -> None:
    """Who took too long hears that it was decided meanwhile."""

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await past_deadline(other, raw)
            await other.effect("mail").resolve("by hand")

    with pytest.raises(EffectTakenOverError) as caught:
        await agent.effect("mail", limit=0.02).run(hangs)
    assert caught.value.status == "committed"


async def test_a_timeout_of_the_functions_own_is_its_own(agent: Agent) -> None:
    """It reaches the caller as it is."""

    def breaks() -> None:
        raise TimeoutError("the mail server's")

    with pytest.raises(TimeoutError, match="the mail server's"):
        await agent.effect("mail").run(breaks)


async def test_a_result_that_cannot_be_stored_is_an_unknown_outcome(agent: Agent) -> None:
    """It happened, so it must not run again; and nobody can be given the result."""
    with pytest.raises(CodecError):
        await agent.effect("mail").run(lambda: print)
    record = await status(agent)
    assert record.status is EffectStatus.UNKNOWN
    assert record.reason is not None
    assert record.reason.startswith("CodecError")
    await agent.effect("mail").resolve("sent")
    assert await agent.effect("mail").run(print) == "sent"


# --- claims that were left behind


async def test_a_claim_within_its_limit_is_in_progress(agent: Agent, other: Agent) -> None:
    """The error says who, since when and until when, by the server's clock."""
    await left_behind(agent, limit=30)
    for call in (other.effect("mail").run(print), other.effect("mail").resolve(),
                 other.effect("mail").retry()):  # fmt: skip
        with pytest.raises(EffectInProgressError) as caught:
            await call
        error = caught.value
        assert (error.claimed_by, error.token, error.status) == ("w1", None, "claimed")
        assert error.since is not None
        assert error.deadline is not None
        assert error.deadline - error.since == timedelta(seconds=30)
        assert error.retryable
    assert (await status(agent)).status is EffectStatus.CLAIMED


async def test_a_claim_past_its_limit_is_an_unknown_outcome(
    agent: Agent, other: Agent, mail: Mail, raw: Raw
) -> None:
    """A process died between claim and commit: shown, listed, and never silently repeated."""
    await left_behind(agent, limit=0.05)
    await past_deadline(agent, raw)
    for _ in range(2):
        with pytest.raises(EffectUnknownError, match="limit was over") as caught:
            await other.effect("mail").run(mail.send)
        assert caught.value.claimed_by == "w1"
        assert (caught.value.facts["status"], caught.value.recorded) == ("unknown", "claimed")
    assert (await status(other)).status is EffectStatus.UNKNOWN
    assert mail.sent == 0


async def test_who_took_too_long_can_still_say_how_it_ended(
    agent: Agent, other: Agent, raw: Raw
) -> None:
    """As long as nobody else has decided meanwhile."""
    async with agent.effect("mail", limit=0.05) as effect:
        await past_deadline(agent, raw)
        effect.commit("sent")
    assert await other.effect("mail").run(print) == "sent"


@pytest.mark.parametrize("way", ["resolve", "retry"])
async def test_who_was_overtaken_cannot_commit(
    agent: Agent, other: Agent, raw: Raw, way: str
) -> None:
    """Somebody decided that the claim was dead; its holder then hears that it is gone."""
    effect = agent.effect("mail", limit=0.05)

    async def late() -> None:
        async with effect:
            await past_deadline(agent, raw)
            await getattr(other.effect("mail"), way)()
            effect.commit("late")

    with pytest.raises(EffectTakenOverError) as caught:
        await late()
    assert caught.value.claimed_by == ("w1" if way == "resolve" else "w2")
    assert not effect.done


async def test_an_outcome_can_be_resolved(agent: Agent, other: Agent, mail: Mail) -> None:
    """It did happen: whoever asks gets the result that was given."""
    async with agent.effect("mail"):
        pass
    effect = other.effect("mail")
    await effect.resolve({"id": 7})
    assert (effect.done, effect.result) == (True, {"id": 7})
    assert await agent.effect("mail").run(mail.send) == {"id": 7}
    assert mail.sent == 0


async def test_an_outcome_can_be_retried(agent: Agent, other: Agent, mail: Mail) -> None:
    """It did not happen: the object that says so holds the claim and carries it out."""
    async with agent.effect("mail"):
        pass
    effect = other.effect("mail")
    await effect.retry()
    with pytest.raises(EffectInProgressError):
        await agent.effect("mail").run(mail.send)
    assert (await effect.run(mail.send))["id"] == 1
    record = await status(agent)
    assert (record.status, record.attempts, record.claimed_by) == ("committed", 2, "w2")


async def decided(effect: Effect, way: str) -> None:
    """Let somebody else decide after a retry."""
    if way == "resolved":
        await effect.resolve("by hand")
        return
    await effect.retry()
    if way == "carried out":
        await effect.run(lambda: "by the other")
    elif way == "claimed":
        await effect.__aenter__()
    elif way == "unknown":
        async with effect:
            pass
    else:
        async with effect:
            effect.fail("no such address")


@pytest.mark.parametrize(
    ("way", "outcome"),
    [
        ("resolved", "by hand"),
        ("carried out", "by the other"),
        ("claimed", EffectInProgressError),
        ("unknown", EffectUnknownError),
        ("failed", EffectFailedError),
    ],
)
async def test_a_retry_that_was_overtaken_carries_nothing_out(
    agent: Agent, other: Agent, raw: Raw, way: str, outcome: Any
) -> None:
    """Past its limit another decided: what that one made of it holds."""
    sent: list[int] = []
    async with agent.effect("mail"):
        pass
    effect = agent.effect("mail", limit=0.05)
    await effect.retry()
    await past_deadline(agent, raw)
    await decided(other.effect("mail"), way)
    if isinstance(outcome, str):
        assert await effect.run(sent.append, 1) == outcome
    else:
        with pytest.raises(outcome):
            await effect.run(sent.append, 1)
    assert sent == []


async def test_a_retry_that_was_slow_begins_with_its_whole_limit(
    agent: Agent, other: Agent, raw: Raw, mail: Mail
) -> None:
    """Nobody decided meanwhile and nothing was begun: it is claimed anew before it is begun."""
    async with agent.effect("mail"):
        pass
    effect = agent.effect("mail", limit=0.05)
    await effect.retry()
    before = await status(agent)
    await past_deadline(agent, raw)
    async with effect:
        claim = await status(agent)
        assert claim.claimed_at >= before.deadline
        assert claim.attempts == before.attempts == 2
        await mail.send()
        effect.commit("sent")
    assert await other.effect("mail").run(mail.send) == "sent"
    assert mail.sent == 1


async def test_a_retry_is_good_for_one_block(agent: Agent, mail: Mail) -> None:
    """After a block that left the outcome unknown it has to be said again."""
    effect = agent.effect("mail")
    for _ in range(2):
        await effect.retry()
        async with effect:
            pass
        with pytest.raises(EffectUnknownError):
            await effect.run(mail.send)
    assert mail.sent == 0


async def test_an_effect_can_be_resolved_before_anybody_claimed_it(
    agent: Agent, mail: Mail
) -> None:
    """Somebody did it by hand."""
    await agent.effect("mail").resolve("by hand")
    assert await agent.effect("mail").run(mail.send) == "by hand"
    assert mail.sent == 0


async def test_what_has_happened_can_be_neither_resolved_nor_retried(agent: Agent) -> None:
    """A stored result stays as it is."""
    await agent.effect("mail").run(lambda: 1)
    for call in (agent.effect("mail").resolve(2), agent.effect("mail").retry()):
        with pytest.raises(EffectCommittedError):
            await call
    assert await agent.effect("mail").run(print) == 1


async def test_of_many_that_resolve_at_once_one_decides(agents: Agents, agent: Agent) -> None:
    """The others are told that it was decided."""
    async with agent.effect("mail"):
        pass
    calls = [agents.agent("alice").effect("mail").resolve(n) for n in range(8)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert outcomes.count(None) == 1
    assert sum(isinstance(o, EffectCommittedError) for o in outcomes) == 7
    assert await agent.effect("mail").run(print) == outcomes.index(None)


async def test_of_many_that_retry_at_once_one_claims(agents: Agents, agent: Agent) -> None:
    """The others are told that somebody is at it."""
    async with agent.effect("mail"):
        pass
    effects = [agents.agent("alice", label=f"w{n}").effect("mail") for n in range(8)]
    outcomes = await asyncio.gather(*(e.retry() for e in effects), return_exceptions=True)
    assert outcomes.count(None) == 1
    assert sum(isinstance(o, EffectInProgressError) for o in outcomes) == 7
    assert await effects[outcomes.index(None)].run(lambda: "sent") == "sent"


async def test_two_clients_see_one_record(
    url: str, namespace: str, agent: Agent, mail: Mail
) -> None:
    """Two processes with connections of their own see one record."""
    async with connect(url, namespace=namespace, client_name="host:9") as second:
        there = agents_of(second).agent("alice")
        assert await there.effect("mail").run(mail.send) == await agent.effect("mail").run(
            mail.send
        )
    assert mail.sent == 1


# --- the list


async def test_effects_are_listed_as_they_stand(agent: Agent, raw: Raw) -> None:
    """By the time of their claim, each with who, when and what."""
    await agent.effect("one").run(lambda: 1)
    await agent.effect("two", failed_on=BounceError).resolve(2)
    async with agent.effect("three"):
        pass
    await left_behind(agent, limit=3600)
    records = await agent.effects()
    assert [(r.key, r.status.value) for r in records] == [
        *(("one", "committed"), ("two", "committed"), ("three", "unknown"), ("mail", "claimed")),
    ]
    assert all(r.claimed_by == "w1" and r.attempts == 1 and r.token is None for r in records)
    assert [r.result for r in records] == [1, 2, None, None]
    now = datetime.fromtimestamp(raw.now_ms() / 1000, UTC)
    assert all(timedelta(0) <= now - r.claimed_at < timedelta(minutes=1) for r in records)


async def test_effects_of_one_millisecond_are_listed_in_their_order(
    agent: Agent, state: StateManager
) -> None:
    """Many are claimed at once, and the list has them by the revisions of their claims."""
    keys = [f"mail-{n}" for n in range(40)]
    await asyncio.gather(*(agent.effect(key).run(lambda: 1) for key in keys))
    claims = {}
    for key in keys:
        *_, first = await state.history(S, effect_key(key))  # newest first
        claims[key] = first.revision
    records = await agent.effects()
    assert [r.key for r in records] == sorted(claims, key=lambda key: claims[key])
    assert {r.key: r.claimed for r in records} == claims
    assert [r.claimed_at for r in records] == [r.claimed.time for r in records]


async def test_many_effects_are_listed(agent: Agent) -> None:
    """More than one page of them."""
    await asyncio.gather(*(agent.effect(f"e{n}").run(lambda: 1) for n in range(700)))
    assert {r.key for r in await agent.effects()} == {f"e{n}" for n in range(700)}


async def test_who_claims_is_named_by_label_context_or_process(agents: Agents) -> None:
    """For the people who have to find out what happened."""
    with context(actor="planner-3"):
        await agents.agent("alice").effect("a").run(print)
    await agents.agent("alice").effect("b").run(print)
    await agents.agent("alice", label="w9").effect("c").run(print)
    by = {record.key: record.claimed_by for record in await agents.agent("alice").effects()}
    assert (by["a"], by["c"]) == ("planner-3", "w9")
    assert ":" in by["b"]


# --- bad input and damage


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda a: a.effect(""), InvalidArgumentError),
        (lambda a: a.effect(5), InvalidArgumentError),
        (lambda a: a.effect("x" * 300), InvalidArgumentError),
        (lambda a: a.effect("x", limit=0), InvalidArgumentError),
        (lambda a: a.effect("x", limit=float("inf")), InvalidArgumentError),
        (lambda a: a.effect("x", limit="1"), InvalidArgumentError),
        (lambda a: a.effect("x", keep=0), InvalidTTLError),
        (lambda a: a.effect("x", keep="1"), InvalidTTLError),
    ],
)
async def test_bad_input_is_refused_at_once(
    agent: Agent, call: Callable[[Any], Any], error: type[Exception]
) -> None:
    """Before anything is sent or called."""
    with pytest.raises(error):
        call(agent)


async def test_what_cannot_be_called_claims_nothing(agent: Agent) -> None:
    """A slip does not leave a claim behind."""
    with pytest.raises(InvalidArgumentError):
        await agent.effect("mail").run("send")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        agent.effect("mail").commit()
    assert await agent.effects() == []


async def test_without_an_agent_nothing_is_claimed(agents: Agents, mail: Mail) -> None:
    """An effect belongs to an agent that is there."""
    calls: list[Awaitable[Any]] = [
        agents.agent("nobody").effect("mail").run(mail.send),
        agents.agent("nobody").effect("mail").resolve(1),
        agents.agent("nobody").effect("mail").retry(),
    ]
    for call in calls:
        with pytest.raises(AgentNotFoundError):
            await call
    assert mail.sent == 0


@pytest.mark.parametrize(
    ("stored", "error"),
    [
        ("text", CorruptRecordError),
        ({"layout": 2}, UnsupportedFormatError),
        ({"layout": 1, "status": "claimed"}, CorruptRecordError),
        ({"layout": 1, "status": "?", "key": "mail"}, CorruptRecordError),
        ({**SETTLED, "claimed": "yesterday"}, CorruptRecordError),
        ({**SETTLED, "claimed": None}, CorruptRecordError),
    ],
)
async def test_a_record_that_is_none_is_never_taken_for_absent(
    agent: Agent, state: StateManager, mail: Mail, stored: Any, error: type[Exception]
) -> None:
    """What cannot be understood is not repeated either."""
    await state.set(S, KEY, stored)
    with pytest.raises(error):
        await agent.effect("mail").run(mail.send)
    with pytest.raises(error):
        await agent.effects()
    assert mail.sent == 0


# --- with a lease


def fenced(agent: Agent, token: int | None) -> Agent:
    """A handle that claims with a fencing token, as one of `run` does."""
    agent._effects.token = token
    return agent


@pytest.mark.library_only("tokens are those of the leases that a request carries")
async def test_the_claim_of_an_earlier_holder_is_an_unknown_outcome(
    agent: Agent, other: Agent, mail: Mail
) -> None:
    """Whoever holds the lease now need not wait for the limit of one who cannot write any more."""
    await left_behind(fenced(agent, 7), limit=3600)
    with pytest.raises(EffectInProgressError):
        await fenced(other, 7).effect("mail").run(mail.send)
    with pytest.raises(EffectInProgressError):
        await fenced(other, None).effect("mail").run(mail.send)
    with pytest.raises(EffectUnknownError, match="lost the lease") as caught:
        await fenced(other, 8).effect("mail").run(mail.send)
    assert caught.value.token == 7
    assert (await status(other)).status is EffectStatus.UNKNOWN
    effect = other.effect("mail")
    await effect.retry()
    await effect.run(mail.send)
    assert (await status(other)).token == 8
    assert mail.sent == 1


async def test_a_claim_without_a_lease_keeps_its_limit(agent: Agent, other: Agent) -> None:
    """Nobody can tell that its process is gone."""
    await left_behind(fenced(agent, None), limit=3600)
    with pytest.raises(EffectInProgressError):
        await fenced(other, 8).effect("mail").run(print)


@pytest.mark.library_only("it looks into claiming, which the sidecar does")
async def test_a_conflict_that_never_ends_is_told(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After many attempts the conflict itself is raised, and nothing was called."""

    def look(key: str) -> Any:
        seen = yield from original(key)
        return replace(seen, record=None)

    original = agent._effects.look
    await left_behind(agent)
    monkeypatch.setattr(agent._effects, "look", look)

    async def no_pause(driver: Any, seconds: float) -> None:
        """Time does not matter here."""

    monkeypatch.setattr("llmspell_dist.state.driver.AsyncDriver.pause", no_pause)
    with pytest.raises(ConflictError):
        await agent.effect("mail").run(print)
