"""The wait-for graph names every circle, and nothing else."""

from __future__ import annotations

import random

import pytest

from llmspell_dist.leases.model import WaitEdge, WaitGraph

pytestmark = pytest.mark.unit


def graph(*pairs: tuple[str, str]) -> WaitGraph:
    """Return a graph in which the first of each pair waits for the second."""
    return WaitGraph(tuple(WaitEdge(a, f"agent:{b}", "main", b) for a, b in pairs))


def circles(found: WaitGraph) -> set[frozenset[str]]:
    """Return who is in each circle, and check that each is one."""
    for circle in found.deadlocks:
        for edge, after in zip(circle, (*circle[1:], circle[0]), strict=True):
            assert edge.holder == after.waiter
    return {frozenset(edge.waiter for edge in circle) for circle in found.deadlocks}


def test_no_circle() -> None:
    """Chains, trees, diamonds, nothing."""
    assert circles(graph()) == set()
    assert circles(graph(("a", "b"), ("b", "c"))) == set()
    assert circles(graph(("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"))) == set()
    assert circles(graph(*[(f"w{i}", "a") for i in range(50)])) == set()


def test_circles_of_one_two_three() -> None:
    """Wherever in the graph they lie."""
    assert circles(graph(("a", "a"))) == {frozenset("a")}
    assert circles(graph(("a", "b"), ("b", "a"))) == {frozenset("ab")}
    assert circles(graph(("x", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "y"))) == {
        frozenset("abc")
    }


def test_several_circles_are_named_each_once() -> None:
    """Apart, and with an owner in common."""
    apart = graph(("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"))
    assert circles(apart) == {frozenset("ab"), frozenset("cd")}
    assert len(apart.deadlocks) == 2
    joined = graph(("a", "b"), ("b", "a"), ("b", "c"), ("c", "b"))
    assert circles(joined) == {frozenset("ab"), frozenset("bc")}


def test_two_leases_between_the_same_two_are_two_edges() -> None:
    """Either closes the circle."""
    edges = (
        WaitEdge("a", "agent:x", "main", "b"),
        WaitEdge("a", "agent:y", "main", "b"),
        WaitEdge("b", "agent:z", "main", "a"),
    )
    found = WaitGraph(edges).deadlocks
    assert found
    assert all({edge.waiter for edge in circle} == {"a", "b"} for circle in found)


def test_a_long_chain_is_no_problem() -> None:
    """Five thousand owners one behind the other, then closed to one circle."""
    chain = [(f"o{i}", f"o{i + 1}") for i in range(5000)]
    assert circles(graph(*chain)) == set()
    found = graph(*chain, ("o5000", "o0")).deadlocks
    assert len(found) == 1
    assert len(found[0]) == 5001


def test_a_dense_graph_without_a_circle_is_quick() -> None:
    """Every owner is looked at once, not once a path."""
    edges = [(f"o{a:03}", f"o{b:03}") for a in range(150) for b in range(a + 1, 150)]
    random.Random(5).shuffle(edges)
    assert circles(graph(*edges)) == set()


@pytest.mark.parametrize("seed", range(20))
def test_whether_there_is_a_circle_is_always_seen(seed: int) -> None:
    """Against the plain definition: somebody can be reached from itself."""
    rng = random.Random(seed)
    names = [f"o{i}" for i in range(8)]
    pairs = {(rng.choice(names), rng.choice(names)) for _ in range(rng.randrange(14))}
    reach = {name: {b for a, b in pairs if a == name} for name in names}
    for _ in names:
        for name in names:
            reach[name] |= {far for near in reach[name] for far in reach[near]}
    on_circles = {name for name in names if name in reach[name]}
    found = circles(graph(*sorted(pairs)))
    assert bool(found) == bool(on_circles), f"seed {seed}"
    assert all(circle <= on_circles for circle in found)
