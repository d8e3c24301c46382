"""What a Locust process is told, by environment variables: so it runs in a pod as it does here."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loadtests.mixes import Share, mix_of
from loadtests.stages import Stage, parse_stages

__all__ = ["TARGETS", "LoadSettings", "SettingsError", "load_settings"]

TARGETS: Final = ("sidecar", "library")


class SettingsError(Exception):
    """A variable of the environment cannot be used."""


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """One load: who does what against what, for how long."""

    mix: tuple[Share, ...]
    target: str
    stages: tuple[Stage, ...]
    """None: Locust's own options, or its page, say how many users there are."""
    run: str
    """Part of every scope, so that two runs do not meet."""
    data: Path | None
    facts: Path | None
    """Where to write what was measured."""
    url: str | None
    namespace: str | None
    token: str | None = field(repr=False, default=None)


def load_settings(environ: Mapping[str, str] = os.environ) -> LoadSettings:
    """Return the settings; each has a default, so that ``locust -f …`` runs by itself.

    ``LLMSPELL_LOAD_MIX`` (mixed), ``LLMSPELL_LOAD_TARGET`` (sidecar, or library, which takes
    ``LLMSPELL_URL``), ``LLMSPELL_LOAD_STAGES`` (as 50x10,100x10), ``LLMSPELL_LOAD_DATA``,
    ``LLMSPELL_LOAD_RUN``, ``LLMSPELL_LOAD_FACTS``, ``LLMSPELL_LOAD_TOKEN`` or ``LLMSPELL_TOKEN``.
    """
    target = environ.get("LLMSPELL_LOAD_TARGET") or TARGETS[0]
    if target not in TARGETS:
        raise SettingsError(f"LLMSPELL_LOAD_TARGET must be {' or '.join(TARGETS)}, not {target!r}")
    stages = environ.get("LLMSPELL_LOAD_STAGES")
    data, facts = environ.get("LLMSPELL_LOAD_DATA"), environ.get("LLMSPELL_LOAD_FACTS")
    return LoadSettings(
        mix=mix_of(environ.get("LLMSPELL_LOAD_MIX") or "mixed"),
        target=target,
        stages=parse_stages(stages) if stages else (),
        run=environ.get("LLMSPELL_LOAD_RUN") or secrets.token_hex(4),
        data=Path(data) if data else None,
        facts=Path(facts) if facts else None,
        url=environ.get("LLMSPELL_URL") or None,
        namespace=environ.get("LLMSPELL_NAMESPACE") or None,
        token=environ.get("LLMSPELL_LOAD_TOKEN") or environ.get("LLMSPELL_TOKEN") or None,
    )
