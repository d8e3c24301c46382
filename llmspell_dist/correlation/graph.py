"""Causes and effects as a graph without circles, and how deep each entry lies in it.

An edge goes from a cause to its effect, both positions in time order. Clocks differ, so an effect
may stand before its cause; and what people and programs link may close a circle. Within a circle
(a strongly connected component, found as by Tarjan, SIAM J. Comput. 1972) the edges that point back
in time count for nothing; every other edge counts. So what is left has no circle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["components", "depths", "without_circles"]

Edge = tuple[int, int]


def without_circles(size: int, edges: Sequence[Edge]) -> tuple[list[Edge], list[Edge]]:
    """Return the edges that count, and those that would close a circle."""
    component = components(size, edges)
    kept: list[Edge] = []
    circular: list[Edge] = []
    for cause, effect in edges:
        closes = cause >= effect and component[cause] == component[effect]
        (circular if closes else kept).append((cause, effect))
    return kept, circular


def components(size: int, edges: Iterable[Edge]) -> list[int]:
    """Return for every node the number of its strongly connected component."""
    after: list[list[int]] = [[] for _ in range(size)]
    for cause, effect in edges:
        after[cause].append(effect)
    index = [-1] * size
    low = [0] * size
    component = [-1] * size
    stack: list[int] = []
    counter = found = 0
    for start in range(size):
        if index[start] >= 0:
            continue
        index[start] = low[start] = counter
        counter += 1
        stack.append(start)
        work = [(start, iter(after[start]))]
        while work:
            node, rest = work[-1]
            for following in rest:
                if index[following] < 0:
                    index[following] = low[following] = counter
                    counter += 1
                    stack.append(following)
                    work.append((following, iter(after[following])))
                    break
                if component[following] < 0:
                    low[node] = min(low[node], index[following])
            else:
                work.pop()
                if work:
                    above = work[-1][0]
                    low[above] = min(low[above], low[node])
                if low[node] == index[node]:
                    while True:
                        member = stack.pop()
                        component[member] = found
                        if member == node:
                            break
                    found += 1
    return component


def depths(size: int, edges: Sequence[Edge]) -> list[int]:
    """Return for every node the length of the longest way back to one without causes.

    `edges` without circles, in the order of the effects.
    """
    depth = [0] * size
    forward = True
    for cause, effect in edges:
        forward = forward and cause < effect
        below = depth[cause] + 1
        if below > depth[effect]:  # noqa: PLR1730 - max() takes three times as long
            depth[effect] = below
    if forward:
        return depth  # each cause was done before its effects
    return _depths_by_layers(size, edges)


def _depths_by_layers(size: int, edges: Sequence[Edge]) -> list[int]:
    effects: list[list[int]] = [[] for _ in range(size)]
    waiting, depth = [0] * size, [0] * size
    for cause, effect in edges:
        effects[cause].append(effect)
        waiting[effect] += 1
    ready = [node for node in range(size) if not waiting[node]]
    for node in ready:  # it grows while it is walked
        for effect in effects[node]:
            depth[effect] = max(depth[effect], depth[node] + 1)
            waiting[effect] -= 1
            if not waiting[effect]:
                ready.append(effect)
    return depth
