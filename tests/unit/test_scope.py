from __future__ import annotations

import copy
import pickle

import pytest

from llmspell_dist.errors import InvalidScopeError
from llmspell_dist.scope import Scope, ScopeKind, shard_of

pytestmark = pytest.mark.unit

PRINTED = [
    (Scope.global_(), "global"),
    (Scope.user("u1"), "user:u1"),
    (Scope.session("s"), "session:s"),
    (Scope.agent("a:b"), "agent:a%3Ab"),
    (Scope.tool("t/x"), "tool:t%2Fx"),
    (Scope.workflow("w1"), "workflow:w1"),
    (Scope.step("w1", "plan/step:x"), "workflow:w1/step:plan%2Fstep%3Ax"),
    (Scope.hook("{h}*?[]\\"), "hook:%7Bh%7D%2A%3F%5B%5D%5C"),
    (Scope.custom("100 %\u2028"), "custom:100%20%25%E2%80%A8"),
]


@pytest.mark.parametrize(("scope", "text"), PRINTED)
def test_scope_prints_and_parses_both_ways(scope: Scope, text: str) -> None:
    """Parsing inverts printing for each of the nine kinds."""
    assert str(scope) == text
    assert Scope.parse(text) == scope
    assert Scope.parse(text).id == scope.id
    assert Scope.coerce(text) == scope
    assert Scope.coerce(scope) is scope


@pytest.mark.parametrize(
    "text",
    ["", "agent", "agent:", "agent:a:b", "agent:a b", "agent:a%3a", "agent:%41", "agent:a%", "x:y",
     "global:", "step:x", "workflow:w/step:", "workflow:/step:x", "workflow:a/b", "agent:*",
     "agent:%FF", "agent:\ud800", "agent:" + "x" * 507],
)  # fmt: skip
def test_text_that_no_scope_prints_is_refused(text: str) -> None:
    """Only the canonical spelling is understood."""
    with pytest.raises(InvalidScopeError):
        Scope.parse(text)


@pytest.mark.parametrize("bad", ["", "\ud800", None, 3, b"x", "x" * 600])
def test_bad_id_is_refused_naming_the_argument(bad: object) -> None:
    """An id is a non-empty str of valid Unicode and limited length."""
    with pytest.raises(InvalidScopeError):
        Scope.agent(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [None, 3, ["x"], b"global"])
def test_coerce_refuses_what_is_no_scope(bad: object) -> None:
    """The error names the argument `scope`."""
    with pytest.raises(InvalidScopeError) as caught:
        Scope.coerce(bad)  # type: ignore[arg-type]
    assert caught.value.argument == "scope"


def test_accent_after_an_encoded_character_keeps_the_escape() -> None:
    """Normalising the printed text would turn %3A + U+0300 into another id."""
    scope = Scope.agent(":\u0300")
    assert Scope.parse(str(scope)) == scope


def test_ids_are_nfc_normalised() -> None:
    """Both spellings of é are the same agent."""
    assert Scope.agent("e\u0301") == Scope.agent("\u00e9") == Scope.parse("agent:e\u0301")


def test_parents_follow_the_hierarchy() -> None:
    """Steps belong to workflows, sessions with a user's prefix to the user, the rest to global."""
    assert Scope.global_().parent() is None
    assert Scope.step("w", "s").parent() == Scope.workflow("w")
    assert Scope.session("bob_1").parent() == Scope.user("bob")
    assert Scope.session("_1").parent() == Scope.session("x").parent() == Scope.global_()
    assert Scope.agent("a").parent() == Scope.global_()


def test_steps_lie_in_the_shard_of_their_workflow() -> None:
    """So a commit over both is atomic."""
    shards = {shard_of(Scope.step("w", str(i)), 256) for i in range(20)}
    assert shards == {shard_of(Scope.workflow("w"), 256)}
    assert len({shard_of(Scope.agent(str(i)), 256) for i in range(500)}) > 150
    assert shard_of(Scope.agent("x"), 1) == "0"
    assert shard_of(Scope.agent("alice"), 256) == "214"  # pinned: stored data depends on it


def test_scope_is_an_immutable_value() -> None:
    """It can be pickled, copied and compared, not changed."""
    scope = Scope.step("w", "s")
    with pytest.raises(AttributeError):
        scope.id = "x"
    with pytest.raises(AttributeError):
        del scope.id
    assert pickle.loads(pickle.dumps(scope)) == copy.deepcopy(scope) == scope  # noqa: S301
    assert hash(scope) == hash(Scope.parse(str(scope)))
    assert scope != "workflow:w/step:s"
    assert eval(repr(scope), {"Scope": Scope}) == scope  # noqa: S307 - our own repr
    assert min([Scope.user("b"), Scope.agent("a")]) == Scope.agent("a")


def test_kind_and_parts_must_fit() -> None:
    """The plain constructor checks as the named ones do."""
    for arguments in [("nope", "x"), (ScopeKind.GLOBAL, "x"), (ScopeKind.AGENT, "a", "s")]:
        with pytest.raises(InvalidScopeError):
            Scope(*arguments)  # type: ignore[arg-type]
