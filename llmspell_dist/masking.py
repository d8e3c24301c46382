"""What a secret looks like, and texts without any: the one place that says so.

In data only what is certain is a secret (`mask_shapes`, `secret_names`), for whoever masks it
changes what is stored. In texts that people read (`mask_text`) more is: whoever a URL names, and
whatever follows a word like ``token=``. Nothing is compiled before it is needed.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

__all__ = ["MASK", "mask_shapes", "mask_text", "secret_names", "shapes"]

MASK: Final = "***"
"""Stands where a secret was."""

_BEGIN: Final = "(?<![A-Za-z0-9])"
_SHAPES: Final = (
    (
        "PRIVATE KEY",
        r"(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z))",
    ),
    ("AKIA", rf"{_BEGIN}AKIA[0-9A-Z]{{16}}\b"),
    ("ASIA", rf"{_BEGIN}ASIA[0-9A-Z]{{16}}\b"),
    ("gh", rf"{_BEGIN}gh[pousr]_[A-Za-z0-9]{{36,}}"),
    ("github_pat_", rf"{_BEGIN}github_pat_\w{{30,}}"),
    ("sk-", rf"{_BEGIN}sk-(?=[A-Za-z_-]{{0,99}}[0-9])[A-Za-z0-9_-]{{20,}}"),
    ("k_live_", rf"{_BEGIN}[sr]k_live_\w{{16,}}"),
    ("xox", rf"{_BEGIN}xox[abprs]-[A-Za-z0-9-]{{10,}}"),
    ("AIza", rf"{_BEGIN}AIza[0-9A-Za-z_-]{{35}}"),
    # Up to where the next one might begin: else a text full of beginnings takes quadratic time.
    ("eyJ", rf"{_BEGIN}eyJ(?:(?![-_]eyJ)[\w-])+\.[\w-]+\.[\w-]*"),
)
"""Private keys, cloud, forge, model, pay and chat tokens, JWTs; before each what every one has."""
_NAMES: Final = (
    r"password|passwd|passphrase|secret|api[_-]?key|private[_-]?key"
    r"|access[_-]?token|refresh[_-]?token|auth[_-]?token"
)
"""Names whose value is a secret whatever it looks like."""


_BEARER: Final = ("", r"(?i:\bBearer\s+(?=[a-z/-]{0,99}[0-9._~+=])[A-Za-z0-9._~+/-]{16,}=*)")
_PASSWORD: Final = ("://", r"(?<=://)[^\s/:@]*:[^\s/]+(?=@)")
"""A password in a URL, with the user's name."""
_IN_TEXTS: Final = (
    ("@", r"(?<=://)[^\s/]*(?=@)", MASK),
    ("", r"(?i:(?P<kept>\b(?:bearer|basic)\s+)[\w.~+/=-]{4,})", rf"\g<kept>{MASK}"),
    (
        "",
        (
            rf"(?i:(?P<kept>(?:{_NAMES}|token|access[_-]?key|authorization)"
            r"(?:=|[\"']?\s*[=:]\s*[\"']?))"
            r"(?:(?<==)(?:[^&\s]+(?=[,;]\s)|[^&\s]+)|[^\s\"'&,;]+))"
        ),
        rf"\g<kept>{MASK}",
    ),
)
"""Whoever a URL names, credentials of HTTP, and what follows a name."""

_Rule = tuple[str, re.Pattern[str], str]
"""What every text has in which the pattern can be found, the pattern, and what comes instead."""


@cache
def _in_data() -> tuple[_Rule, ...]:
    rules = (*_SHAPES, _BEARER, _PASSWORD)
    return tuple((has, re.compile(pattern), MASK) for has, pattern in rules)


@cache
def _in_texts() -> tuple[_Rule, ...]:
    rules = (*((has, pattern, MASK) for has, pattern in _SHAPES), *_IN_TEXTS)
    return tuple((has, re.compile(pattern), instead) for has, pattern, instead in rules)


def shapes() -> tuple[re.Pattern[str], ...]:
    """Return the patterns of what `mask_shapes` masks."""
    return tuple(pattern for _, pattern, _ in _in_data())


@cache
def secret_names() -> re.Pattern[str]:
    """Return the pattern of names, whole or behind ``_`` or ``-``, whose value is a secret."""
    return re.compile(rf"(?:^|[_-])(?:{_NAMES}|credentials?)$", re.IGNORECASE)


def mask_shapes(text: str) -> str:
    """Return a text of somebody's data without what is a secret for certain."""
    return _masked(text, _in_data())


def mask_text(text: str) -> str:
    """Return a text for people without what looks like a secret, or like whoever a URL names."""
    return _masked(text, _in_texts())


def _masked(text: str, rules: tuple[_Rule, ...]) -> str:
    for has, pattern, instead in rules:
        if has in text:
            text = pattern.sub(instead, text)
    return text
