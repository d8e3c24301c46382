"""A client of a sidecar: connecting, showing a token, and writes that happen once."""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fix_events import EventStore, Refusing, everything_of, refuse_calls, soon
from fix_remote import Grants, Relay
from fix_servers import Server
from fix_sidecar import Sidecar, StartSidecar, running_sidecar
from fix_state import Raw, until

from llmspell_dist import (
    AnswerLostError,
    Change,
    ClosedError,
    ConflictError,
    InvalidArgumentError,
    InvalidURLError,
    NamespaceMismatchError,
    NearCache,
    Options,
    OutcomeUnknownError,
    Retention,
    StateManager,
    StoreBusyError,
    StorePermissionError,
    StoreUnavailableError,
    connect,
    context,
)
from llmspell_dist.correlation import correlation
from llmspell_dist.events import Event
from llmspell_dist.remote.errors import NotThroughSidecarError
from llmspell_dist.sidecar.auth.errors import ForbiddenError, UnauthenticatedError
from llmspell_dist.sidecar.deliveries import Deliveries
from llmspell_dist.sidecar.running import run
from llmspell_dist.sidecar.settings import SidecarSettings

pytestmark = pytest.mark.integration
S = "agent:alice"
StartRelay = Callable[[str], Any]
BUDGET = Options(retry_budget=2.0)


async def only_change(state: StateManager, key: str) -> Change:
    """Return the one change of a key that there is."""
    (change,) = await state.history(S, key)
    return change


# --- connecting ---------------------------------------------------------------------------------


async def test_a_url_decides_what_code_works_with(sidecar: Sidecar) -> None:
    """The same calls, the same answers; both see one state."""
    library = sidecar.services.spell
    async with connect(sidecar.url, namespace=library.namespace) as spell:
        assert spell.namespace == library.namespace
        assert spell.server is not None
        assert library.server is not None
        assert spell.server.version == library.server.version
        assert await spell.ping() > 0
        for one, other in ((spell, library), (library, spell)):
            revision = await one.state.set(S, "k", {"from": repr(one)})
            found = await other.state.get_record(S, "k")
            assert found == await one.state.get_record(S, "k")
            assert found is not None
            assert found.revision == revision


async def test_another_namespace_than_the_sidecars_is_refused(sidecar: Sidecar) -> None:
    """Where it connects, not at the first surprise; none given takes the sidecar's."""
    with pytest.raises(NamespaceMismatchError) as caught:
        await connect(sidecar.url, namespace="another")
    assert (caught.value.expected, caught.value.actual) == (
        "another",
        sidecar.services.spell.namespace,
    )
    async with connect(sidecar.url) as spell:
        assert spell.namespace == sidecar.services.spell.namespace


@pytest.mark.parametrize(
    "options",
    [
        Options(near_cache=NearCache()),
        Options(protocol=2),
        Options(shards=4),
        Options(retention=Retention()),
    ],
    ids=["near_cache", "protocol", "shards", "retention"],
)
async def test_an_option_that_means_nothing_there_is_refused(options: Options) -> None:
    """By its name, before anything is sent."""
    with pytest.raises(InvalidArgumentError, match="over HTTP it means nothing"):
        await connect("http://127.0.0.1:1", options=options)


async def test_what_a_sidecar_does_not_give_says_why(sidecar: Sidecar) -> None:
    """An attribute that is not there, for hasattr too."""
    async with connect(sidecar.url) as spell:
        assert not hasattr(spell, "hooks")
        with pytest.raises(NotThroughSidecarError, match="in the process that they are"):
            _ = spell.hooks


async def test_nobody_there_is_told_within_the_budget(sidecar_port: Callable[[], int]) -> None:
    """As the library says it of Redis."""
    with pytest.raises(StoreUnavailableError) as caught:
        await connect(f"http://127.0.0.1:{sidecar_port()}", options=Options(retry_budget=0.05))
    assert not caught.value.may_have_happened


async def test_a_token_for_redis_is_refused(url: str) -> None:
    """It would be shown to nobody."""
    with pytest.raises(InvalidArgumentError, match="only a sidecar"):
        await connect(url, token="llms_x")


async def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one knows what to install."""
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for module in [name for name in sys.modules if ".remote." in name]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(InvalidURLError, match=r"llmspell-dist\[remote\]"):
        await connect("http://127.0.0.1:1")


@pytest.mark.one_server
async def test_a_unix_socket_serves_as_well(
    url: str, namespace: str, short_folder: Path, sidecar_port: Callable[[], int]
) -> None:
    """Its path stands percent-encoded in the URL."""
    path = short_folder / "s.sock"
    async with (
        running_sidecar(url, namespace, sidecar_port(), unix=path),
        connect(f"http+unix://{quote(str(path), safe='')}") as spell,
    ):
        await spell.state.set(S, "k", 1)
        assert await spell.state.get(S, "k") == 1


async def test_a_sidecar_does_not_go_through_another_one() -> None:
    """Its URL names Redis; nothing is opened."""
    stop = asyncio.Event()
    with pytest.raises(InvalidURLError, match="must name Redis itself"):
        await run(SidecarSettings(), "http://127.0.0.1:1", Options(), stop=stop)


async def test_a_closed_client_says_so(sidecar: Sidecar) -> None:
    """Twice is allowed."""
    spell = await connect(sidecar.url)
    await spell.close()
    await spell.close()
    with pytest.raises(ClosedError):
        await spell.state.get(S, "k")


# --- who ----------------------------------------------------------------------------------------


async def test_a_token_is_shown_and_its_grants_decide(
    start_sidecar: StartSidecar, granted: Grants, tmp_path: Path
) -> None:
    """Given as text or as a file; what no grant covers is a `ForbiddenError` with its facts."""
    access, token = granted((S, "read write"))
    sidecar: Sidecar = await start_sidecar(access)
    file = tmp_path / "token"
    file.write_text(token)
    for shown in (token, file):
        async with connect(sidecar.url, token=shown) as spell:
            await spell.state.set(S, "k", 1)
            with pytest.raises(ForbiddenError) as caught:
                await spell.state.delete(S, "k")
            assert caught.value.facts == {"verb": "delete", "target": S}
            assert token not in repr(vars(spell))


async def test_a_token_that_was_replaced_is_read_again(
    start_sidecar: StartSidecar, granted: Grants, tmp_path: Path
) -> None:
    """The client goes on; Kubernetes rotates projected tokens."""
    access, token = granted((S, "read write"))
    sidecar: Sidecar = await start_sidecar(access)
    file = tmp_path / "token"
    file.write_text("stale")
    with pytest.raises(UnauthenticatedError):
        await connect(sidecar.url, token=file)
    file.write_text(token)
    async with connect(sidecar.url, token=file) as spell:
        await spell.state.set(S, "k", 1)
        fresh = tmp_path / "fresh"
        fresh.write_text("wrong")
        fresh.rename(file)
        with pytest.raises(UnauthenticatedError):
            await spell.state.get(S, "k")


async def test_the_log_says_who_wrote_on_whose_behalf(sidecar: Sidecar) -> None:
    """The context in force travels, in any script; without one it is the client's name."""
    async with connect(sidecar.url, client_name="worker-7") as spell:
        await spell.state.set(S, "plain", 1)
        with context("плановик", correlation_id="лauf %/1"):
            await spell.state.set(S, "said", 1)
        with correlation("run-1") as run:
            await spell.state.set(S, "run", 1)
        plain, said, of_run = [
            await only_change(spell.state, key) for key in ("plain", "said", "run")
        ]
    assert plain.context.actor == "worker-7"
    assert (said.actor, said.correlation_id) == ("плановик", "лauf %/1")
    assert said.context.traceparent is None
    assert (of_run.correlation_id, of_run.context.traceparent) == ("run-1", run.traceparent)


# --- lost answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", [True, False], ids=["answer lost", "request lost"])
async def test_a_write_whose_answer_was_lost_happens_once(
    sidecar: Sidecar, relay: StartRelay, forward: bool
) -> None:
    """It is sent again; the sidecar knows whether it was carried out."""
    between: Relay = await relay(sidecar.url)
    async with connect(f"http://127.0.0.1:{between.port}", options=BUDGET) as spell:
        between.lose_answer(b"/increment", forward=forward)
        assert await spell.state.increment(S, "n") == 1
        assert between.lost == 1
        between.lose_answer(b"/append", forward=forward)
        assert await spell.state.append(S, "l", "x") == 1
        assert await spell.state.get_all(S) == {"n": 1, "l": ["x"]}


async def test_a_condition_that_was_met_the_first_time_is_not_a_conflict_the_second(
    sidecar: Sidecar, relay: StartRelay
) -> None:
    """The repetition gets the answer of the first sending."""
    between: Relay = await relay(sidecar.url)
    async with connect(f"http://127.0.0.1:{between.port}", options=BUDGET) as spell:
        between.lose_answer(b"if-none-match")
        assert await spell.state.set_if_absent(S, "k", 1) is not None
        revision = await spell.state.set(S, "k", 2)
        with pytest.raises(ConflictError):
            await spell.state.compare_and_set(S, "k", 3, expected=None)
        between.lose_answer(b"if-match")
        await spell.state.compare_and_set(S, "k", 3, expected=revision)
        assert between.lost == 2


async def test_a_transaction_whose_answer_was_lost_commits_once(
    sidecar: Sidecar, relay: StartRelay
) -> None:
    """Also what it read still holds then."""
    between: Relay = await relay(sidecar.url)
    async with connect(f"http://127.0.0.1:{between.port}", options=BUDGET) as spell:
        between.lose_answer(b"/v1/transactions")
        async with spell.state.transaction() as tx:
            tx.set(S, "k", (await tx.get(S, "k", 0)) + 1)
            tx.append(S, "l", 1)
        assert between.lost == 1
        assert await spell.state.get_all(S) == {"k": 1, "l": [1]}


@pytest.mark.needs("process")
@pytest.mark.parametrize("what", ["increment", "append", "delete", "set"])
async def test_what_only_the_lost_answer_told_is_not_made_up(
    server: Server,
    namespace: str,
    sidecar_port: Callable[[], int],
    relay: StartRelay,
    what: str,
) -> None:
    """The connection and Redis fail one after the other: it happens once, and the error says so."""
    port = sidecar_port()
    behind = Options(retry_budget=0.5, call_timeout=0.5)
    raw = Raw(server.address)
    async with running_sidecar(server.url, namespace, port, options=behind) as sidecar:
        between: Relay = await relay(sidecar.url)
        patient = Options(retry_budget=20.0)
        async with connect(f"http://127.0.0.1:{between.port}", options=patient) as spell:
            state = spell.state
            await state.set(S, "n", 5)
            between.lose_answer(b"/v1/state")
            raw("CLIENT", "PAUSE", 60_000, "WRITE")
            call: dict[str, Callable[[], Any]] = {
                "increment": lambda: state.increment(S, "n"),
                "append": lambda: state.append(S, "l", 1),
                "delete": lambda: state.delete(S, "not there"),
                "set": lambda: state.set(S, "k", 1),
            }
            writing = asyncio.ensure_future(call[what]())
            try:
                await until(lambda: between.lost == 1)
            finally:
                raw("CLIENT", "UNPAUSE")
                raw.close()
            if what == "set":
                assert await writing == (await only_change(state, "k")).revision
                return
            with pytest.raises(AnswerLostError) as caught:
                await writing
            error = caught.value
            assert (error.may_have_happened, error.retryable) == (True, False)
            assert await state.retry(error.operation) == error.revision
            done = {"increment": ("n", 6), "append": ("l", [1]), "delete": ("n", 5)}[what]
            assert await state.get(S, done[0]) == done[1]
            if what != "delete":
                assert error.revision == (await state.history(S, done[0]))[0].revision


async def test_a_read_whose_answer_was_lost_is_asked_again(
    sidecar: Sidecar, relay: StartRelay
) -> None:
    """Nobody notices."""
    between: Relay = await relay(sidecar.url)
    async with connect(f"http://127.0.0.1:{between.port}", options=BUDGET) as spell:
        await spell.state.set(S, "k", 1)
        between.lose_answer(b"GET /v1/state")
        assert await spell.state.get(S, "k") == 1
        assert between.lost == 1


async def test_whoever_flushes_is_told_of_acknowledgements_that_were_refused(
    sidecar: Sidecar, event_store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    """They are kept, and taken once the server does so again; the end of the block logs them."""
    async with connect(sidecar.url) as spell:
        async with spell.events.subscribe("a", durable="q") as sub:
            for number in range(2):
                await spell.events.publish("a", number)
            first, second = [await anext(sub) for _ in "ab"]
            refusing = Refusing(sidecar.services.one(Deliveries).puller)
            await sub.ack(first)
            with pytest.raises(StorePermissionError):
                await sub.flush()
            assert event_store.pending("q") == 2
            refusing.on = False
            await sub.flush()
            assert event_store.queue("q") == 1
            refusing.on = True
            caplog.clear()
            await sub.ack(second)
        assert "acknowledgements were not taken" in caplog.text
        assert event_store.queue("q") == 1


@pytest.mark.parametrize("what", ["fetch", "renew"])
async def test_a_consumer_whose_answers_make_no_sense_ends_with_an_error(
    sidecar: Sidecar, what: str
) -> None:
    """Whoever iterates is told, and is not left waiting."""
    async with (
        connect(sidecar.url) as spell,
        spell.events.subscribe("a", durable="q", claim_idle=0.05) as sub,
    ):
        await spell.events.publish("a")
        await anext(sub)
        ask = sub._ask  # type: ignore[attr-defined]

        async def answered(asked: str, *given: Any, **more: Any) -> Any:
            return {} if asked == what else await ask(asked, *given, **more)

        sub._ask = answered  # type: ignore[attr-defined]
        await spell.events.publish("a")
        with pytest.raises(KeyError):
            await soon(everything_of(sub))


@pytest.mark.parametrize(("refused", "stored"), [(range(2, 3), 256), (range(3, 1000), 500)])
async def test_events_of_which_a_part_is_stored_are_not_published_again(
    sidecar: Sidecar, event_store: EventStore, refused: range, stored: int
) -> None:
    """Neither by the client itself nor by whoever believes the error; nor when it is settled."""
    refuse_calls(sidecar.services.spell.events, refused)
    async with connect(sidecar.url, options=Options(retry_budget=0.5)) as spell:
        async with spell.events.subscribe(durable="q"):
            pass
        with pytest.raises(StoreBusyError) as caught:
            await spell.events.publish_many(Event("a", n) for n in range(600))
        assert (caught.value.may_have_happened, caught.value.retryable) == (True, False)
        assert event_store.queue("q") == stored
        if caught.value.operation is not None:
            with pytest.raises(StoreBusyError):
                await spell.state.retry(caught.value.operation)
    assert event_store.queue("q") == stored


@pytest.mark.parametrize("forward", [True, False], ids=["answer lost", "request lost"])
async def test_after_a_restart_of_the_sidecar_nobody_knows(
    url: str,
    namespace: str,
    sidecar_port: Callable[[], int],
    relay: StartRelay,
    forward: bool,
) -> None:
    """The write is not carried out a second time: the outcome is unknown, and says so."""
    first, second = sidecar_port(), sidecar_port()
    async with running_sidecar(url, namespace, first) as one:
        between: Relay = await relay(one.url)
        spell = await connect(f"http://127.0.0.1:{between.port}", options=BUDGET)
        await spell.state.set(S, "k", 0)
        between.lose_answer(b"/increment", forward=forward)
        async with running_sidecar(url, namespace, second):
            between.point_to(second)
            with pytest.raises(OutcomeUnknownError) as caught:
                await spell.state.increment(S, "n")
            assert caught.value.may_have_happened
            assert not caught.value.retryable
            assert await spell.state.get(S, "n", 0) == (1 if forward else 0)
            with pytest.raises(OutcomeUnknownError):
                await spell.state.retry(caught.value.operation)
            between.point_to(first)
            await spell.close()


async def test_an_unknown_outcome_is_settled_once_the_sidecar_is_back(
    sidecar: Sidecar, relay: StartRelay, sidecar_port: Callable[[], int]
) -> None:
    """`retry` sends it again: it answers with the commit that there was, or makes it now."""
    between: Relay = await relay(sidecar.url)
    options = Options(retry_budget=1.5)
    nowhere, port = sidecar_port(), int(sidecar.url.rpartition(":")[2])
    async with connect(f"http://127.0.0.1:{between.port}", options=options) as spell:
        for key, forward in (("there", True), ("not there", False)):
            between.point_to(port)
            await spell.state.exists(S, key)
            between.lose_answer(b"PUT /v1/state", forward=forward)
            between.point_to(nowhere)
            with pytest.raises(OutcomeUnknownError) as caught:
                await spell.state.set(S, key, 1)
            between.point_to(port)
            operation = pickle.loads(pickle.dumps(caught.value.operation))  # noqa: S301 - our own
            revision = await spell.state.retry(operation)
            async with connect(sidecar.url) as another:
                assert await another.state.retry(operation) == revision
            assert (await only_change(spell.state, key)).revision == revision
            with pytest.raises(InvalidArgumentError):
                await sidecar.services.spell.state.retry(operation)


async def test_a_hundred_writers_lose_no_write_to_a_shaky_connection(
    sidecar: Sidecar, relay: StartRelay
) -> None:
    """Every answer is lost now and then; each increment counts once."""
    between: Relay = await relay(sidecar.url)
    async with connect(
        f"http://127.0.0.1:{between.port}", options=Options(retry_budget=10.0)
    ) as spell:

        async def write() -> None:
            for number in range(5):
                between.lose_answer(b"/increment", forward=bool(number % 2))
                await spell.state.increment(S, "n")

        await asyncio.gather(*(write() for _ in range(20)))
        assert between.lost > 5
        assert await spell.state.get(S, "n") == 100
