from __future__ import annotations

import pickle

import pytest

from llmspell_dist import errors
from llmspell_dist.errors import (
    AckNotReachedError,
    AnswerLostError,
    CircularReferenceError,
    ClosedError,
    ConflictError,
    InvalidKeyError,
    InvalidURLError,
    LimitError,
    OutcomeUnknownError,
    SpellError,
    StoreTimeoutError,
    StoreUnavailableError,
    UpdateConflictError,
    WrongKindError,
    error_classes,
    mask_secrets,
    shorten,
)

pytestmark = pytest.mark.unit

SAMPLES = [
    InvalidKeyError("key", "x" * 500, "must be short"),
    CircularReferenceError("$.a"),
    LimitError("bytes", 11, 10, "$"),
    ConflictError("1-1", "2-2", [("global", "k", "1-1", "2-2")]),
    UpdateConflictError("1-1", None, [("global", "k", "1-1", None)], attempts=3, elapsed_s=0.5),
    StoreTimeoutError("redis://h:1/0", "timed out", True),
    OutcomeUnknownError("h", "cut", operation=("op", 1)),
    AckNotReachedError("h", "replicated(2)", 1),
    AnswerLostError("h", "9-9"),
    ClosedError(),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda e: type(e).__name__)
def test_error_survives_pickling_with_all_its_facts(error: SpellError) -> None:
    """A copy in another process has the class, the facts and the message."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is type(error)
    assert copy.facts == error.facts
    assert str(copy) == str(error)
    assert copy.args == error.args


def test_every_error_class_has_a_code_of_its_own() -> None:
    """Codes are unique, and in screaming snake case."""
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, SpellError)
    ]
    assert len({c.code for c in classes}) == len(classes)
    assert all(c.code == c.code.upper() for c in classes)
    assert set(classes) <= set(error_classes().values())


def test_error_without_message_uses_its_docstring() -> None:
    """The first line of the docstring is the message."""
    assert str(ClosedError()) == "The client is closed."


def test_a_write_that_may_have_happened_is_not_retryable() -> None:
    """Trying it again as it is could apply it twice."""
    assert StoreUnavailableError("h", "refused").retryable
    assert not StoreUnavailableError("h", "cut", True).retryable
    assert not OutcomeUnknownError("h").retryable
    assert "may have happened" in str(OutcomeUnknownError("h"))


def test_a_level_that_was_not_reached_leaves_no_doubt_about_the_write() -> None:
    """It has happened: that is what tells this error from its parent."""
    said = str(AckNotReachedError("h:1", "replicated(2)", "1 replicas"))
    assert said.startswith("h:1: the write has happened")
    assert "asked for replicated(2), reached 1 replicas" in said
    assert "may have" not in said


@pytest.mark.parametrize(
    ("kind", "held"),
    [("list", "a list"), ("map", "a dict"), ("dict", "a dict"), ("str", "a text"),
     ("number", "a number"), ("int", "a number"), ("NoneType", "None"), ("tuple", "a tuple")],
)  # fmt: skip
def test_a_wrong_kind_says_what_is_there(kind: str, held: str) -> None:
    """In words for people."""
    said = str(WrongKindError("global", "k", kind, "append"))
    assert said == f"'k' in global holds {held}: append does not work on it"


def test_server_text_never_shows_a_password() -> None:
    """User parts of URLs and echoed arguments are cut."""
    said = "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 'hunter2'"
    assert "hunter2" not in str(StoreUnavailableError("redis://u:hunter2@h:1/0", said))
    assert "hunter2" not in mask_secrets("it said hunter2", ["hunter2"])
    assert "hunter2" not in str(InvalidURLError("url", "redis://:hunter2@h/?password=hunter2", "x"))


def test_shorten_shows_plain_values_only() -> None:
    """Foreign objects are named by type, and long values are cut."""

    class Secret:
        def __repr__(self) -> str:
            raise AssertionError

    assert shorten(Secret()).endswith("Secret>")
    assert len(shorten("x" * 10_000)) <= 60
    assert shorten(10**5000) == "<int of 16610 bits>"
    assert shorten(["a"]) == "<list of 1>"
    assert shorten("a\nb") == r"'a\nb'"
