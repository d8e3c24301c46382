"""Every metric and attribute that the library emits: names, units, kinds, what they mean.

Instruments are made from this table, the page ``docs/telemetry`` is checked against it, and so are
the dashboard and the alert rules. Names and attributes that OpenTelemetry's semantic conventions
define are used as they define them; the others begin with ``llmspell.``.

No metric has a key, an id or a scope as an attribute: there may be millions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from llmspell_dist.observation import BOUNDS_S, SIZE_BOUNDS

__all__ = ["METRICS", "SPANS", "SPAN_ATTRIBUTES", "Metric"]

Kind = Literal["counter", "gauge", "histogram", "updown"]
"""`updown` is a sum that falls too: what the conventions have so, and not as a gauge."""

_CLIENT: Final = ("llmspell.namespace",)
_SERVER: Final = (
    *("db.system.name", "db.namespace", "server.address", "server.port"),
    "llmspell.namespace",
)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram: the upper bounds of its buckets."""


def _metric(  # noqa: PLR0917 - a row of the table below
    name: str,
    kind: Kind,
    unit: str,
    description: str,
    attributes: tuple[str, ...] = _CLIENT,
    bounds: tuple[float, ...] = (),
) -> Metric:
    if kind == "histogram" and not bounds:
        bounds = BOUNDS_S
    return Metric(name, kind, unit, description, attributes, bounds)


_LANE: Final = ("llmspell.lane", *_CLIENT)
_HOOK: Final = ("llmspell.hook.name", "llmspell.hook.point", *_CLIENT)
_QUEUE: Final = ("llmspell.subscription", *_CLIENT)
_SHARD: Final = ("llmspell.shard", *_CLIENT)
_PLACE: Final = ("llmspell.backup.place", *_CLIENT)

_ALL: Final = (
    # --- what goes to the server and back
    _metric(
        "db.client.operation.duration",
        *("histogram", "s"),
        "How long requests to the server took, from submission to reply, retries included.",
        ("db.operation.name", "error.type", *_SERVER),
    ),
    _metric(
        "llmspell.commit.group.size",
        *("histogram", "{commit}"),
        "How many commits left in one script call.",
        bounds=SIZE_BOUNDS,
    ),
    _metric(
        "llmspell.lane.connected",
        "gauge",
        "{connection}",
        "Whether the lane has a connection.",
        _LANE,
    ),
    _metric(
        *("llmspell.lane.in_flight", "gauge", "{request}"), "Sent and not answered yet.", _LANE
    ),
    _metric("llmspell.lane.queued", "gauge", "{request}", "Waiting to be sent.", _LANE),
    _metric(
        *("llmspell.lane.connections", "counter", "{connection}"),
        *("Connections made, the first one included.", _LANE),
    ),
    _metric(
        *("llmspell.lane.losses", "counter", "{connection}"),
        *("Connections that were lost.", _LANE),
    ),
    _metric("llmspell.lane.retries", "counter", "{request}", "Requests sent again.", _LANE),
    _metric(
        *("llmspell.lane.io", "counter", "By", "Bytes that went over the lane."),
        ("network.io.direction", *_LANE),
    ),
    # --- leases
    _metric("llmspell.lease.held", "gauge", "{lease}", "Leases that this process holds."),
    _metric("llmspell.lease.waiting", "gauge", "{waiter}", "Callers in line for a lease."),
    _metric("llmspell.lease.acquired", "counter", "{lease}", "Leases acquired."),
    _metric("llmspell.lease.lost", "counter", "{lease}", "Leases lost or broken while held."),
    _metric(
        "llmspell.lease.wait.duration",
        *("histogram", "s"),
        "How long callers waited for leases that they got.",
    ),
    # --- hooks
    _metric("llmspell.hook.runs", "counter", "{run}", "Runs of hooks.", _HOOK),
    _metric(
        *("llmspell.hook.failures", "counter", "{run}"),
        *("Runs that failed or ran out of time.", _HOOK),
    ),
    _metric(
        *("llmspell.hook.skipped", "counter", "{run}"),
        *("Runs left out, since the breaker was open.", _HOOK),
    ),
    _metric(
        *("llmspell.hook.breaker.open", "gauge", "{breaker}"),
        *("Whether the circuit breaker is open.", _HOOK),
    ),
    # --- events
    _metric("llmspell.event.published", "counter", "{event}", "Events the server acknowledged."),
    _metric(
        *("llmspell.event.refused", "counter", "{event}"),
        *("Events not stored.", ("llmspell.event.reason", *_CLIENT)),
    ),
    _metric(
        *("llmspell.event.delivered", "counter", "{event}"),
        *("Events handed to consumers, again included.", _QUEUE),
    ),
    _metric("llmspell.event.acknowledged", "counter", "{event}", "Events handled.", _QUEUE),
    _metric("llmspell.event.failed", "counter", "{event}", "Deliveries that failed.", _QUEUE),
    _metric(
        *("llmspell.event.dead_lettered", "counter", "{event}"),
        *("Events moved to the dead letters.", _QUEUE),
    ),
    # --- watches and the near cache
    _metric("llmspell.watch.open", "gauge", "{watch}", "Watches that are open."),
    _metric(
        *("llmspell.watch.buffered", "gauge", "{change}"),
        "Changes that wait for slow watchers.",
    ),
    _metric(
        *("llmspell.near_cache.lookups", "counter", "{lookup}"),
        *("Reads that asked the near cache.", ("llmspell.near_cache.result", *_CLIENT)),
    ),
    _metric(
        *("llmspell.near_cache.invalidations", "counter", "{value}"),
        "Values dropped because they changed.",
    ),
    _metric("llmspell.near_cache.evictions", "counter", "{value}", "Values dropped for room."),
    _metric("llmspell.near_cache.entries", "gauge", "{value}", "Values held."),
    _metric("llmspell.near_cache.size", "gauge", "By", "About how much the values take."),
    # --- what an inspector asks the server
    _metric("llmspell.log.length", "gauge", "{entry}", "Entries of the change log.", _SHARD),
    _metric(
        *("llmspell.log.cap", "gauge", "{entry}"),
        *("Entries at which the log is cut, holds or not.", _SHARD),
    ),
    _metric("llmspell.log.holds", "gauge", "{hold}", "Holds that keep entries.", _SHARD),
    _metric(
        *("llmspell.log.holds.broken", "gauge", "{hold}"),
        *("Holds that broke, since the log reached its cap.", _SHARD),
    ),
    _metric("llmspell.event.lag", "gauge", "{event}", "Events nobody acknowledged yet.", _QUEUE),
    _metric("llmspell.event.dead_letters", "gauge", "{event}", "Dead letters kept.", _QUEUE),
    _metric("llmspell.server.memory.used", "gauge", "By", "Memory that the server uses."),
    _metric(
        *("llmspell.server.memory.limit", "gauge", "By"),
        "Memory that the server may use: its maxmemory, else all of its machine's.",
    ),
    _metric("llmspell.backup.age", "gauge", "s", "Since the newest backup was made.", _PLACE),
    _metric(
        *("llmspell.backup.proof.age", "gauge", "s"),
        *("Since a drill last restored a backup and found everything as it was.", _PLACE),
    ),
    _metric(
        *("llmspell.archive.lag", "gauge", "s"),
        *("How old the oldest commit is that is not in the archive.", _PLACE),
    ),
    _metric(
        *("llmspell.archive.pending", "gauge", "{commit}"),
        *("Commits that are not in the archive, at most 100 a shard counted.", _PLACE),
    ),
    _metric(
        *("llmspell.archive.gaps", "gauge", "{gap}"),
        *("Gaps in the timeline that goes on now.", _PLACE),
    ),
    _metric(
        *("llmspell.inspection.failures", "counter", "{inspection}"),
        "Looks at server and backups that failed; what they show is old.",
    ),
    # --- the HTTP sidecar
    _metric(
        "http.server.request.duration",
        *("histogram", "s"),
        "How long HTTP requests took.",
        (
            *("http.request.method", "url.scheme", "http.route", "http.response.status_code"),
            "error.type",
        ),
    ),
    _metric(
        *("http.server.active_requests", "updown", "{request}", "HTTP requests under way."),
        ("http.request.method", "url.scheme"),
    ),
    _metric("llmspell.http.streams", "gauge", "{stream}", "Streams that are open.", ()),
    _metric(
        *("llmspell.http.auth.failures", "counter", "{request}"),
        *("Requests refused for who asked.", ("llmspell.http.auth.reason",)),
    ),
    # --- the process
    _metric("process.uptime", "gauge", "s", "Since the process started.", ()),
    _metric("process.memory.usage", "updown", "By", "Resident memory of the process.", ()),
)

METRICS: Final[dict[str, Metric]] = {one.name: one for one in _ALL}
"""By name."""

SPANS: Final[dict[str, tuple[str, str]]] = {
    "<METHOD> <route>": ("server", "A request to the sidecar, goes on with its `traceparent`."),
    "state.<operation>": ("client", "An operation on shared state: `state.get`, `state.update`, …"),
    "state.transaction": ("client", "The commit at the end of a transaction."),
    "lease.acquire": ("client", "Taking a lease, the wait in line included."),
    "event.publish": ("producer", "Publishing an event, or several."),
    "event.process": ("consumer", "A handler's work on an event; child of who published it."),
    "hook.run": ("internal", "One run of a hook, inside what it stands before or behind."),
    "backup.<operation>": (
        "internal",
        "`create`, `restore`, `rollback`, `verify`, `drill`, `prune`; phases are span events.",
    ),
}
"""Names of spans: kind, and what they are."""

SPAN_ATTRIBUTES: Final[dict[str, str]] = {
    "db.system.name": "`redis` or `valkey`",
    "db.operation.name": "the method: `get`, `set_many`, `transaction`, …",
    "db.operation.batch.size": "keys in the call",
    "db.namespace": "the number of the database",
    "server.address": "host, or path of the unix socket",
    "server.port": "port",
    "error.type": "the error's stable code, such as `CONFLICT`; never its message",
    "http.request.method": "`GET`, `PUT`, …",
    "url.scheme": "`http` or `https`",
    "http.route": "the route as it is declared, never the path",
    "http.response.status_code": "status of the answer",
    "llmspell.namespace": "namespace of the client",
    "llmspell.scope.kind": "kind of the scope: `agent`, `session`, …",
    "llmspell.scope": "the scope; only with `record_scopes`",
    "llmspell.key": "the key; only with `record_scopes`",
    "llmspell.lease.name": "name of the lease",
    "llmspell.lease.mode": "`exclusive` or `shared`",
    "messaging.system": "`redis` or `valkey`",
    "messaging.operation.name": "`publish` or `process`",
    "messaging.operation.type": "`send` or `process`",
    "messaging.destination.name": "the event's type",
    "messaging.message.id": "the event's id",
    "messaging.batch.message_count": "events in the call",
    "messaging.consumer.group.name": "name of the durable subscription",
    "llmspell.backup.operation": "`create`, `restore`, …",
    "llmspell.hook.name": "name of the hook",
    "llmspell.hook.point": "where it stands",
}
"""What may stand in spans."""
