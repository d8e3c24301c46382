"""Records of the recorded agent runs' kind, seeded and all different, for the rows of backups.

Sizes follow the runs' own quantiles up to the ninth decile (median 663 bytes, 4.3 KB there) and end
a little above it, so that a million records are one gigabyte. Text is drawn from sentences that
are as unlike each other as those of a run: it compresses about 4 times.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.harness import concurrently
from llmspell_dist import Spell

__all__ = ["PER_SCOPE", "batches", "fill", "message", "scope_name"]

PER_SCOPE = 100
"""Messages of a run."""
_QUANTILES = (
    (0.0, 90),
    (0.25, 330),
    (0.5, 678),
    (0.75, 900),
    (0.87, 1_500),
    (0.89, 4_200),
    (1.0, 5_000),
)
_SEED = 20_261_126
_VOCABULARY = 6_000
_SENTENCES = 60_000
_OVERHEAD = 60
_ROLES = ("assistant", "user", "tool", "system")
_LETTERS = "etaoinshrdlcumwfgypbvk"
_FORMS = (
    "{0} the {1} in {2}/{3}.py:{n} and see whether {4} still {5}.\n",
    "    def {0}_{1}(self, {2}: int = {n}) -> {3}:\n        return self.{4}({5})\n",
    '  File "{0}/{1}/{2}.py", line {n}, in {3}\n    {4} = {5}(value)\n',
    "(Open file: /repo/{0}/{1}/{2}.py) ({n} lines total) {3} {4} {5}\n",
    "I think that {0} {1} because {2} is {n} when {3} {4} the {5}. ",
    "{n}: {0} {1} {2} {3} {4} {5}\n",
)


class _Text:
    """A pool of sentences, the same in every process."""

    def __init__(self) -> None:
        source = random.Random(_SEED)
        words = [
            "".join(source.choices(_LETTERS, k=min(12, 2 + int(source.expovariate(0.25)))))
            for _ in range(_VOCABULARY)
        ]
        weights = [1 / (rank + 3) for rank in range(_VOCABULARY)]
        drawn = source.choices(words, weights, k=6 * _SENTENCES)
        self.sentences = [
            source.choice(_FORMS).format(*drawn[6 * at : 6 * at + 6], n=source.randrange(2_000))
            for at in range(_SENTENCES)
        ]


_text: list[_Text] = []


def _size(source: random.Random) -> int:
    at = source.random()
    place = min(bisect_right(_QUANTILES, (at, 1 << 30)), len(_QUANTILES) - 1)
    (low, small), (high, large) = _QUANTILES[place - 1], _QUANTILES[place]
    return round(small + (large - small) * (at - low) / (high - low))


def message(number: int, change: int = 0) -> dict[str, Any]:
    """Return one record; with another `change` it has another content of about the same size."""
    if not _text:
        _text.append(_Text())
    source = random.Random(number * 1_000 + change)
    left = max(20, _size(random.Random(number)) - _OVERHEAD)
    parts = [f"[{number:07d}.{change} {source.getrandbits(64):016x}] "]
    left -= len(parts[0])
    sentences = _text[0].sentences
    while left > 0:
        parts.append(sentences[int(source.random() * _SENTENCES)])
        left -= len(parts[-1])
    content = "".join(parts)
    if left < 0:
        content = content[:left]
    return {
        "role": _ROLES[number & 3],
        "agent": "main",
        "message_type": "action",
        "content": content,
    }


def scope_name(number: int) -> str:
    """Return the scope of a run."""
    return f"session:run-{number:06d}"


def batches(records: int) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield scope after scope with its records."""
    for first in range(0, records, PER_SCOPE):
        last = min(first + PER_SCOPE, records)
        yield (
            scope_name(first // PER_SCOPE),
            {f"message-{n:07d}": message(n) for n in range(first, last)},
        )


async def fill(spell: Spell, records: int, trim: Callable[[], object] | None = None) -> None:
    """Write so many records, a commit for each scope; `trim` is called between."""
    waiting = batches(records)
    left = -(-records // PER_SCOPE)
    while left:
        some = [next(waiting) for _ in range(min(20, left))]
        left -= len(some)

        async def write(worker: int, _: int, some: Any = some) -> None:
            await spell.state.set_many(*some[worker])

        await concurrently(len(some), len(some), write)
        if trim is not None:
            trim()
