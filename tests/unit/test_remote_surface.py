"""A client of a sidecar offers what the library offers: the same names and signatures."""

from __future__ import annotations

import ast
import inspect
import textwrap
from importlib import import_module
from typing import Any

import pytest

from llmspell_dist.remote.backups import ABSENT as NO_BACKUPS
from llmspell_dist.remote.client import ABSENT
from llmspell_dist.remote.log import ABSENT as NO_LOG

pytestmark = pytest.mark.unit

PAIRS: dict[str, tuple[str, str]] = {
    "Spell": ("llmspell_dist.client:Spell", "llmspell_dist.remote.client:RemoteSpell"),
    "StateManager": (
        "llmspell_dist.state.manager:StateManager",
        "llmspell_dist.remote.state:RemoteState",
    ),
    "Watch": ("llmspell_dist.watch.watch:Watch", "llmspell_dist.remote.watch:RemoteWatch"),
    "Leases": ("llmspell_dist.leases.manager:Leases", "llmspell_dist.remote.leases:RemoteLeases"),
    "Agents": ("llmspell_dist.agents.manager:Agents", "llmspell_dist.remote.agents:RemoteAgents"),
    "Agent": ("llmspell_dist.agents.agent:Agent", "llmspell_dist.remote.agents:RemoteAgent"),
    "Events": ("llmspell_dist.events.manager:Events", "llmspell_dist.remote.events:RemoteEvents"),
    "Correlations": (
        "llmspell_dist.correlation.service:Correlations",
        "llmspell_dist.remote.correlation:RemoteCorrelations",
    ),
    "ChangeLog": ("llmspell_dist.log:ChangeLog", "llmspell_dist.remote.log:RemoteLog"),
    "Backups": (
        "llmspell_dist.backup.service:Backups",
        "llmspell_dist.remote.backups:RemoteBackups",
    ),
    "BackupStore": (
        "llmspell_dist.backup.service:BackupStore",
        "llmspell_dist.remote.backups:RemoteBackupStore",
    ),
}
"""The library's class, and the one that a client of a sidecar has instead."""

LEFT_OUT: dict[str, dict[str, str]] = {
    "Spell": {"open": "connect opens it"},
    "StateManager": {},
    "Watch": {
        "next_page": "the sidecar takes changes by the page; a client reads ahead",
        **dict.fromkeys(
            ("ended", "lost", "missed", "rang", "resumed", "told"),
            "by which the subscription in Redis tells a watch; here a stream does",
        ),
    },
    "Leases": {
        "points": "hooks run in the sidecar",
        "counted": "telemetry counts in the sidecar",
    },
    "Agents": {},
    "Agent": {},
    "Events": {},
    "Correlations": {},
    "ChangeLog": dict(NO_LOG),
    "Backups": {},
    "BackupStore": dict(NO_BACKUPS),
}
"""What a client of a sidecar lacks, and why."""


def _class(path: str) -> type:
    module, _, name = path.partition(":")
    found: type = getattr(import_module(module), name)
    return found


def _public(cls: type) -> dict[str, Any]:
    """Return methods, properties and attributes that a class has under a public name."""
    found = dict.fromkeys(_set_by_constructor(cls))
    return found | {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}


def _set_by_constructor(cls: type) -> list[str]:
    """Return the public attributes that the class's own constructor sets."""
    if "__init__" not in vars(cls):
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls.__init__)))  # type: ignore[misc]
    return [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and not node.attr.startswith("_")
    ]


def _called(member: Any) -> list[tuple[str, Any, Any]] | None:
    """Return names, kinds and defaults of the parameters; None for what is not called."""
    if not callable(member):
        return None
    parameters = inspect.signature(member).parameters.values()
    return [(one.name, one.kind, one.default) for one in parameters]


@pytest.mark.parametrize("name", PAIRS)
def test_a_client_of_a_sidecar_offers_what_the_library_does(name: str) -> None:
    """Every public name is there with the same parameters, or stands in the table with a reason."""
    ours, remote = (_public(_class(path)) for path in PAIRS[name])
    left_out = LEFT_OUT[name] | (dict(ABSENT) if name == "Spell" else {})
    missing = ours.keys() - remote.keys() - left_out.keys()
    assert not missing
    differing = {
        member: (_called(ours[member]), _called(remote[member]))
        for member in ours.keys() & remote.keys()
        if _called(ours[member]) != _called(remote[member])
    }
    assert not differing


@pytest.mark.parametrize("name", PAIRS)
def test_the_table_of_what_is_left_out_is_no_longer_than_it_must_be(name: str) -> None:
    """A name that is there again does not stand in it."""
    remote = _public(_class(PAIRS[name][1]))
    assert not LEFT_OUT[name].keys() & remote.keys()


@pytest.mark.parametrize("name", ABSENT)
def test_what_a_client_of_a_sidecar_has_not_says_why(name: str) -> None:
    """A name of the table is one of the library's client, and no other."""
    spell = _class(PAIRS["Spell"][1])
    assert name not in _public(spell)
    assert len(ABSENT[name]) > 20
