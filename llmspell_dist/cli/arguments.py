"""What is typed on the command line, as values: durations, moments, revisions, VALUE."""

from __future__ import annotations

import re
import sys
from datetime import datetime, timedelta
from typing import Any, Final

from llmspell_dist.cli.jsonable import parse_json
from llmspell_dist.cli.wording import wrong
from llmspell_dist.errors import InvalidArgumentError, InvalidTTLError
from llmspell_dist.revision import Revision
from llmspell_dist.state.history import moment_of
from llmspell_dist.ttl import KEEP, TTL, ttl_ms

__all__ = ["parse_expected", "parse_moment", "parse_since", "parse_ttl", "read_value"]

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
# A revision begins with milliseconds since 1970, so that 2026-11 is none.
_REVISION: Final = re.compile(r"\d{9,}-\d+", re.ASCII)
_NONE: Final = "none"


def parse_ttl(text: str | None) -> TTL:
    """Return what ``--ttl`` says: 90s, 15m, 2h, 7d, 1h30m, 500ms, seconds, or none."""
    if text is None:
        return KEEP
    if text == _NONE:
        return None
    if re.fullmatch(r"\d+", text, re.ASCII) and len(text) < 12:
        return _usable(int(text), text)
    if not _DURATION.fullmatch(text) or len(text) > 60:
        raise InvalidTTLError("--ttl", text, "must be like 90s, 15m, 2h, 7d or 1h30m, or none")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    try:
        return _usable(timedelta(seconds=seconds), text)
    except OverflowError:
        raise InvalidTTLError("--ttl", text, "must be at most 100 years") from None


def _usable(ttl: int | timedelta, text: str) -> TTL:
    try:
        ttl_ms(ttl)
    except InvalidTTLError as error:
        raise InvalidTTLError("--ttl", text, error.rule) from None
    return ttl


def parse_expected(text: str) -> Revision | None:
    """Return what ``--expected`` says; ``none``: that there be no value."""
    return None if text == _NONE else _revision("--expected", text, ", or none")


def parse_since(text: str | None) -> Revision | None:
    """Return what ``--since`` says."""
    return None if text is None else _revision("--since", text)


def _revision(option: str, text: str, otherwise: str = "") -> Revision:
    try:
        return Revision.parse(text)
    except InvalidArgumentError:
        rule = f"must be a revision such as 1732374145123-0{otherwise}"
        raise InvalidArgumentError(option, text, rule) from None


def parse_moment(text: str) -> Revision | datetime:
    """Return what ``--at`` says: a revision, or an ISO time (without a zone: of this machine)."""
    if _REVISION.fullmatch(text):
        return _revision("--at", text)
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.astimezone()
        moment_of(moment)
    except InvalidArgumentError as error:
        raise InvalidArgumentError("--at", text, error.rule) from None
    except (ValueError, OverflowError):
        rule = "must be a revision (1732374145123-0) or a time (2026-11-23T15:30:00Z)"
        raise InvalidArgumentError("--at", text, rule) from None
    return moment


def read_value(argument: str, *, as_text: bool) -> Any:
    """Return the value that VALUE stands for; ``-`` reads it from the standard input."""
    text = argument
    if argument == "-":
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            rule = f"must be UTF-8, which byte {error.start} of the standard input is not"
            raise wrong("VALUE", rule) from None
    return text if as_text else parse_json(text)
