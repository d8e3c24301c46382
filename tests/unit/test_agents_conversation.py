from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.agents.conversation import Conversation
from llmspell_dist.agents.messages import MessageCodec
from llmspell_dist.agents.model import Message, Role
from llmspell_dist.codec import Codec
from llmspell_dist.errors import CorruptRecordError, InvalidArgumentError

pytestmark = [pytest.mark.unit, pytest.mark.agent]

T0 = datetime(2024, 11, 23, 15, 0, tzinfo=UTC)
HOME = ("test", "agent:alice", "g1")
CODEC = MessageCodec(Codec(), "agent:alice", "agent.conversation")


def message(number: int, content: Any = None) -> Message:
    """Return one of many messages that differ."""
    text = f"message {number}" if content is None else content
    return Message(Role.USER, text, T0 + timedelta(seconds=number))


def messages(count: int) -> list[Message]:
    """Return the messages from 0 on."""
    return [message(number) for number in range(count)]


def loaded(count: int, missing: int = 0) -> Conversation:
    """Return the same messages as they are loaded."""
    return Conversation(CODEC, [CODEC.encode(each) for each in messages(count)], missing, HOME)


class Counting(MessageCodec):
    """Counts what it decodes."""

    decoded = 0

    def message(self, stored: Any) -> Message:
        Counting.decoded += 1
        return super().message(stored)


# 600 is more than two blocks of decoding.
@pytest.mark.parametrize("count", [0, 1, 5, 600])
def test_a_conversation_is_the_list_of_its_messages(count):
    """It has their length, equals their list both ways round, and iterates as it does."""
    there = messages(count)
    conversation = loaded(count)
    assert len(conversation) == count
    assert conversation == there
    assert there == loaded(count)
    assert list(loaded(count)) == there
    assert [*reversed(loaded(count))] == there[::-1]
    assert loaded(count) == loaded(count)
    assert loaded(count) != [*there, message(0)]


@pytest.mark.parametrize(
    "part", [slice(None), slice(-2, None), slice(1, 4), slice(None, None, -2), slice(9, 2)]
)
def test_slices_and_indexes_are_those_of_the_list(part):
    """A slice is a plain list of messages."""
    there = messages(5)
    assert loaded(5)[part] == there[part]
    assert type(loaded(5)[part]) is list
    assert loaded(5)[-1] == there[-1]
    with pytest.raises(IndexError):
        loaded(5)[5]


def test_only_what_is_looked_at_is_decoded():
    """The tail of a long conversation costs the decoding of the tail."""
    codec = Counting(Codec(), "agent:alice", "agent.conversation")
    conversation = Conversation(codec, [CODEC.encode(each) for each in messages(1000)])
    Counting.decoded = 0
    assert conversation[-3:] == messages(1000)[-3:]
    assert conversation[-3:] == messages(1000)[-3:]
    assert Counting.decoded == 3


def test_it_pickles_as_it_is_whether_looked_at_or_not():
    """Also after changes, and with what it knows about what is stored."""
    conversation = loaded(5)
    conversation[2].timestamp  # noqa: B018 - looked at
    conversation.append(message(5, ["a", "part"]))
    del conversation[4]
    again = pickle.loads(pickle.dumps(conversation))  # noqa: S301 - our own bytes
    assert again == conversation
    assert again == [*messages(4), message(5, ["a", "part"])]
    assert not again.begins_with_stored(5, HOME)
    assert again.begins_with_stored(4, HOME)


def test_a_copy_changes_for_itself():
    """The conversation that it was made of stays as it is."""
    conversation = loaded(3)
    again = copy.copy(conversation)
    del again[0]
    assert conversation == messages(3)
    assert again == messages(3)[1:]


def test_a_conversation_that_misses_messages_is_not_the_shorter_list():
    """What was left on the server is not forgotten in a comparison."""
    assert loaded(3, missing=2) != messages(3)
    assert loaded(3, missing=2) == loaded(3, missing=2)
    assert loaded(3, missing=2) != loaded(3)
    assert "2 earlier" in repr(loaded(3, missing=2))


def test_only_messages_get_in():
    """A dict or a text in the place of a message is refused at once."""
    conversation: Any = loaded(2)
    for change in (
        lambda: conversation.append({"role": "user"}),
        lambda: conversation.insert(0, "hello"),
        lambda: conversation.__setitem__(0, None),
        lambda: conversation.__setitem__(slice(0, 1), [None]),
    ):
        with pytest.raises(InvalidArgumentError):
            change()
    assert conversation == messages(2)


@pytest.mark.parametrize(
    "stored",
    [
        "text",
        {"role": "user", "content": "x"},
        {"role": "robot", "content": "x", "timestamp": T0},
        {"role": "user", "content": "x", "timestamp": "yesterday"},
        {"role": ["user"], "content": "x", "timestamp": T0},
        [],
    ],
)
def test_what_is_no_message_is_corrupt(stored):
    """The error names scope and key; the messages beside it can be read."""
    raws = [CODEC.encode(message(0)), Codec().encode(stored)]
    conversation = Conversation(CODEC, raws)
    with pytest.raises(CorruptRecordError) as caught:
        list(conversation)
    assert (caught.value.scope, caught.value.key) == ("agent:alice", "agent.conversation")
    assert conversation[0] == message(0)


def test_bytes_that_cannot_be_read_are_corrupt():
    """Damage is told when the message is looked at, not as a codec's error."""
    with pytest.raises(CorruptRecordError):
        Conversation(CODEC, [b"\xc1"])[0]


def test_fields_of_a_later_release_are_left_alone():
    """A message with more in it than this release knows can be read."""
    raw = Codec().encode({"role": "tool", "content": 1, "timestamp": T0, "cost": 5})
    assert Conversation(CODEC, [raw])[0] == Message(Role.TOOL, 1, T0)


def test_large_messages_are_decoded_one_by_one():
    """A block beyond a mebibyte is not joined."""
    there = [message(number, "x" * 400_000) for number in range(4)]
    assert list(Conversation(CODEC, [CODEC.encode(each) for each in there])) == there


# --- what a save would have to do


def test_a_message_changed_in_place_is_found():
    """A list in a message can be changed by who holds it; what is stored is then another."""
    first = message(0, ["part"])
    raws = [CODEC.encode(first), CODEC.encode(message(1))]
    conversation = Conversation(CODEC, raws, 0, HOME)
    assert conversation[0].content == ["part"]
    assert conversation.begins_with_stored(2, HOME)
    conversation[0].content.append("more")
    assert not conversation.begins_with_stored(2, HOME)
    assert CODEC.decode(conversation.encoded()[0]).content == ["part", "more"]


def test_after_a_save_all_of_it_is_stored():
    """What was added counts as stored once it is, and only then."""
    conversation = loaded(2)
    conversation.append(message(2))
    assert not conversation.begins_with_stored(3, HOME)
    conversation.settle(conversation.encoded(2), 2, HOME)
    assert conversation.begins_with_stored(3, HOME)


@pytest.mark.parametrize(
    "other", [("test", "agent:bob", "g1"), ("test", "agent:alice", "g2"), ("", "agent:alice", "g1")]
)
@pytest.mark.parametrize("missing", [0, 3])
def test_messages_of_one_list_are_not_those_of_another(other, missing):
    """Of another agent, of the same one before an edit, of another namespace."""
    conversation = loaded(2, missing)
    assert conversation.begins_with_stored(2, HOME)
    assert not conversation.begins_with_stored(2, other)
    assert not conversation.begins_with_stored(-1, HOME)
    assert conversation.begins_with_stored(0, other) is (not missing)


changes = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 9)),
    st.tuples(st.just("insert"), st.integers(-9, 9), st.integers(0, 9)),
    st.tuples(st.just("set"), st.integers(-5, 5), st.integers(0, 9)),
    st.tuples(st.just("delete"), st.integers(-5, 5)),
    st.tuples(st.just("cut"), st.integers(-7, 7), st.integers(-7, 7), st.sampled_from([1, 2, -1])),
    st.tuples(st.just("put"), st.integers(-7, 7), st.integers(-7, 7), st.integers(0, 3)),
    st.tuples(st.just("pop")),
    st.tuples(st.just("reverse")),
    st.tuples(st.just("look"), st.integers(-5, 5)),
)


def apply(target: Any, change: tuple[Any, ...]) -> Any:
    """Do it, and say what came of it."""
    name, *rest = change
    try:
        if name == "append":
            target.append(message(rest[0]))
        elif name == "insert":
            target.insert(rest[0], message(rest[1]))
        elif name == "set":
            target[rest[0]] = message(rest[1])
        elif name == "delete":
            del target[rest[0]]
        elif name == "cut":
            del target[slice(rest[0], rest[1], rest[2])]
        elif name == "put":
            target[rest[0] : rest[1]] = [message(50 + n) for n in range(rest[2])]
        elif name == "look":
            return target[rest[0]]
        else:
            return getattr(target, name)()
    except IndexError:
        return IndexError


@given(st.integers(0, 5), st.lists(changes, max_size=8))
def test_it_changes_as_a_list_does(count, steps):
    """Any changes leave what a list would have, and it knows how much of it is still stored."""
    conversation, model = loaded(count), messages(count)
    for step in steps:
        assert apply(conversation, step) == apply(model, step)
        assert conversation == model
    assert [CODEC.decode(raw) for raw in conversation.encoded()] == model
    if conversation.begins_with_stored(count, HOME):
        assert model[:count] == messages(count)
