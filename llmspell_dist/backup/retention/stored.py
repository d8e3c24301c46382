"""Reading rules back: from plain data, and from the short form of the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from llmspell_dist.backup.retention.buckets import KeepPerPeriod, Period
from llmspell_dist.backup.retention.composite import AllOf, AnyOf
from llmspell_dist.backup.retention.marks import ImportanceAtLeast, Tagged
from llmspell_dist.backup.retention.model import Importance
from llmspell_dist.backup.retention.newest import KeepLast, KeepYounger
from llmspell_dist.backup.retention.rule import Everything, Rule
from llmspell_dist.backup.retention.units import parse_size, parse_span
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["Words", "read_seconds", "rule_from_data"]

MAX_DEPTH: Final = 16

_COMPOSITES: Final[dict[str, Callable[..., Rule]]] = {"any": AnyOf, "all": AllOf}


def rule_from_data(data: Any, depth: int = 0) -> Rule:
    """Return the rule that `as_data` made this of."""
    name = data.get("rule") if isinstance(data, dict) else None
    if depth > MAX_DEPTH:
        raise InvalidArgumentError("rule", name, f"must be nested at most {MAX_DEPTH} deep")
    try:
        if isinstance(name, str) and name in _COMPOSITES:
            of = data["of"]
            if type(of) is not list:
                raise InvalidArgumentError("of", of, "must be a list of rules")
            return _COMPOSITES[name](*(rule_from_data(one, depth + 1) for one in of))
        return _plain_rule(name, data)
    except KeyError as error:
        raise InvalidArgumentError("rule", name, f"must have the field {error}") from None


def _plain_rule(name: Any, data: Any) -> Rule:
    match name:
        case "everything":
            return Everything()
        case "last":
            return KeepLast(data["count"])
        case "younger":
            return KeepYounger(read_seconds("younger", data["seconds"]))
        case "importance":
            return ImportanceAtLeast(Importance.coerce(data["least"]))
        case "tag":
            if type(data["any"]) is not list:
                raise InvalidArgumentError("tag", data["any"], "must be a list of tags")
            return Tagged(tuple(data["any"]))
        case str() if name in set(Period):
            return KeepPerPeriod(Period(name), data["count"])
    raise InvalidArgumentError("rule", name, "must be a rule that this release knows")


def read_seconds(argument: str, seconds: Any) -> timedelta:
    """Return a span of time that is stored in seconds."""
    if type(seconds) is not int or not 0 < seconds < 10**12:
        raise InvalidArgumentError(argument, seconds, "must be a number of seconds")
    return timedelta(seconds=seconds)


_TOKEN: Final = re.compile(r"\s+|(?P<open>(?:any|all)\()|(?P<close>\))|(?P<word>[^\s()]+)")


class Words:
    """The words of a policy's short form."""

    def __init__(self, text: str) -> None:
        if type(text) is not str:
            raise InvalidArgumentError("policy", text, "must be text, such as last=10 daily=7")
        self._text = text
        self._tokens = self._split()
        self._at = 0
        self.limits: dict[str, Any] = {}
        """Arguments of `RetentionPolicy`, there once `rules` has read them."""

    def _split(self) -> list[str]:
        tokens, at = [], 0
        while at < len(self._text):
            found = _TOKEN.match(self._text, at)
            if found is None:
                raise InvalidArgumentError("policy", self._text[at:], "cannot be read from there")
            at = found.end()
            if found.lastgroup:
                tokens.append(found[0])
        return tokens

    def rules(self, depth: int = 0) -> list[Rule]:
        """Read rules up to the end, or the parenthesis."""
        found: list[Rule] = []
        while self._at < len(self._tokens):
            word = self._tokens[self._at]
            self._at += 1
            if word == ")":
                if not depth:
                    raise InvalidArgumentError("policy", self._text, "has a ) too many")
                return found
            if word.endswith("("):
                if depth >= MAX_DEPTH:
                    rule = f"must be nested at most {MAX_DEPTH} deep"
                    raise InvalidArgumentError("policy", self._text, rule)
                found.append(_COMPOSITES[word[:-1]](*self.rules(depth + 1)))
            elif word == "everything":
                found.append(Everything())
            elif not self._limit(word, depth):
                found.append(_rule(word))
        if depth:
            raise InvalidArgumentError("policy", self._text, "has a ( that is not closed")
        return found

    def _limit(self, word: str, depth: int) -> bool:
        """Read a word that is no rule; False if it is one."""
        name, _, value = word.partition("=")
        read = _LIMITS.get(name)
        if read is None:
            return False
        argument = name.replace("-", "_").replace("min", "minimum")
        if depth:
            raise InvalidArgumentError("policy", word, "must not stand inside any( ) or all( )")
        if argument in self.limits:
            raise InvalidArgumentError("policy", word, "must be given only once")
        self.limits[argument] = read(value, name)
        return True


def _rule(word: str) -> Rule:
    name, equals, value = word.partition("=")
    read = _RULES.get(name)
    if read is None or not equals:
        known = ", ".join([*_RULES, *_LIMITS])
        raise InvalidArgumentError("policy", word, f"must be one of {known}, with = and a value")
    return read(value)


def _count(text: str, argument: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text)):
        raise InvalidArgumentError(argument, text, "must be a number of at least 1")
    return int(text)


def _per(period: Period) -> Callable[[str], Rule]:
    return lambda value: KeepPerPeriod(period, _count(value, period))


_RULES: Final[dict[str, Callable[[str], Rule]]] = {
    "last": lambda value: KeepLast(_count(value, "last")),
    "younger": lambda value: KeepYounger(parse_span(value, "younger")),
    **{str(period): _per(period) for period in Period},
    "importance": lambda value: ImportanceAtLeast(Importance.coerce(value)),
    "tag": lambda value: Tagged(tuple(value.split(","))),
}
_LIMITS: Final[dict[str, Callable[[str, str], Any]]] = {
    "min": _count,
    "max-count": _count,
    "max-size": parse_size,
    "pitr": parse_span,
}
