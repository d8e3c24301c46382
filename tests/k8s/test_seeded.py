"""Each rule of tests/k8s_rules can fail: a change of good manifests, caught by just that rule."""

from __future__ import annotations

from typing import Any

import pytest
from fix_k8s import Render
from k8s_rules.every import RULES, findings
from k8s_rules.seeds import GONE, SEEDS, Seed

pytestmark = pytest.mark.unit


def _plant(document: dict[str, Any], path: str, value: Any) -> None:
    found: Any = document
    *parents, last = (part.replace("~1", "/") for part in path.split("/"))
    for part in parents:
        found = found[_place(found, part)]
    if last == "+":
        found.append(value)
    elif value is GONE:
        del found[_place(found, last)]
    else:
        found[_place(found, last)] = value


def _place(found: Any, part: str) -> int | str:
    """Return the index or key; in a list also by the name of what stands there."""
    if not isinstance(found, list):
        return part
    return int(part) if part.isdecimal() else [one["name"] for one in found].index(part)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda one: f"{one.rule}: {one.document} {one.path}")
def test_a_seeded_defect_is_caught_by_its_rule_and_no_other(overlay: Render, seed: Seed) -> None:
    """So a rule says what is wrong, and is neither blind nor always angry."""
    manifests = overlay(seed.overlay)
    kind, _, name = seed.document.partition("/")
    document = next(manifests.of(kind)) if name == "*" else manifests.get(seed.document)
    _plant(document, seed.path, seed.value)
    before, after = findings(overlay(seed.overlay)), findings(manifests)
    new = {rule: said for rule, said in after.items() if said != before.get(rule)}
    assert list(new) == [seed.rule], new


def test_every_rule_has_a_seed() -> None:
    """A rule that nobody has seen failing may be one that cannot."""
    assert {one.rule for one in SEEDS} == RULES.keys()
