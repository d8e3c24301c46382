"""Exit codes: each error has one, and the documentation lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmspell_dist.cli.exits import EXIT_CODES, Exit, exit_of
from llmspell_dist.errors import SpellError, error_classes

pytestmark = pytest.mark.unit

NOT_THE_USERS_FAULT = {"SPELL_ERROR", "CLOSED", "WRONG_EVENT_LOOP"}
PUBLIC = sorted(
    code
    for code, cls in error_classes().items()
    if cls.__module__ == "llmspell_dist.errors" and code not in NOT_THE_USERS_FAULT
)
DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.mark.parametrize("code", PUBLIC)
def test_every_error_has_an_exit_code(code: str) -> None:
    """Except those that only a bug in the command line could cause."""
    cls = error_classes()[code]
    assert exit_of(cls.__new__(cls)) is not Exit.INTERNAL


def test_an_unknown_error_is_a_bug() -> None:
    """And not mistaken for an answer."""
    assert exit_of(SpellError()) is Exit.INTERNAL


def test_the_documentation_lists_the_exit_codes() -> None:
    """With the meanings that the help has."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \|$", DOCS.read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == {
        int(code): meaning for code, meaning in EXIT_CODES.items()
    }
