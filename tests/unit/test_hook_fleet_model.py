"""Whom a process asks to run a hook, how far that travels, and what the answers come to."""

from __future__ import annotations

from typing import Any

import pytest
from fix_replay import POINT, execution
from hypothesis import given, settings
from hypothesis import strategies as st

from llmspell_dist.codec import Codec
from llmspell_dist.errors import CorruptRecordError, InvalidArgumentError, UnsupportedFormatError
from llmspell_dist.hooks.fleet_calls import (
    Answer,
    Request,
    Travel,
    answer_of,
    combined,
    going_on,
    request_of,
    under_way,
)
from llmspell_dist.hooks.fleet_model import (
    FleetHook,
    FleetMap,
    FleetProcess,
    FleetRun,
    checked_labels,
    pack_process,
    unpack_process,
)
from llmspell_dist.hooks.inputs import RecordedInput
from llmspell_dist.hooks.kept import RecordedFailure, Unrecorded
from llmspell_dist.hooks.results import Cancel, Continue, Modified, Replace, Retry
from llmspell_dist.hooks.sealing import Sealer

pytestmark = pytest.mark.unit

EVERY = FleetHook("h", POINT)
ONE = FleetHook("h", POINT, FleetRun.ONE)
AUDIT = FleetHook("h", POINT, FleetRun.LABELS, (("role", "audit"),))


def fleet_map(**hooks: FleetHook | None) -> FleetMap:
    """Return processes by name with one hook or none; `a` is an auditor."""
    return FleetMap(
        FleetProcess(
            name, {"role": "audit"} if name == "a" else {}, () if hook is None else (hook,)
        )
        for name, hook in hooks.items()
    )


@pytest.mark.parametrize(
    ("hook", "own", "targets"),
    [
        (EVERY, "a", ["b"]),
        (EVERY, "c", ["a", "b"]),
        (ONE, "a", []),
        (ONE, "c", ["a", "b"]),
        (AUDIT, "c", ["a"]),
        (AUDIT, "a", []),
    ],
)
def test_a_process_asks_those_that_are_meant(hook: FleetHook, own: str, targets: list[str]) -> None:
    """`a` and `b` have the hook, `c` has not; itself it never asks."""
    known = fleet_map(a=hook, b=hook, c=None)
    assert known.targets(own, "h", POINT) == targets
    assert bool(known.wanted(own)) == bool(targets)


GUARD = FleetHook(
    "h", POINT, timeout=2, await_remote=True, continue_on_failure=False, max_hops=1, priority=-5
)


@pytest.mark.parametrize("guard", ["a", "b"])
@pytest.mark.parametrize("other", [EVERY, ONE])
def test_the_strictest_options_hold_where_they_differ(guard: str, other: FleetHook) -> None:
    """Whichever process comes first: a veto is not lost because another asked for less."""
    hooks: dict[str, FleetHook] = {"a": other, "b": other, guard: GUARD}
    known = fleet_map(c=None, **hooks)
    meant = known.wanted("c")["h", POINT]
    assert meant == FleetHook(
        *("h", POINT, FleetRun.EVERY),
        max_hops=3,
        timeout=30.0,
        await_remote=True,
        continue_on_failure=False,
        priority=-5,
    )
    assert known.targets("c", "h", POINT) == ["a", "b"]
    at_home = "a" if guard == "b" else "b"
    assert known.targets(at_home, "h", POINT) == [guard], "also where it has one for one process"


def test_nobody_is_asked_for_a_hook_that_nobody_has() -> None:
    """At most points that is so."""
    assert fleet_map(a=None, b=None).wanted("a") == {}


def test_what_a_process_says_of_itself_is_read_back() -> None:
    """The same things are the same bytes; what is of a later release is left alone."""
    hooks = [AUDIT, FleetHook("other", "session:start", max_hops=1, timeout=2, await_remote=True)]
    packed = pack_process({"b": "2", "a": "1"}, hooks)
    assert packed == pack_process({"a": "1", "b": "2"}, reversed(hooks))
    read = unpack_process("p", packed)
    assert read is not None
    assert set(read.hooks) == set(hooks)
    assert read.labels == {"a": "1", "b": "2"}
    assert read.name == ""
    assert unpack_process("p", b"\2" + packed[1:]) is None
    assert unpack_process("p", packed[:-3]) is None


# --- hops and time --------------------------------------------------------------------------------


def test_each_process_on_the_way_is_a_hop_until_there_are_enough() -> None:
    """Whatever hooks do to one another, it ends."""
    hops = []
    travel = going_on(EVERY, "p0", 0.0)
    while isinstance(travel, Travel):
        hops.append(travel.hops)
        assert travel.origin == "p0"
        with under_way(travel):
            travel = going_on(EVERY, f"p{travel.hops}", 1.0)
    assert hops == [1, 2, 3]
    assert travel == "hops"


def test_the_time_runs_from_where_it_began() -> None:
    """A process on the way cannot make it longer."""
    patient = FleetHook("h", POINT, timeout=3600)
    first = going_on(EVERY, "p", 1000.0)
    assert isinstance(first, Travel)
    with under_way(first):
        second = going_on(patient, "q", 20_000.0)
        assert isinstance(second, Travel)
        assert second.deadline_ms == first.deadline_ms == 31_000.0
        assert going_on(patient, "q", 31_000.0) == "time"


def test_no_hop_at_all_keeps_a_hook_at_home() -> None:
    """`max_hops` 0."""
    assert going_on(FleetHook("h", POINT, max_hops=0), "p", 0.0) == "hops"


# --- answers --------------------------------------------------------------------------------------


def answers(*results: Any) -> list[Answer]:
    """Return answers of processes 0, 1 and so on."""
    return [Answer("r", str(number), result) for number, result in enumerate(results)]


def test_a_veto_of_one_process_goes_before_all_else() -> None:
    """Then what ends a chain, then what changes the data."""
    assert combined(answers(Replace(1), Modified({"x": 1}), Cancel("no"))) == Cancel("no")
    assert combined(answers(Modified({"x": 1}), Replace(1), Retry())) == Replace(1)
    found = combined(answers(Modified({"x": 1, "y": 1}), None, Modified({"y": 2})))
    assert found == Modified({"x": 1, "y": 2})
    assert combined(answers(None, Continue())) is None


@settings(max_examples=50, deadline=None)
@given(st.permutations(answers(Modified({"x": 1}), Modified({"x": 2}), Replace(3), None)))
def test_the_order_in_which_answers_come_changes_nothing(came: list[Answer]) -> None:
    """Processes are taken in the order of their ids."""
    assert combined(came) == Replace(3)


# --- what travels ---------------------------------------------------------------------------------


class Caesar:
    """A cipher for tests: it shifts, and checks what it is bound to."""

    def encrypt(self, plaintext: bytes, *, associated_data: bytes) -> bytes:
        """Return the plaintext, shifted, behind what it is bound to."""
        return associated_data + b"|" + bytes((byte + 3) % 256 for byte in plaintext)

    def decrypt(self, ciphertext: bytes, *, associated_data: bytes) -> bytes:
        """Return the plaintext."""
        bound, _, shifted = ciphertext.partition(b"|")
        if bound != associated_data:
            raise ValueError("not authentic")
        return bytes((byte - 3) % 256 for byte in shifted)


def test_a_request_is_read_back() -> None:
    """And what is none is refused by name."""
    request = Request("r", "h", POINT, Travel(2, 5.0, "p"), None, b"c")
    assert request_of(request.as_data()) == request
    with pytest.raises(UnsupportedFormatError):
        request_of({**request.as_data(), "v": 2})
    with pytest.raises(CorruptRecordError, match="lacks 'hops'"):
        request_of({name: part for name, part in request.as_data().items() if name != "hops"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", []),
        ("hook", 1),
        ("deadline_ms", "soon"),
        ("deadline_ms", float("nan")),
        ("hops", None),
        ("reply_to", {}),
        ("context", "text"),
        ("origin", []),
    ],
)
def test_a_request_of_other_types_is_named(field: str, value: Any) -> None:
    """It may have been published by anybody."""
    request = Request("r", "h", POINT, Travel(2, 5.0, "p"), None, b"c")
    with pytest.raises(CorruptRecordError, match=field):
        request_of({**request.as_data(), field: value})


@pytest.mark.parametrize(
    "wrong", [{"id": []}, {"process": 3}, {"sealed": "x"}, {"v": 2}, {"sealed": b"\1\0\x90"}]
)
def test_an_answer_of_other_types_is_named(wrong: dict[str, Any]) -> None:
    """And so are parts that make no answer."""
    data = {"v": 1, "what": "ran", "id": "r", "process": "p", "sealed": b"", **wrong}
    with pytest.raises((CorruptRecordError, UnsupportedFormatError)):
        answer_of(data, lambda _, __: {"result": {"name": "none"}, "error": None})


def test_answers_travel_sealed() -> None:
    """An error as well as a result."""
    sealer = Sealer(Codec(), Caesar(), namespace="n")
    sealed = b""
    for answer in (
        Answer("r", "p", Modified({"x": object()})),
        Answer("r", "p", error=RecordedFailure("ValueError", "boom")),
    ):
        sealed = sealer.seal(answer.parts(), "r", secret=True)
        read = Answer.of("r", "p", sealer.open(sealed, "r"))
        assert read.error == answer.error
    with pytest.raises(CorruptRecordError):
        sealer.open(sealed, "another request")
    assert Answer.of("r", "p", None).error is not None


def test_an_execution_is_packed_and_read_back() -> None:
    """With its inputs and its gaps; compressed or not, encrypted or not."""
    made = execution(
        7,
        result=Modified({"x": {1: "a"}}),
        inputs=(RecordedInput("call", "ask", [["q"], {}], "a" * 5000, None, True),),
        data={"text": "t", "none": object()},
        causation_id="cause",
        priority=3,
    )
    for sealer in (Sealer(Codec()), Sealer(Codec(), compress=False), Sealer(Codec(), Caesar())):
        for secret in (False, sealer.encrypts):
            packed = sealer.pack(execution(**_as(made, secret=secret)))
            read = sealer.unpack(packed, "1-1")
            assert read.entry == "1-1"
            assert (read.id, read.inputs, read.result) == (made.id, made.inputs, made.result)
            assert read.context is not None
            assert read.context["data"]["none"] == Unrecorded("object")
            assert read.gaps == ["context.data.none (object)"]
            assert (b"ask" in packed) is (sealer.encrypts is False and not sealer.compress)


def _as(made: Any, **more: Any) -> dict[str, Any]:
    return {
        "number": 7,
        "result": made.result,
        "inputs": made.inputs,
        "context": made.context,
        "causation_id": made.causation_id,
        "priority": made.priority,
        **more,
    }


def test_what_is_secret_without_a_cipher_is_left_out() -> None:
    """It is known that the hook ran, and no more."""
    sealer = Sealer(Codec())
    packed = sealer.pack(execution(data={"value": "hunter2"}, secret=True))
    assert b"hunter2" not in packed
    read = sealer.unpack(packed, "1-1")
    assert read.context is None
    assert read.hook == "h"
    assert read.gaps == ["context (left out)"]


def test_what_is_too_large_is_left_out() -> None:
    """The history is no store for large values."""
    sealer = Sealer(Codec(), max_bytes=1000)
    assert sealer.unpack(sealer.pack(execution(data={"v": "x" * 2000})), "1-1").context is None


@pytest.mark.parametrize("cut", [0, 1, 5, 20, 60, -1])
def test_damaged_bytes_are_named(cut: int) -> None:
    """Never an exception of some library."""
    sealer = Sealer(Codec())
    packed = sealer.pack(execution(data={"v": list(range(100))}))
    with pytest.raises(CorruptRecordError):
        sealer.unpack(packed[:cut], "1-1")
    with pytest.raises(UnsupportedFormatError):
        sealer.unpack(b"\x07" + packed[1:], "1-1")


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: FleetHook("h", "nowhere"), "point"),
        (lambda: FleetHook("h", POINT, max_hops=-1), "max_hops"),
        (lambda: FleetHook("h", POINT, timeout=0), "timeout"),
        (lambda: FleetHook("h", POINT, priority=1.5), "priority"),  # type: ignore[arg-type]
        (
            lambda: FleetHook("h", "AfterStateWrite", continue_on_failure=False),
            "continue_on_failure",
        ),
        (lambda: FleetHook("h", POINT, await_remote="yes"), "await_remote"),  # type: ignore[arg-type]
        (lambda: checked_labels({"role": 1}), "labels"),
        (lambda: checked_labels(["role"]), "labels"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, argument: str) -> None:
    """By name, before anything is sent."""
    with pytest.raises(InvalidArgumentError) as caught:
        make()
    assert caught.value.argument == argument
