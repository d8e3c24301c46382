"""Which rights the library needs: the table is complete, replies are understood."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import llmspell_dist
from llmspell_dist.doctor import CHECKS
from llmspell_dist.doctor.facts import MissingRight
from llmspell_dist.doctor.rights import NEEDS, advice, distinct, missing_right, questions
from llmspell_dist.keys import KeySpace
from llmspell_dist.redis.scripts import scripts_folder

pytestmark = pytest.mark.unit

PACKAGE = Path(llmspell_dist.__file__).parent
NAMES = {need.name for need in NEEDS}
WITHOUT_RIGHTS = {"auth", "hello", "select", "multi", "exec", "acl"}
"""Allowed to everybody, or needed by the doctor alone, which says so."""


def _called_in_scripts() -> set[str]:
    """Every word in a script that looks like a command and follows a call, or stands in a table."""
    found: set[str] = set()
    for path in scripts_folder().rglob("*.lua"):
        code = re.sub(r"--[^\n]*", "", path.read_text())
        for line in code.splitlines():
            for words in re.findall(r"redis\.p?call\((.*)", line):
                found |= set(re.findall(r"'([A-Z]{3,})'", words.split(", ")[0]))
            if re.match(r"\s*local LENGTH = ", line):
                found |= set(re.findall(r"'([A-Z]{3,})'", line))
    return {word.lower() for word in found}


def _sent_by_python() -> set[str]:
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if "doctor" in path.parts or "cli" in path.parts:
            continue
        for first, second in re.findall(
            r'\bpack\(\s*b?"([A-Z]{2,})"(?:,\s*b?"([A-Z]{2,})")?', path.read_text()
        ):
            pair = f"{first}|{second}".lower()
            found.add(pair if first in {"CLIENT", "SCRIPT"} else first.lower())
    return found - WITHOUT_RIGHTS


def test_every_command_of_the_scripts_is_in_the_table() -> None:
    """A script that begins to use another command must not surprise anybody's ACL."""
    assert len(_called_in_scripts()) > 25
    assert _called_in_scripts() - NAMES == set()


def test_every_command_that_python_sends_is_in_the_table() -> None:
    """The same for requests outside of scripts."""
    assert len(_sent_by_python()) > 10
    assert _sent_by_python() - NAMES == set()


def test_every_kind_of_key_is_asked_about() -> None:
    """Log, index, settings, ring, scopes and their elements."""
    keys = {word for question in questions(KeySpace("ns"), "t") for word in question.request}
    for key in ("ns:{0}:log", "ns:{0}:due", "ns:{0}:ctl", "ns:{0}:ring:doctor", "ns:{0}:global"):
        assert key in keys


@pytest.mark.parametrize(
    ("said", "kind", "name"),
    [
        ("User bob has no permissions to run the 'hget' command", "command", "hget"),
        ("NOPERM this user has no permissions to run the 'hget' command", "command", "hget"),
        ("NOPERM No permissions to access a key", "key", "ns:*"),
        ("User bob has no permissions to access the 'ns:{0}:x' key", "key", "ns:*"),
        ("NOPERM No permissions to access a channel", "channel", "ns:*"),
    ],
)
def test_a_refusal_tells_what_is_missing(said: str, kind: str, name: str) -> None:
    """In the words of 6.2, of 7 and of DRYRUN."""
    question = next(q for q in questions(KeySpace("ns"), "t") if q.need.name == "hget")
    right = missing_right(question, said)
    assert right is not None
    assert (right.kind, right.name) == (kind, name)


@pytest.mark.parametrize("said", ["OK", "", "ERR unknown command", "WRONGTYPE Operation against"])
def test_any_other_reply_means_that_the_right_is_there(said: str) -> None:
    """The server looks at rights first."""
    question = next(questions(KeySpace("ns"), "t"))
    assert missing_right(question, said) is None


def test_each_missing_right_is_named_once_essential_ones_first() -> None:
    """Many requests fail for one missing key pattern."""
    optional = MissingRight("command", "info", "x", essential=False)
    pattern = MissingRight("key", "ns:*", "x", essential=True)
    assert distinct([optional, pattern, None, pattern]) == (pattern, optional)


def test_the_advice_is_a_command_to_paste() -> None:
    """With the signs of ACL rules."""
    missing = [
        MissingRight("command", "client|id", "x", essential=False),
        MissingRight("key", "ns:*", "x", essential=True),
        MissingRight("channel", "ns:*", "x", essential=False),
    ]
    assert advice("bob", missing) == "ACL SETUSER bob +client|id ~ns:* &ns:*"


def test_the_documentation_lists_the_rights_and_the_checks() -> None:
    """Nothing more and nothing less."""
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    _, _, section = text.partition("### The rights that are needed")
    assert set(re.findall(r"\+([a-z|]+)", section)) == NAMES
    listed = re.findall(r"^\| `([a-z-]+)` \|", text.partition("## doctor")[2], re.MULTILINE)
    assert listed == list(CHECKS)
