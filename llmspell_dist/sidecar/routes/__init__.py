"""Every service's routes: add a module with a `Registry`, and name it in `all_endpoints`."""

from __future__ import annotations

from llmspell_dist.sidecar.endpoint import Endpoint, Registry
from llmspell_dist.sidecar.routes import (
    about,
    admin,
    agent_parts,
    agents,
    backups,
    correlation,
    effects,
    event_socket,
    events,
    health,
    hooks,
    keys,
    lease_hold,
    operations,
    scopes,
    subscriptions,
    transactions,
    watch,
)

__all__ = ["REGISTRIES", "all_endpoints"]

REGISTRIES: tuple[Registry, ...] = (
    keys.routes,
    scopes.routes,
    transactions.routes,
    lease_hold.routes,
    agents.routes,
    agent_parts.routes,
    effects.routes,
    backups.routes,
    operations.routes,
    admin.routes,
    watch.routes,
    events.routes,
    subscriptions.routes,
    event_socket.routes,
    hooks.routes,
    correlation.routes,
    health.routes,
    about.routes,
)
"""In the order in which the documentation shows them."""


def all_endpoints() -> list[Endpoint]:
    """Return every route of the sidecar."""
    return [endpoint for registry in REGISTRIES for endpoint in registry]
