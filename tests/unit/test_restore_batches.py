"""How much of a restore goes into one call."""

from __future__ import annotations

import pytest

from llmspell_dist.backup.restoring.batches import Changes, framed, place_of
from llmspell_dist.backup.restoring.composites import ADD_ELEMENTS, pieces
from llmspell_dist.keys import KeySpace
from llmspell_dist.scope import Scope


@pytest.mark.parametrize("width", [1, 2])
def test_a_call_has_at_most_some_hundred_small_elements(width: int) -> None:
    """Bytes alone would let thousands in, each of them a command that the script carries out."""
    place = place_of(KeySpace("unit"), "r", Scope.agent("a"), b"agent:a", aside=False)
    parts = [b"x" * 10] * 20_000
    changes, most = Changes((), ()), 0
    elements = 0
    for piece in pieces(parts, width):
        changes.add(ADD_ELEMENTS, place, b"", b"k", framed(piece), elements=len(piece))
        elements += len(piece)
        if changes.full:
            most = max(most, elements)
            assert changes.take(1) is not None
            elements = 0
    assert 1000 <= most <= 2600
