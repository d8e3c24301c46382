"""Wire, groups, rings and the handshake, without a server."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from fix_lane import SHARD, add

from llmspell_dist.backoff import Backoff
from llmspell_dist.errors import (
    OutcomeUnknownError,
    StoreAuthenticationError,
    StoreProtocolError,
    StoreUnavailableError,
)
from llmspell_dist.redis.commits import RENEW_RING, RETRY, RING_EXPECTED
from llmspell_dist.redis.connection import Endpoint, Handshake, ServerInfo, handshake
from llmspell_dist.redis.groups import Group
from llmspell_dist.redis.resp import ErrorReply, pack
from llmspell_dist.redis.ring import WINDOW, Operation, Ring, ring_key
from llmspell_dist.redis.wire import Entry, Wire

pytestmark = pytest.mark.unit


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Owner:
    """Records what a wire or a group tells its lane."""

    server = "test:1"

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.lost: list[str] = []
        self.retries = False

    def refused(self, entry: Entry, reply: ErrorReply) -> None:  # noqa: ARG002
        self.refusals.append(reply.text)

    def refused_group(self, entry: Entry, reply: ErrorReply) -> bool:  # noqa: ARG002
        return self.retries

    def progressed(self) -> None:
        pass

    def wire_lost(self, wire: Wire, said: str) -> None:  # noqa: ARG002
        self.lost.append(said)


def connected(owner: Owner) -> tuple[Wire, Transport]:
    """Return a wire that was greeted, and what it writes to."""
    wire, transport = Wire(owner), Transport()
    wire.connection_made(transport)
    wire.info = ServerInfo("test:1")
    return wire, transport


def ask(wire: Wire, count: int) -> list[asyncio.Future[Any]]:
    """Send a request for each of `count` futures."""
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(count)]
    wire.pending.extend((future, b"x", 0.0) for future in futures)
    wire.write(b"x" * count, count, 0.0)
    return futures


# --- the wire -------------------------------------------------------------------------------------


async def test_replies_go_to_the_oldest_waiter_first() -> None:
    """Replies resolve futures in the order of the requests."""
    wire, _ = connected(Owner())
    futures = ask(wire, 3)
    wire.data_received(b"+a\r\n+b\r\n+")
    assert [future.done() for future in futures] == [True, True, False]
    wire.data_received(b"c\r\n")
    assert [future.result() for future in futures] == [b"a", b"b", b"c"]


async def test_the_reply_of_a_cancelled_caller_is_dropped() -> None:
    """A cancelled caller keeps its place, so the next one does not get its reply."""
    wire, _ = connected(Owner())
    first, second = ask(wire, 2)
    first.cancel()
    wire.data_received(b"+first\r\n+second\r\n")
    assert second.result() == b"second"


async def test_a_push_message_resolves_nothing() -> None:
    """Out-of-band messages are counted and passed over, wherever they come."""
    wire, _ = connected(Owner())
    (future,) = ask(wire, 1)
    wire.data_received(b">2\r\n+invalidate\r\n*0\r\n")
    assert not future.done()
    wire.data_received(b"+mine\r\n>1\r\n+x\r\n")
    assert future.result() == b"mine"
    assert wire.pushes == 2


async def test_false_and_null_are_replies() -> None:
    """RESP3's false and null resolve their futures."""
    wire, _ = connected(Owner())
    no, none = ask(wire, 2)
    wire.data_received(b"#f\r\n_\r\n")
    assert no.result() is False
    assert none.result() is None


@pytest.mark.parametrize("data", [b"+nobody asked\r\n", b"HTTP/1.1 400 Bad Request\r\n"])
async def test_a_stream_out_of_step_ends_the_connection(data: bytes) -> None:
    """A surplus reply or another protocol can never be given to a later caller."""
    owner = Owner()
    wire, transport = connected(owner)
    wire.data_received(data)
    assert transport.aborted
    assert len(owner.lost) == 1
    wire.connection_lost(None)
    assert len(owner.lost) == 1


async def test_an_error_reply_is_the_lanes_to_judge() -> None:
    """Errors are not results; for a cancelled caller they are nothing."""
    owner = Owner()
    wire, _ = connected(owner)
    first, second = ask(wire, 2)
    second.cancel()
    wire.data_received(b"-OOM full\r\n-OOM full\r\n")
    assert owner.refusals == ["OOM full"]
    assert not first.done()


async def test_the_oldest_unanswered_request_has_an_age() -> None:
    """The moment of the oldest request without a reply is known within 20 ms."""
    wire, _ = connected(Owner())
    loop = asyncio.get_running_loop()
    assert wire.oldest_sent_at() is None
    for now in (1.0, 1.01, 2.0):
        wire.pending.append((loop.create_future(), b"x", 0.0))
        wire.write(b"x", 1, now)
    assert wire.oldest_sent_at() == 1.0
    wire.data_received(b"+a\r\n")
    assert wire.oldest_sent_at() == 1.0
    wire.data_received(b"+b\r\n")
    assert wire.oldest_sent_at() == 2.0
    wire.data_received(b"+c\r\n")
    assert wire.oldest_sent_at() is None


# --- operation ids and groups ---------------------------------------------------------------------


def group_of(owner: Owner, ring: Ring, count: int) -> Group:
    """Return a group of so many commits, not numbered yet."""
    group = Group(owner, SHARD, ring, 0.0)
    loop = asyncio.get_running_loop()
    for i in range(count):
        group.add(add(f"k{i}"), loop.create_future())
    return group


def packed(group: Group) -> list[tuple[int, int]]:
    """Return the numbers and flags that a group is sent with."""
    seen: list[tuple[int, int]] = []

    def spy(key: bytes, items: Any, /, *, eval_body: bool = False) -> bytes:
        assert key.startswith(SHARD + b":ring:")
        seen.extend((sequence, flags) for sequence, flags, _ in items)
        return b"body" if eval_body else b"sha"

    group.pack(spy)
    return seen


async def test_a_retry_keeps_its_numbers_and_says_so() -> None:
    """The same operation ids go again, with the retry flag, and the ring's expiry is renewed."""
    group = group_of(Owner(), Ring(ring_key), 2)
    assert group.number()
    assert packed(group) == [(1, RENEW_RING), (2, RENEW_RING)]
    assert group.lost((group, None, 0.0), "gone") == [(group, None, 0.0)]
    assert group.number()
    assert packed(group) == [(1, RETRY | RENEW_RING), (2, RETRY | RENEW_RING)]


async def test_an_acknowledged_ring_is_expected_from_then_on() -> None:
    """After the first outcome the server must know the ring."""
    owner, ring = Owner(), Ring(ring_key)
    first = group_of(owner, ring, 1)
    first.number()
    packed(first)
    first.deliver((first, None, 0.0), [b"1-1 1"])
    second = group_of(owner, ring, 1)
    second.number()
    assert packed(second) == [(2, RING_EXPECTED)]


async def test_the_window_of_numbers_is_never_overrun() -> None:
    """A number is given only while its slot's last holder is resolved."""
    owner, ring = Owner(), Ring(ring_key)
    groups = [group_of(owner, ring, 64) for _ in range(WINDOW // 64)]
    assert all(group.number() for group in groups)
    late = group_of(owner, ring, 1)
    assert not late.number()
    groups[1].settle([b"x"] * 64)
    assert not late.number(), "the oldest is unresolved"
    groups[0].settle([b"x"] * 64)
    assert late.number()
    assert late.first == WINDOW + 1


async def test_members_cancelled_before_sending_are_left_out() -> None:
    """They take no number and never happen."""
    group = group_of(Owner(), Ring(ring_key), 3)
    group.futures[1].cancel()
    assert group.number()
    assert len(packed(group)) == 2
    nobody = group_of(Owner(), Ring(ring_key), 1)
    nobody.futures[0].cancel()
    assert nobody.number()
    assert nobody.first == 0


@pytest.mark.parametrize("reply", [b"OK", [b"only one"], None])
async def test_an_answer_that_is_no_list_of_outcomes_leaves_them_unknown(reply: Any) -> None:
    """Members never get a part of a wrong answer."""
    group = group_of(Owner(), Ring(ring_key), 2)
    group.number()
    packed(group)
    group.deliver((group, None, 0.0), reply)
    for future in group.futures:
        error = future.exception()
        assert isinstance(error, OutcomeUnknownError)
        assert pickle.loads(pickle.dumps(error)).code == "OUTCOME_UNKNOWN"  # noqa: S301


async def test_a_refused_group_fails_every_member() -> None:
    """The error of the script call as a whole is each member's."""
    group = group_of(Owner(), Ring(ring_key), 3)
    group.number()
    packed(group)
    group.deliver((group, None, 0.0), ErrorReply("ERR something"))
    errors = [future.exception() for future in group.futures]
    assert [type(error) for error in errors] == [StoreProtocolError] * 3
    assert not any(error.may_have_happened for error in errors)  # type: ignore[union-attr]


async def test_only_what_was_sent_is_unknown() -> None:
    """A group that never left fails plainly; one that may have left is unknown and settleable."""
    never, once = (group_of(Owner(), Ring(ring_key), 1) for _ in range(2))
    never.fail(StoreUnavailableError, "down")
    once.number()
    packed(once)
    once.lost((once, None, 0.0), "gone")
    once.fail(StoreUnavailableError, "down")
    failed, unknown = never.futures[0].exception(), once.futures[0].exception()
    assert type(failed) is StoreUnavailableError
    assert not failed.may_have_happened
    assert type(unknown) is OutcomeUnknownError
    assert unknown.operation.sequence == 1


def test_an_old_operation_needs_its_ring() -> None:
    """After about an hour the server may have dropped a ring, and then nobody can tell."""
    operation = Operation("00" * 8, 7, add("n"))
    fresh = Ring.of_operation(operation, ring_key, elapsed_s=10)
    old = Ring.of_operation(operation, ring_key, elapsed_s=4000)
    assert (fresh.expects(SHARD, 0), fresh.client) == (False, b"00" * 8)
    assert old.flags(SHARD, 0) & RING_EXPECTED
    assert operation.id == "0000000000000000:7"


# --- the handshake --------------------------------------------------------------------------------

HELLO = {b"server": b"redis", b"version": b"7.0.15", b"proto": 3, b"mode": b"standalone"}
ANSWERS = [b"OK", [b"1000", b"5"], b"redis_version:7.0.15\r\nrun_id:abc\r\n", b"role:master", 9]


def answer(steps: Handshake, *batches: list[Any]) -> tuple[list[bytes], ServerInfo]:
    """Play the server; return everything that was asked, and what was learnt."""
    asked = list(next(steps))
    for number, batch in enumerate(batches):
        try:
            asked += steps.send(batch)
        except StopIteration as done:
            assert number == len(batches) - 1
            return asked, done.value
    raise AssertionError("the handshake wants more")


def test_the_handshake_logs_in_and_learns_who_answers() -> None:
    """One HELLO with credentials and name, then everything else at once."""
    endpoint = Endpoint(username="u", password="p", client_name="me", db=2)
    asked, info = answer(handshake(endpoint), [HELLO], ANSWERS)
    assert asked[0] == pack("HELLO", 3, "AUTH", "u", "p", "SETNAME", "me")
    assert pack("SELECT", 2) in asked
    assert (info.version, info.flavour, info.run_id) == ("7.0.15", "redis", "abc")
    assert (info.client_id, info.protocol, info.role) == (9, 3, "master")


def test_a_server_without_hello_is_greeted_the_old_way() -> None:
    """Proxies and old servers get AUTH and CLIENT SETNAME."""
    endpoint = Endpoint(password="p", client_name="me")
    unknown = ErrorReply("ERR unknown command `HELLO`, with args beginning with: `3` ")
    asked, info = answer(handshake(endpoint), [unknown], [b"OK", b"OK"], ANSWERS)
    assert asked[1:3] == [pack("AUTH", "p"), pack("CLIENT", "SETNAME", "me")]
    assert info.protocol == 2


def test_a_connection_to_the_same_process_ends_the_one_before() -> None:
    """So nothing that was sent there can run after it is sent again."""
    same = ServerInfo("a", run_id="abc", client_id=4)
    other = ServerInfo("a", run_id="xyz", client_id=4)
    kill = pack("CLIENT", "KILL", "ID", 4)
    asked, _ = answer(handshake(Endpoint(), previous=same), [HELLO], ANSWERS, [1])
    assert asked[-1] == kill
    asked, _ = answer(handshake(Endpoint(), previous=other), [HELLO], ANSWERS)
    assert kill not in asked


def test_a_server_that_tells_nothing_is_used_all_the_same() -> None:
    """Without the right to INFO, CLIENT and TIME the connection still works."""
    denied = ErrorReply("NOPERM this user has no permissions")
    _, info = answer(handshake(Endpoint()), [HELLO], [b"OK", denied, denied, denied, denied])
    assert (info.version, info.run_id, info.client_id) == ("7.0.15", "", 0)


@pytest.mark.parametrize(
    "refusal",
    [
        "WRONGPASS invalid username-password pair or user is disabled.",
        "NOAUTH HELLO must be called with the client already authenticated",
        "ERR AUTH <password> called without any password configured for the default user.",
    ],
)
def test_a_refused_login_is_an_authentication_error(refusal: str) -> None:
    """Whatever words the server uses."""
    with pytest.raises(StoreAuthenticationError):
        answer(handshake(Endpoint(password="p")), [ErrorReply(refusal)])


def test_credentials_may_change_with_every_connect() -> None:
    """A provider is asked at each login, and replaces what the endpoint says."""

    class Rotating:
        asked = 0

        def get_credentials(self) -> tuple[str, str]:
            self.asked += 1
            return "user", f"token{self.asked}"

    endpoint = Endpoint(password="old", credentials=Rotating())
    for number in (1, 2):
        assert next(handshake(endpoint)) == [pack("HELLO", 3, "AUTH", "user", f"token{number}")]


def test_pauses_grow_up_to_a_limit_and_start_again_after_a_success() -> None:
    """Backing off is jittered and bounded."""
    backoff = Backoff(first_s=0.01, max_s=0.1)
    pauses = [backoff.next_s() for _ in range(50)]
    assert all(0.0025 <= pause <= 0.1025 for pause in pauses)
    assert max(pauses[10:]) > 0.03
    backoff.reset()
    assert backoff.next_s() <= 0.0125
