"""Putting scopes back as they were: laid down beside the live ones, then swapped in, each whole."""

from llmspell_dist.backup.restoring.applying import apply
from llmspell_dist.backup.restoring.checking import check, digest_of, digest_staged
from llmspell_dist.backup.restoring.placement import Placement
from llmspell_dist.backup.restoring.staging import Loaded, Staging
from llmspell_dist.backup.restoring.swapping import (
    Leased,
    Swap,
    Swapped,
    abandon,
    leftovers,
    refuse_leased,
    staged_page,
    survey,
    swap,
    take_key,
)

__all__ = [
    "Leased",
    "Loaded",
    "Placement",
    "Staging",
    "Swap",
    "Swapped",
    "abandon",
    "apply",
    "check",
    "digest_of",
    "digest_staged",
    "leftovers",
    "refuse_leased",
    "staged_page",
    "survey",
    "swap",
    "take_key",
]
