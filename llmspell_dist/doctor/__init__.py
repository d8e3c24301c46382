"""What is wrong with a server for our purposes, and what to do about it.

::

    facts = await collect("redis://db.example/0", namespace="shop")
    for finding in diagnose(facts):
        print(finding.severity, finding.check, finding.found, finding.advice)

`collect` does the I/O; `diagnose` and every check are pure functions of `Facts`.
"""

from __future__ import annotations

from llmspell_dist.doctor.checks import CHECKS, diagnose
from llmspell_dist.doctor.collect import collect
from llmspell_dist.doctor.facts import Facts, Finding, Severity

__all__ = ["CHECKS", "Facts", "Finding", "Severity", "collect", "diagnose"]
