"""Entity tags in conditions: RFC 9110, 8.8.3 and 13.1. A tag of this API is a revision."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, Literal

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import Revision
from llmspell_dist.sidecar.errors import PreconditionRequiredError

__all__ = ["Tags", "parse_tags"]

Tags = Literal["*"] | frozenset[Revision]
"""``*`` for any, or the revisions that are named; none of them if all are tags of others."""

_MEMBER: Final = re.compile(r'[ \t]*(?:(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*)?(?:,|\Z)')
"""One member of a list, which may be empty, and the comma behind it; matched one after the other,
so that a long header takes time in proportion to its length."""


def parse_tags(value: str, header: str) -> Tags:
    """Return the revisions that a header names, or ``*``.

    A tag that this API cannot have given matches nothing. ``W/`` is taken off: a proxy that packs
    answers puts it there, and a revision is the same value however it was sent.
    """
    text = value.strip(" \t")
    if text == "*":
        return "*"
    tags: list[str] = []
    at = 0
    while at < len(text):
        member = _MEMBER.match(text, at)
        if member is None:
            break
        at = member.end()
        if member[1] is not None:
            tags.append(member[1])
    if at < len(text) or not tags:
        rule = 'must be entity tags that this API gave, such as "1732374145123-0", or *'
        raise PreconditionRequiredError(header, value, rule)
    return frozenset(_revisions(tags))


def _revisions(tags: Iterable[str]) -> Iterator[Revision]:
    for tag in tags:
        with suppress(InvalidArgumentError):
            yield Revision.parse(tag)
