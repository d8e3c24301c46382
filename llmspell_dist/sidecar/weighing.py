"""Weighs a body before it is decoded: a few bytes can unfold into very many small things.

Each list and dict costs some 64 bytes of memory and time on the event loop, where its byte in the
body may have cost nothing (``[[],[],…``, and compressed a thousandth of that). What a body can hold
is bounded by counting first: cheaply, by its bytes, and exactly only where that is not enough.
"""

from __future__ import annotations

import re
from typing import Final

from llmspell_dist.codec_types import FROZENSET, SET, TUPLE
from llmspell_dist.errors import LimitError

__all__ = ["MAX_CONTAINERS", "MAX_ELEMENTS", "weigh_json", "weigh_messagepack"]

MAX_CONTAINERS: Final = 200_000
MAX_ELEMENTS: Final = 1_000_000
_STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""Also one that does not end: else it is looked for again from each quote within it."""
_NO_HEADERS: Final = bytes(set(range(256)) - set(range(0x80, 0xA0)) - set(range(0xDC, 0xE0)))
_WIDTHS: Final = {
    0xC0: (0, 0),
    0xC1: (0, 0),
    0xC2: (0, 0),
    0xC3: (0, 0),
    0xC4: (1, 0),
    0xC5: (2, 0),
    0xC6: (4, 0),
    0xC7: (1, 1),
    0xC8: (2, 1),
    0xC9: (4, 1),
    0xCA: (4, 0),
    0xCB: (8, 0),
    0xCC: (1, 0),
    0xCD: (2, 0),
    0xCE: (4, 0),
    0xCF: (8, 0),
    0xD0: (1, 0),
    0xD1: (2, 0),
    0xD2: (4, 0),
    0xD3: (8, 0),
    0xD4: (0, 1),
    0xD5: (0, 1),
    0xD6: (0, 1),
    0xD7: (0, 1),
    0xD8: (0, 1),
    0xD9: (1, 0),
    0xDA: (2, 0),
    0xDB: (4, 0),
    0xDC: (2, 0),
    0xDD: (4, 0),
    0xDE: (2, 0),
    0xDF: (4, 0),
}
"""By header: bytes that a length or number takes, and the byte of an extension's code."""
_RUN: Final = re.compile(
    rb"([\x00-\x7f\xc0-\xc3\xe0-\xff]++)|((?:[\xcc\xd0].)++)|((?:[\xcd\xd1]..)++)"
    rb"|((?:[\xca\xce\xd2].{4})++)|((?:[\xcb\xcf\xd3].{8})++)",
    re.DOTALL,
)
"""Numbers and the like, as many as there are of one size: a group for each size."""
_SIZES: Final = (0, 1, 2, 3, 5, 9)
"""By group."""
_OTHERS: Final = frozenset((*range(0xC4, 0xCA), *range(0xD4, 0xE0)))
"""What is no number, and is looked at one by one: bytes, texts, extensions, arrays, maps."""
_LENGTHS: Final = frozenset({0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB})
_EXTENSIONS: Final = frozenset({0xC7, 0xC8, 0xC9})
_FIXED: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_OURS: Final = frozenset({bytes((code,)) for code in (TUPLE, SET, FROZENSET)})
"""Extensions of the codec that hold an array."""


def weigh_json(body: bytes) -> None:
    """Raise `LimitError` if a JSON text holds too many lists, objects or elements."""
    containers, elements = _json_counts(body)
    if containers > MAX_CONTAINERS or elements > MAX_ELEMENTS:
        containers, elements = _json_counts(_STRINGS.sub(b"", body))
    _check(containers, elements)


def _json_counts(body: bytes) -> tuple[int, int]:
    containers = body.count(b"[") + body.count(b"{")
    return containers, containers + body.count(b",")


def _check(containers: int, elements: int) -> None:
    if containers > MAX_CONTAINERS:
        raise LimitError("lists and dicts of the body", containers, MAX_CONTAINERS, "$")
    if elements > MAX_ELEMENTS:
        raise LimitError("elements of the body", elements, MAX_ELEMENTS, "$")


def weigh_messagepack(body: bytes) -> None:
    """Raise `LimitError` if MessagePack holds too many arrays, maps or elements.

    What cannot be read passes: the decoder will say so.
    """
    if len(body) <= MAX_ELEMENTS and len(body.translate(None, _NO_HEADERS)) <= MAX_CONTAINERS:
        return  # not even if each byte were one
    containers = elements = place = 0
    size = len(body)
    while place < size:
        header = body[place]
        if 0xA0 <= header < 0xC0:
            elements += 1
            place += 1 + (header & 0x1F)
        elif 0x80 <= header < 0xA0:
            elements += 1
            containers += 1
            place += 1
        elif header not in _OTHERS and (run := _RUN.match(body, place)):
            elements += (run.end() - place) // _SIZES[run.lastindex or 0]
            place = run.end()
        else:
            elements += 1
            if header >= 0xDC:
                containers += 1
            place = _behind(body, place, header)
        if containers > MAX_CONTAINERS or elements > MAX_ELEMENTS:
            break
    _check(containers, elements)


def _behind(body: bytes, place: int, header: int) -> int:
    """Return where the next header stands; those inside of our own containers are next, too."""
    width, extra = _WIDTHS[header]
    length = int.from_bytes(body[place + 1 : place + 1 + width], "big")
    inside = place + 1 + width + extra
    if header in _EXTENSIONS:
        return inside if body[inside - 1 : inside] in _OURS else inside + length
    if header in _FIXED:
        code = body[place + 1 : place + 2]
        return place + 2 if code in _OURS else place + 2 + _FIXED[header]
    return inside + (length if header in _LENGTHS else 0)
