"""Writes that come a second time: what a sidecar remembers of them, and what it has to forget."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from llmspell_dist.errors import (
    AckNotReachedError,
    AnswerLostError,
    InvalidArgumentError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from llmspell_dist.sidecar import remembering
from llmspell_dist.sidecar.errors import RepeatUnknownError
from llmspell_dist.sidecar.receiving import ClientGoneError
from llmspell_dist.sidecar.repeats import Repeats
from llmspell_dist.sidecar.reply import Reply
from llmspell_dist.sidecar.routes.shapes import Count, Revised

pytestmark = pytest.mark.unit


class Writes:
    """Requests to a `Repeats`, and how often each was carried out."""

    def __init__(self) -> None:
        self.repeats = Repeats()
        self.made: list[int] = []
        self.retried: list[Any] = []
        self.error: Exception | None = None
        self.returns: type | None = Revised
        self.revision: str | None = "9-9"
        self.headers: dict[bytes, bytes] = {}

    async def send(
        self,
        number: int,
        settled: int = 0,
        *,
        again: str | None = None,
        client: str = "c",
        label: str = "token:t",
    ) -> Reply | None:
        headers = {b"llmspell-request": f"{client}:{number}:{settled}".encode()} | self.headers
        if again is not None:
            headers[b"llmspell-repeat"] = again.encode()

        async def retry(operation: Any) -> str | None:
            self.retried.append(operation)
            return self.revision

        state = SimpleNamespace(retry=retry)
        call: Any = SimpleNamespace(
            headers=headers,
            principal=SimpleNamespace(label=label),
            state=state,
            endpoint=SimpleNamespace(returns=self.returns),
        )

        async def carry_out() -> Reply:
            self.made.append(number)
            await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
            return Reply({"n": len(self.made)})

        return await self.repeats.run(call, carry_out)

    @property
    def here(self) -> str:
        """What this client would have been told by now."""
        return self.repeats.instance("token:t")


async def test_a_repetition_gets_the_first_answer() -> None:
    """Also while the first is under way; the answer names this start of the sidecar."""
    writes = Writes()
    first, second = await asyncio.gather(writes.send(1), writes.send(1, again=writes.here))
    third = await writes.send(1, again=writes.here)
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.document == second.document == third.document == {"n": 1}
    assert (b"llmspell-instance", writes.here.encode()) in first.headers
    assert writes.made == [1]


async def test_what_was_begun_ends_without_its_client() -> None:
    """The repetition finds it done."""
    writes = Writes()
    leaving = asyncio.ensure_future(writes.send(1))
    await asyncio.sleep(0)
    leaving.cancel()
    reply = await writes.send(1, again=writes.here)
    assert reply is not None
    assert (reply.document, writes.made) == ({"n": 1}, [1])


async def test_a_repetition_of_another_start_is_not_carried_out() -> None:
    """Nobody here knows; one that never arrived here is carried out now."""
    writes = Writes()
    with pytest.raises(RepeatUnknownError):
        await writes.send(1, again="of yesterday")
    assert writes.made == []
    await writes.send(1, again=writes.here)
    assert writes.made == [1]


async def test_what_is_settled_is_forgotten_and_not_carried_out_again() -> None:
    """A number below has no second life."""
    writes = Writes()
    for number in (1, 2, 3):
        await writes.send(number, settled=number)
    with pytest.raises(RepeatUnknownError):
        await writes.send(1, again=writes.here)
    assert writes.made == [1, 2, 3]


async def test_one_client_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first, and are not carried out again."""
    monkeypatch.setattr(remembering, "MAX_ENTRIES", 10)
    writes = Writes()
    for number in range(1, 31):
        await writes.send(number)
    with pytest.raises(RepeatUnknownError):
        await writes.send(5, again=writes.here)
    reply = await writes.send(30, again=writes.here)
    assert reply is not None
    assert reply.document == {"n": 30}


async def test_many_clients_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told before one was forgotten vouches for nothing any more; later it does again."""
    monkeypatch.setattr(remembering, "MAX_CLIENTS", 2)
    writes = Writes()
    told = writes.here
    for client in "abc":
        await writes.send(1, client=client)
    for client in "ad":
        with pytest.raises(RepeatUnknownError):
            await writes.send(1, client=client, again=told)
    assert len(writes.made) == 3
    await writes.send(1, client="d", again=writes.here)
    assert len(writes.made) == 4


async def test_a_client_that_was_silent_for_long_is_not_served_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even when another write of it has made it known again."""
    now = [1000.0]
    monkeypatch.setattr(remembering, "monotonic", lambda: now[0])
    writes = Writes()
    told = writes.here
    await writes.send(1)
    now[0] += remembering.KEPT_S + 1
    await writes.send(1, client="another")
    for before in (told, told.rpartition(".")[0], ""):
        with pytest.raises(RepeatUnknownError):
            await writes.send(1, again=before)
    await writes.send(7)
    with pytest.raises(RepeatUnknownError):
        await writes.send(2, again=told)
    await writes.send(8, again=writes.here)
    assert writes.made == [1, 1, 7, 8]


async def test_a_silent_principal_is_forgotten_and_not_served_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever writes next lets its memory go."""
    now = [1000.0]
    monkeypatch.setattr(remembering, "monotonic", lambda: now[0])
    writes = Writes()
    told = writes.here
    await writes.send(1)
    now[0] += remembering.KEPT_S + 1
    await writes.send(1, label="token:other")
    with pytest.raises(RepeatUnknownError):
        await writes.send(1, again=told)
    assert len(writes.made) == 2


async def test_what_another_principal_was_told_vouches_for_nothing() -> None:
    """It may have been the one that wrote."""
    writes = Writes()
    await writes.send(1, label="token:other")
    with pytest.raises(RepeatUnknownError):
        await writes.send(1, again=writes.repeats.instance("token:other"))
    with pytest.raises(RepeatUnknownError):
        await writes.send(1, again=writes.here + "9")
    assert writes.made == [1]


@pytest.mark.parametrize("flood", ["clients", "entries"])
async def test_one_principal_costs_the_others_no_memory(
    monkeypatch: pytest.MonkeyPatch, flood: str
) -> None:
    """Neither by its own bounds nor by that of all: who holds the most gives way."""
    monkeypatch.setattr(remembering, "MAX_CLIENTS", 20)
    monkeypatch.setattr(remembering, "MAX_ENTRIES", 20)
    monkeypatch.setattr(remembering, "MAX_HELD", 30)
    writes = Writes()
    told = writes.here
    await writes.send(1)
    for place in range(100):
        name, number = (f"x{place}", 1) if flood == "clients" else ("x", place)
        await writes.send(number, client=name, label="token:many")
    reply = await writes.send(1, again=told)
    assert reply is not None
    assert reply.document == {"n": 1}
    await writes.send(2, again=told)
    assert len(writes.made) == 102
    assert writes.repeats._memory._held <= 30


async def test_all_principals_together_stay_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """If nobody holds more than another, those that were silent for the longest go."""
    monkeypatch.setattr(remembering, "MAX_HELD", 20)
    writes = Writes()
    told = writes.here
    for place in range(40):
        await writes.send(1, label=f"token:{place}")
    await writes.send(1, label="token:39", again=writes.repeats.instance("token:39"))
    assert len(writes.made) == 40
    with pytest.raises(RepeatUnknownError):
        await writes.send(1, again=told)
    assert writes.repeats._memory._held <= 20


@pytest.mark.parametrize("error", [StoreUnavailableError("h", "away"), ClientGoneError()])
async def test_what_did_not_happen_may_be_tried_again(error: Exception) -> None:
    """The repetition is carried out."""
    writes = Writes()
    writes.error = error
    with pytest.raises(type(error)):
        await writes.send(1)
    writes.error = None
    assert await writes.send(1, again=writes.here) is not None
    assert writes.made == [1, 1]


async def test_an_unknown_outcome_is_settled_by_its_operation() -> None:
    """Redis is asked what became of the commit; the handler does not run a second time."""
    writes = Writes()
    writes.error = OutcomeUnknownError("h", operation="op-1")
    with pytest.raises(OutcomeUnknownError):
        await writes.send(1)
    for _ in range(2):
        reply = await writes.send(1, again=writes.here)
        assert reply is not None
        assert reply.document == Revised("9-9")
    assert (writes.made, writes.retried) == ([1], ["op-1"])


@pytest.mark.parametrize("returns", [Count, None])
async def test_an_answer_that_nobody_knows_is_not_made_up(returns: type | None) -> None:
    """The commit is there, and says nothing of what its route answers."""
    writes = Writes()
    writes.error, writes.returns = OutcomeUnknownError("h", operation="op-1"), returns
    with pytest.raises(OutcomeUnknownError):
        await writes.send(1)
    for _ in range(2):
        with pytest.raises(AnswerLostError) as caught:
            await writes.send(1, again=writes.here)
        assert (caught.value.revision, caught.value.may_have_happened) == ("9-9", True)
    assert (writes.made, writes.retried) == ([1], ["op-1"])


async def test_a_write_that_had_nothing_to_change_has_no_revision_to_answer_with() -> None:
    """It says so instead."""
    writes = Writes()
    writes.error, writes.revision = OutcomeUnknownError("h", operation="op-1"), None
    with pytest.raises(OutcomeUnknownError):
        await writes.send(1)
    with pytest.raises(AnswerLostError, match="nothing had to be changed"):
        await writes.send(1, again=writes.here)


async def test_a_claim_of_an_idempotency_key_is_not_taken_for_the_write() -> None:
    """The unknown commit may be that of the key."""
    writes = Writes()
    writes.headers = {b"idempotency-key": b"k"}
    writes.error = OutcomeUnknownError("h", operation="op-1")
    for again in (None, writes.here):
        with pytest.raises(OutcomeUnknownError):
            await writes.send(1, again=again)
    assert (writes.made, writes.retried) == ([1], [])


async def test_a_level_that_is_not_reached_still_is_what_is_told() -> None:
    """The write has happened: that is known, and waited for anew."""
    writes = Writes()
    writes.error = AckNotReachedError("h", "replicated(1)", 0, "op-1")
    with pytest.raises(AckNotReachedError):
        await writes.send(1)
    reply = await writes.send(1, again=writes.here)
    assert reply is not None
    assert isinstance(reply.document, Revised)


@pytest.mark.parametrize("said", ["c", "c:1", "c:x:1", ":1:1", "c:1:1:1", "c" * 65 + ":1:1"])
async def test_a_malformed_number_is_bad_input(said: str) -> None:
    """Nothing is carried out."""
    call: Any = SimpleNamespace(headers={b"llmspell-request": said.encode()})
    with pytest.raises(InvalidArgumentError):
        await Repeats().run(call, lambda: pytest.fail("carried out"))
