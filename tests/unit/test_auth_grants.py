"""What a principal may do."""

from __future__ import annotations

import itertools

import pytest

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.auth.errors import ForbiddenError
from llmspell_dist.sidecar.auth.grants import ALL, NO_GRANTS, Grant, GrantSet, Principal, Verb

pytestmark = [pytest.mark.unit, pytest.mark.security]

TARGETS = ["agent:alice", "agent:alice2", "agent:*", "*", "global", "workflow:w1/step:plan", ""]


def _principal(*grants: Grant) -> Principal:
    return Principal("p", "token", grants)


@pytest.mark.parametrize("granted", list(Verb))
def test_no_verb_implies_another(granted: Verb) -> None:
    """Not even admin: who may take backups need not see values."""
    principal = _principal(Grant("*", frozenset({granted})))
    assert [verb for verb in Verb if principal.may(verb, "agent:alice")] == [granted]


def test_a_verb_is_granted_only_where_its_own_pattern_reaches() -> None:
    """Every verb against every target: patterns of one grant do not lend themselves to another."""
    principal = _principal(
        Grant("agent:alice", frozenset({Verb.READ})),
        Grant("agent:*", frozenset({Verb.LIST})),
        Grant("workflow:w1/*", frozenset({Verb.WRITE, Verb.DELETE})),
    )
    allowed = {
        (str(verb), target)
        for verb, target in itertools.product(Verb, TARGETS)
        if principal.may(verb, target)
    }
    assert allowed == {
        ("read", "agent:alice"),
        ("list", "agent:alice"),
        ("list", "agent:alice2"),
        ("list", "agent:*"),
        ("write", "workflow:w1/step:plan"),
        ("delete", "workflow:w1/step:plan"),
    }


def test_a_right_on_every_scope_is_no_right_on_everything() -> None:
    """Only the pattern ``*`` grants the target ``*``."""
    scopes = _principal(Grant("agent:*", frozenset({Verb.ADMIN})))
    assert scopes.may(Verb.ADMIN, "agent:alice")
    assert not scopes.may(Verb.ADMIN, "*")
    assert ALL.may(Verb.ADMIN, "*")


def test_nobody_may_do_anything_with_an_empty_target() -> None:
    """A caller that lost what it asks for gets nothing, not everything."""
    assert not any(ALL.may(verb, "") for verb in Verb)


def test_answers_are_the_same_when_they_come_from_memory() -> None:
    """First and second answers, more targets than are kept, and texts too long to keep."""
    principal = _principal(Grant("agent:a*", frozenset({Verb.READ})))
    targets = [f"agent:{letter}{number}" for number in range(1500) for letter in "ab"]
    targets += ["agent:a" + "x" * 5000, "agent:b" + "x" * 5000]
    for _ in range(2):
        for target in targets:
            assert principal.may(Verb.READ, target) is target.startswith("agent:a")
            assert not principal.may(Verb.WRITE, target)
    kept = principal.grants.decided
    assert all(len(answers) <= 1024 for answers in kept.values())
    assert max(len(text) for answers in kept.values() for text in answers) < 700


def test_a_verb_that_there_is_not_is_no_answer() -> None:
    """A misspelt verb in the sidecar's own code is a mistake, not a refusal."""
    with pytest.raises(ValueError, match="raed"):
        ALL.may("raed", "global")  # type: ignore[arg-type]


def test_a_principal_cannot_be_changed() -> None:
    """Nor can its grants be replaced."""
    with pytest.raises(AttributeError):
        ALL.name = "other"
    with pytest.raises(AttributeError):
        del ALL.grants
    assert len(NO_GRANTS) == 0
    assert not Principal("p", "token", NO_GRANTS).may(Verb.READ, "global")


def test_principals_are_told_apart_by_kind_and_name() -> None:
    """A token and a JWT of the same name are two callers."""
    token, again = Principal("p", "token", ()), Principal("p", "token", NO_GRANTS)
    assert token == again
    assert hash(token) == hash(again)
    assert token != Principal("p", "jwt", ())
    assert token != "token:p"
    assert token.label == "token:p"


def test_require_names_what_is_missing() -> None:
    """Verb and target, as facts."""
    principal = _principal(Grant("agent:*", frozenset({Verb.READ})))
    principal.require(Verb.READ, "agent:alice")
    with pytest.raises(ForbiddenError, match="no grant to write 'agent:alice'") as caught:
        principal.require(Verb.WRITE, "agent:alice")
    assert caught.value.facts == {"verb": "write", "target": "agent:alice"}
    assert caught.value.code == "FORBIDDEN"


def test_a_grant_without_verbs_or_with_an_unusable_pattern_is_refused() -> None:
    """It would look like one."""
    with pytest.raises(InvalidArgumentError, match="verbs"):
        Grant("*", frozenset())
    with pytest.raises(InvalidArgumentError, match="scopes"):
        Grant("", frozenset(Verb))
    assert [grant.pattern for grant in GrantSet([Grant("*", frozenset(Verb))])] == ["*"]
