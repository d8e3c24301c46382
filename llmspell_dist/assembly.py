"""From a URL and options to the parts of a client, for the async and the blocking surface alike."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llmspell_dist.ack import LOCAL_FSYNC, MEMORY, REPLICATED_ALL, Ack
from llmspell_dist.clock import ServerClock
from llmspell_dist.config import Options, default_namespace, default_url, parse_url
from llmspell_dist.errors import (
    InvalidArgumentError,
    NamespaceMismatchError,
    StorePermissionError,
    StoreReadOnlyError,
)
from llmspell_dist.keys import KeySpace
from llmspell_dist.records import FORMAT
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.locate import locate
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import Script, load_script
from llmspell_dist.state.core import Core
from llmspell_dist.state.values import Values

if TYPE_CHECKING:
    from llmspell_dist.config import Endpoint
    from llmspell_dist.observation import TelemetrySource
    from llmspell_dist.redis.connection import EndpointResolver, ServerInfo
    from llmspell_dist.redis.metering import Meter
    from llmspell_dist.state.steps import Steps

__all__ = ["Assembly", "assemble", "complete_options"]

C = TypeVar("C", bound=type)

_HOT_SCRIPTS: Final = (
    "commit",
    "read",
    "lease_acquire",
    "lease_release",
    "lease_renew",
    "event_publish",
    "event_fetch",
    "event_ack",
    "correlation_add",
)


@dataclass(slots=True)
class Assembly:
    """The parts of a client, before anything is connected."""

    options: Options
    resolver: EndpointResolver
    lane_options: LaneOptions
    core: Core
    facts: dict[str, Any] = field(default_factory=dict)
    """What telemetry says about the server."""
    meter: Meter | None = None
    """Counts on the connections; None: nothing does."""
    _release: Callable[[], None] | None = None

    @property
    def scripts(self) -> tuple[Script, ...]:
        """The scripts that every connection loads when it is made."""
        return tuple(load_script(name) for name in _HOT_SCRIPTS)

    @property
    def telemetry(self) -> TelemetrySource | None:
        """Who is told of what the client does; None: nobody."""
        said = self.options.telemetry
        return None if isinstance(said, bool) else said

    def state_class(self, kind: C) -> C:
        """Return the class of state managers to use for this one."""
        if self.telemetry is None:
            return kind
        return self.telemetry.state_class(kind, self.core.observer)

    def begin_telemetry(
        self, client: object, info: ServerInfo | None, listening: Callable[[], list[Any]]
    ) -> None:
        """Read a client's counts from now on, since it is connected."""
        if self.telemetry is not None:
            self.facts["db.system.name"] = "redis" if info is None else info.flavour
            self.telemetry.attach(client, self.meter, self.facts, listening)

    def end_telemetry(self, client: object) -> None:
        """Read a client's counts a last time; more than once is allowed."""
        if self.telemetry is not None:
            self.telemetry.detach(client)

    def release(self) -> None:
        """Give back a server inside this process; more than once is allowed."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def register(self, info: ServerInfo | None) -> Steps[None]:
        """Enter format and shard count for a new namespace; check those of an existing one."""
        core, namespace = self.core, self.core.keyspace.namespace
        core.server = self.resolver.label
        ctl = core.keyspace.ctl("0")
        ask = Command(pack(b"HMGET", ctl, b"format", b"shards", b"retention"), "HMGET")
        found = yield ask
        retention = self.options.retention
        keep = None if retention is None else retention.stored
        reads_only = info is not None and info.role == "slave"
        if (None in found[:2] or keep not in (None, found[2])) and not reads_only:
            enter = [
                pack(b"HSETNX", ctl, b"format", FORMAT),
                pack(b"HSETNX", ctl, b"shards", core.keyspace.shards),
            ]
            if keep is not None:
                enter.append(pack(b"HSET", ctl, b"retention", keep))
            try:
                for request in enter:
                    yield Command(request, "HSET")
            except (StoreReadOnlyError, StorePermissionError):
                reads_only = True
            else:
                found = yield ask
        if reads_only and None in found[:2]:
            return  # the first writer enters the namespace
        stored_format, stored_shards = int(found[0]), int(found[1])
        if stored_format != FORMAT:
            raise NamespaceMismatchError(namespace, "format", FORMAT, stored_format)
        if stored_shards != core.keyspace.shards:
            if self.options.shards is not None:
                raise NamespaceMismatchError(
                    namespace, "shards", self.options.shards, stored_shards
                )
            core.use_shards(stored_shards)
        most = self.options.max_correlations
        if most is not None and not reads_only:
            yield Command(pack(b"HSET", ctl, b"correlations", most), "HSET")
        core.durable_ack = yield from self._strongest_ack(info)
        if not reads_only:
            yield from self._check_rights()

    def _check_rights(self) -> Steps[None]:
        """Refuse a user who could begin a commit and not end it; who may only read is welcome."""
        core = self.core
        ctl = core.keyspace.ctl("0")
        keys = (ctl, core.keyspace.ring("0", "none"))
        denied = yield ScriptCall(load_script("rights"), keys, (b"%d" % FORMAT,))
        names = [name.decode() for name in denied]
        if names and "XADD" not in names:
            said = f"the user may not run {', '.join(names)}, which a commit needs"
            raise StorePermissionError(core.server, said)

    def _strongest_ack(self, info: ServerInfo | None) -> Steps[Ack]:
        """Return what the class Critical waits for: replicas if there are any, else the disk."""
        if info is not None and info.replicas:
            return REPLICATED_ALL
        reply = yield Command(pack("INFO", "persistence"), "INFO")
        if reply is not None and b"aof_enabled:1" in reply and _has_waitaof(info):
            return LOCAL_FSYNC
        return MEMORY


def _has_waitaof(info: ServerInfo | None) -> bool:
    if info is None:
        return False
    try:
        major, minor = (int(part) for part in info.version.split(".")[:2])
    except ValueError:
        return False
    return info.flavour == "valkey" or (major, minor) >= (7, 2)


def complete_options(
    namespace: str | None, client_name: str | None, options: Options | None
) -> Options:
    """Return the options of a client: what is given by name goes before what the options say."""
    if options is not None and not isinstance(options, Options):
        raise InvalidArgumentError("options", options, "must be an Options or None")
    if options is None:
        options = Options()
    if namespace is None:
        namespace = options.namespace
    options = replace(options, namespace=default_namespace() if namespace is None else namespace)
    name = options.client_name if client_name is None else client_name
    if name is None:
        host = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname())
        name = f"{host[:64]}:{os.getpid()}"
    return replace(options, client_name=name)


def assemble(url: str | None, options: Options) -> Assembly:
    """Put a client's parts together; starts or finds the server of ``embedded://``."""
    target = parse_url(default_url() if url is None else url)
    resolved = locate(target, client_name=options.client_name, protocol=options.protocol)
    codec = options.make_codec()
    clock = ServerClock()
    core = Core(
        KeySpace(options.namespace or default_namespace(), options.shards or 1),
        Values(codec, options.cipher),
        options.classes.resolver(),
        clock,
        actor=options.client_name,
        server=resolved.resolver.label,
    )
    lane_options = LaneOptions(
        call_timeout=target.call_timeout or options.call_timeout,
        connect_timeout=target.connect_timeout or options.connect_timeout,
        retry_budget=options.retry_budget,
        # 0 says never.
        health_check_interval=target.health_check_interval
        or options.health_check_interval
        or float("inf"),
        max_in_flight=options.max_in_flight,
    )
    assembly = Assembly(
        options,
        resolved.resolver,
        lane_options,
        core,
        _release=resolved.release,
    )
    if options.telemetry:
        _observe(assembly, target)
    return assembly


def _observe(assembly: Assembly, target: Endpoint) -> None:
    """Choose, once, who is told of what the client does."""
    telemetry = assembly.options.telemetry
    if telemetry is True:
        from llmspell_dist.telemetry import Telemetry  # noqa: PLC0415 - it loads OpenTelemetry

        telemetry = Telemetry()
        assembly.options = replace(assembly.options, telemetry=telemetry)
    assert telemetry  # noqa: S101 - asked before
    core, facts = assembly.core, assembly.facts
    facts.update(
        {
            "db.system.name": "redis",
            "db.namespace": str(target.db),
            "llmspell.namespace": core.keyspace.namespace,
            "server.address": target.host or target.path,
        }
    )
    if target.host:
        facts["server.port"] = target.port
    core.observer = telemetry.observer(facts)
    assembly.meter = telemetry.meter()
