"""Puts the sidecar together: an ASGI application over an open client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Router

from llmspell_dist.sidecar.api import Api
from llmspell_dist.sidecar.bodies import Bodies
from llmspell_dist.sidecar.routes import all_endpoints
from llmspell_dist.sidecar.routes.health import routes as health_routes
from llmspell_dist.sidecar.services import Services
from llmspell_dist.sidecar.settings import SidecarSettings

if TYPE_CHECKING:
    from llmspell_dist.client import Spell
    from llmspell_dist.sidecar.auth.access import Access
    from llmspell_dist.telemetry import Running

__all__ = ["make_app", "make_health_app", "make_services"]


def make_services(
    spell: Spell,
    access: Access,
    settings: SidecarSettings | None = None,
    telemetry: Running | None = None,
) -> Services:
    """Return what stands behind the routes. `spell` is open, and stays so."""
    settings = settings or SidecarSettings()
    bodies = Bodies(settings.limits.body_bytes)
    services = Services(spell, access, bodies, settings)
    if telemetry is not None:
        services.observer = telemetry.telemetry.http()
        services.spans = telemetry.telemetry.observer({})
        services.render_metrics = telemetry.prometheus
    return services


def make_app(services: Services) -> Router:
    """Return the application that serves the whole API.

    A bare router: errors become answers in `Api`, so no middleware has to catch any.
    """
    return Router(routes=[Api(services, all_endpoints())])


def make_health_app(services: Services) -> Router:
    """Return the application for probes and monitoring: no state can be reached through it."""
    return Router(routes=[Api(services, health_routes)])
