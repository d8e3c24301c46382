from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmspell_dist.keys import KeySpace, KeyType, scoped_field
from llmspell_dist.scope import Scope

pytestmark = pytest.mark.unit

TRICKY = st.text(alphabet="ab:%/{}*?[]\\ _3A\u0300\u0301é\n\u2028一gptl", min_size=1, max_size=8)
IDS = st.one_of(TRICKY, st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6))
KINDS = (
    Scope.user,
    Scope.session,
    Scope.agent,
    Scope.tool,
    Scope.workflow,
    Scope.hook,
    Scope.custom,
)
SCOPES = st.one_of(
    st.just(Scope.global_()),
    st.builds(lambda make, text: make(text), st.sampled_from(KINDS), IDS),
    st.builds(Scope.step, IDS, IDS),
)
KEYS = IDS.filter(lambda k: not (set(k) & set("\0\r\n")) and not k.startswith(("__", "$$")))
NAMESPACES = st.one_of(st.sampled_from(["a", "a:", "a%3A", "{0}"]), IDS).filter(
    lambda n: len(n.encode()) <= 20
)
SHARDS = st.sampled_from([1, 256])


def nfc(text: str) -> str:
    """Return the normal form."""
    return unicodedata.normalize("NFC", text)


@settings(max_examples=150, deadline=None)
@given(SCOPES)
def test_parsing_a_scope_inverts_printing_it(scope: Scope) -> None:
    """For any id in any script."""
    assert Scope.parse(str(scope)) == scope
    assert repr(Scope.parse(str(scope))) == repr(scope)


PLACES = st.tuples(NAMESPACES, SCOPES, KEYS)


@settings(max_examples=300, deadline=None)
@given(PLACES, PLACES, SHARDS)
def test_different_places_never_reach_the_same_field(
    one: tuple[str, Scope, str], two: tuple[str, Scope, str], shards: int
) -> None:
    """Two places share Redis key and field only if they are the same."""

    def address(place: tuple[str, Scope, str]) -> tuple[bytes, bytes]:
        namespace, scope, key = place
        return KeySpace(namespace, shards).scope(scope), scoped_field(scope, key)

    def identity(place: tuple[str, Scope, str]) -> tuple[str, str, str, str | None, str]:
        namespace, scope, key = place
        return nfc(namespace), scope.kind.value, scope.id, scope.step_name, nfc(key)

    assert (address(one) == address(two)) == (identity(one) == identity(two))


@settings(max_examples=150, deadline=None)
@given(NAMESPACES, SCOPES, IDS, SHARDS)
def test_parsing_a_redis_key_inverts_printing_it(
    namespace: str, scope: Scope, name: str, shards: int
) -> None:
    """And no two of a scope's keys are the same."""
    space = KeySpace(namespace, shards)
    shard = space.shard(scope)
    printed = {
        space.scope(scope): (KeyType.SCOPE, scope, None),
        space.generation(scope, "9-1"): (KeyType.GENERATION, scope, "9-1"),
        space.generations(scope): (KeyType.GENERATIONS, scope, None),
        space.ttl(scope): (KeyType.TTL, scope, None),
        space.lease(scope, name): (KeyType.LEASE, scope, nfc(name)),
        space.log(shard): (KeyType.LOG, None, None),
        space.due(shard): (KeyType.DUE, None, None),
        space.ctl(shard): (KeyType.CTL, None, None),
        space.trash(shard): (KeyType.TRASH, None, None),
        space.ring(shard, "0f"): (KeyType.RING, None, "0f"),
        space.correlation(shard, name): (KeyType.CORRELATION, None, name),
        space.correlation_log(shard, name): (KeyType.CORRELATION_LOG, None, name),
        space.correlations(shard): (KeyType.CORRELATIONS, None, None),
        space.hooks(shard): (KeyType.HOOKS, None, None),
        space.hook_index(shard): (KeyType.HOOK_INDEX, None, None),
        space.hook_batch(shard, "c-1"): (KeyType.HOOK_BATCH, None, "c-1"),
        space.hook_fleet(shard): (KeyType.HOOK_FLEET, None, None),
        space.hook_turn(shard): (KeyType.HOOK_TURN, None, None),
        space.events(shard): (KeyType.EVENT_SUBSCRIPTIONS, None, None),
        space.event_idle(shard): (KeyType.EVENT_IDLE, None, None),
        space.event_stats(shard): (KeyType.EVENT_STATS, None, None),
        space.event_ring(shard, "0f"): (KeyType.EVENT_RING, None, "0f"),
        space.event_queue(shard, name): (KeyType.EVENT_QUEUE, None, nfc(name)),
        space.event_dead(shard, name): (KeyType.EVENT_DEAD, None, nfc(name)),
        space.restores(shard): (KeyType.RESTORES, None, None),
        space.restore(shard, "r-1"): (KeyType.RESTORE, None, "r-1"),
        space.staged(shard, "r-1", "0f"): (KeyType.RESTORE_STAGED, None, "r-1:0f"),
        space.staged(shard, "r-1", "0f") + b":ttl": (KeyType.RESTORE_STAGED, None, "r-1:0f:ttl"),
        space.staged(shard, "r-1", "0f") + b":g": (KeyType.RESTORE_STAGED, None, "r-1:0f:g"),
        space.staged(shard, "r-1", "0f") + b":p:9": (KeyType.RESTORE_STAGED, None, "r-1:0f:p:9"),
    }
    assert len(printed) == 30
    for key, expected in printed.items():
        assert space.parse(key) == (nfc(namespace), shard, *expected)
