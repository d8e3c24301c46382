"""Medians, percentiles and the interval of a ratio: pure functions over samples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

__all__ = ["percentile", "ratio_interval", "ratio_of_medians"]

_RESAMPLES = 2_000
_SEED = 20_240_601


def percentile(sorted_samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that at least ``percent`` of all samples do not exceed.

    The samples must be sorted and not empty. No interpolation: the answer is a value that
    really occurred, so a p99.9 of few samples is their maximum and not an invention.
    """
    if not sorted_samples:
        raise ValueError("percentile of no samples")
    rank = -(-len(sorted_samples) * percent // 100)  # ceiling
    return sorted_samples[min(len(sorted_samples), max(1, int(rank))) - 1]


def ratio_of_medians(ours: Sequence[float], peer: Sequence[float]) -> float:
    """Return the median of ours over the median of the peer."""
    return median(ours) / median(peer)


def ratio_interval(
    ours: Sequence[float], peer: Sequence[float], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return a bootstrap interval of the ratio of medians, as (low, high).

    Rounds are resampled as pairs, because the two samples of a round shared the machine's mood.
    The seed is fixed: the same samples always give the same interval.
    """
    if len(ours) != len(peer):
        raise ValueError(f"unpaired samples: {len(ours)} of ours, {len(peer)} of the peer")
    rounds = len(ours)
    if rounds < 2:
        only = ratio_of_medians(ours, peer)
        return only, only
    source = random.Random(_SEED)
    ratios = []
    for _ in range(_RESAMPLES):
        picked = [source.randrange(rounds) for _ in range(rounds)]
        ratios.append(ratio_of_medians([ours[i] for i in picked], [peer[i] for i in picked]))
    ratios.sort()
    tail = (1 - confidence) / 2 * 100
    return percentile(ratios, tail), percentile(ratios, 100 - tail)
