"""Entity tags in conditions, as RFC 9110 has them."""

from __future__ import annotations

import pytest

from llmspell_dist.revision import Revision
from llmspell_dist.sidecar.entity_tags import parse_tags
from llmspell_dist.sidecar.errors import PreconditionRequiredError

ONE, TWO = Revision(1, 0), Revision(2, 0)


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ("*", "*"),
        (" *\t", "*"),
        ('"1-0"', {ONE}),
        ('W/"1-0"', {ONE}),
        ('"1-0", "2-0"', {ONE, TWO}),
        ('"1-0",W/"2-0"', {ONE, TWO}),
        (',\t, "1-0" ,, "2-0",', {ONE, TWO}),
        ('"of-another"', set()),
        ('"of-another", "2-0"', {TWO}),
        ('"with,a-comma", "2-0"', {TWO}),
        ('""', set()),
    ],
)
def test_a_list_of_tags_is_read(value: str, tags: object) -> None:
    """Empty members count for nothing, tags of others match nothing."""
    assert parse_tags(value, "If-Match") == tags


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        ",",
        "1-0",
        '"1-0',
        '"1-0" "2-0"',
        '"1-0" x',
        'w/"1-0"',
        '*, "1-0"',
        '"\x7f"',
        '"a b"',
    ],
)
def test_what_is_no_list_of_tags_is_refused(value: str) -> None:
    """With the header and what it must be."""
    with pytest.raises(PreconditionRequiredError, match=r"If-Match.*entity tags"):
        parse_tags(value, "If-Match")


@pytest.mark.parametrize("middle", [", ", " ", ",", "\t,\t", '"1-0",', '"1-0" , '])
def test_a_long_header_takes_no_more_time_than_its_length(middle: str) -> None:
    """Sixty thousand characters that are wrong at the end: a pattern that goes back hangs here."""
    value = '"1-0",' + middle * (60_000 // len(middle)) + "x"
    with pytest.raises(PreconditionRequiredError):
        parse_tags(value, "If-Match")
