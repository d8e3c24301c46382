"""All rules by name, and what they say of manifests."""

from __future__ import annotations

from typing import Final

from k8s_rules import commands, fleet, life, monitors, network, pods, secrets
from k8s_rules.model import Manifests, Rule

RULES: Final[dict[str, Rule]] = {
    name: rule
    for module in (pods, life, fleet, network, secrets, commands, monitors)
    for name, rule in module.RULES.items()
}


def findings(manifests: Manifests) -> dict[str, list[str]]:
    """Return what is wrong, by the rule that says so."""
    said = {name: sorted(set(rule(manifests))) for name, rule in RULES.items()}
    return {name: found for name, found in said.items() if found}
