"""What a sidecar tells of agents and effects, back to what the library gives."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from llmspell_dist.agents.effects import EffectRecord, EffectStatus
from llmspell_dist.agents.errors import EffectError
from llmspell_dist.agents.execution import ExecutionState
from llmspell_dist.agents.layout import CONVERSATION, MAPS, Parts
from llmspell_dist.agents.listing import AgentSummary
from llmspell_dist.agents.model import AgentMetadata
from llmspell_dist.agents.reading import Loaded
from llmspell_dist.agents.snapshot import Snapshot, encoded_map
from llmspell_dist.classes import StateClass
from llmspell_dist.records import Head, Kind
from llmspell_dist.remote.documents import revision_of
from llmspell_dist.remote.problems import register_facts
from llmspell_dist.revision import Revision, to_ms

if TYPE_CHECKING:
    from llmspell_dist.codec import Codec

__all__ = ["effect_of", "loaded_of", "summary_of"]

Document = Mapping[str, Any]


def summary_of(document: Document) -> AgentSummary:
    """Return what is known about an agent."""
    return AgentSummary(
        document["agent_id"],
        document["agent_type"],
        AgentMetadata(**document["metadata"]),
        ExecutionState(**document["execution"]),
        document["creation_time"],
        document["last_modified"],
        document["messages"],
        document["schema_version"],
        Revision.parse(document["revision"]),
    )


def effect_of(document: Document) -> EffectRecord:
    """Return an effect as it is recorded."""
    said = dict(document)
    said["status"] = EffectStatus(said["status"])
    said["claimed"] = Revision.parse(said["claimed"])
    said["revision"] = revision_of(said["revision"])
    del said["claimed_at"]  # the revision says it
    return EffectRecord(**said)


def loaded_of(codec: Codec, namespace: str, scope: str, document: Document) -> Loaded:
    """Return an agent as the library reads it: by its parts, each encoded again."""
    head = document["conversation"]
    there = Snapshot(namespace, scope, revision_of(document["revision"]))
    there.conversation = Head(head["count"], head["size"], head["generation"])
    values: dict[str, Any] = {}
    maps: dict[str, dict[str, Any]] = {key: {} for key in MAPS}
    for key, part in document["parts"].items():
        there.revisions[key] = Revision.parse(part["revision"])
        there.kinds[key] = Kind[part["kind"].upper()]
        there.classes[key] = StateClass.coerce(part["state_class"])
        if key in MAPS:
            maps[key] = part["value"]
            there.maps[key] = encoded_map(codec, key, maps[key])
        elif key != CONVERSATION:
            values[key] = part["value"]
            there.values[key] = codec.encode(part["value"])
    return Loaded(there, Parts(values, maps), head["messages"], to_ms(document["time"]))


def _moment(said: Any) -> Any:
    return datetime.fromisoformat(said) if isinstance(said, str) else said


register_facts(EffectError, since=_moment, deadline=_moment)
