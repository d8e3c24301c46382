"""``sidecar``: the HTTP sidecar; ``token``: a bearer token for its access file."""

from __future__ import annotations

import logging
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from llmspell_dist.cli import sidecar_options as options
from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.settings import Settings, command
from llmspell_dist.cli.wording import wrong
from llmspell_dist.errors import needs_package

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmspell_dist.sidecar.settings import TLS, Limits, Listen, SidecarSettings

__all__ = ["register"]

_LOG_FORMATS: Final = ("text", "json")
_PATIENCE_S: Final = 2.0
"""For how long a request waits for a server that is away; then it is a 503."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "sidecar")(sidecar)
    command(app, "token")(token)


def sidecar(
    settings: Settings,
    *,
    bind: options.Bind = "127.0.0.1:8750",
    unix: options.Unix = None,
    health: options.Health = None,
    access: options.Access = None,
    tls_cert: options.TLSCertificate = None,
    tls_key: options.TLSKey = None,
    tls_client_ca: options.TLSClientCA = None,
    drain: options.Drain = 20.0,
    keep_leases: options.KeepLeases = False,
    backups: options.Backups = None,
    backup_keys: options.BackupKeys = None,
    backup_older_keys: options.OlderKeys = None,
    archive: options.Archive = False,
    fleet: options.Fleet = False,
    webhook_hosts: options.WebhookHosts = None,
    limit: options.LimitValues = None,
    log_format: options.LogFormat = "text",
) -> Exit:
    """Serve the state over HTTP, beside an app of any language, until SIGTERM.

    Telemetry is what the standard OTEL_… variables say; /metrics is always there.
    """
    from llmspell_dist.sidecar.settings import SidecarSettings  # noqa: PLC0415

    if log_format not in _LOG_FORMATS:
        raise wrong("--log-format", f"must be one of {', '.join(_LOG_FORMATS)}")
    wanted = SidecarSettings(
        bind=None if bind == "none" else _listen(bind, "--bind"),
        unix=unix,
        health=None if health is None else _listen(health, "--health"),
        access=access,
        tls=_tls(tls_cert, tls_key, tls_client_ca),
        drain_s=drain,
        keep_leases=keep_leases,
        fleet=fleet,
        webhook_hosts=tuple(webhook_hosts or ()),
        backups=backups,
        backup_keys=backup_keys,
        backup_older_keys=tuple(backup_older_keys or ()),
        archive=archive,
        limits=_limits(limit or ()),
    )
    if wanted.bind is None and wanted.unix is None:
        raise wrong("--bind", "must not be none without --unix: nothing would be served")
    if archive and backups is None:
        raise wrong("--archive", "needs --backups: it ships to the same place")
    try:
        _serve(settings, wanted, log_format)
    except ModuleNotFoundError as missing:
        raise wrong("sidecar", needs_package(missing.name or "", "sidecar")) from None
    except OSError as error:
        raise wrong("--bind", f"cannot be served: {error}") from None
    return Exit.OK


def _serve(settings: Settings, wanted: SidecarSettings, log_format: str) -> None:
    """Load what serves, which no other command needs, and serve."""
    import uvloop  # noqa: PLC0415

    from llmspell_dist.sidecar.running import run, until_signalled  # noqa: PLC0415
    from llmspell_dist.telemetry import TelemetrySettings, start_telemetry  # noqa: PLC0415

    _log_to_stderr(log_format)
    telemetry = start_telemetry(TelemetrySettings.from_environment(service_name="llmspell-sidecar"))
    client = replace(settings.options, housekeeping=True, retry_budget=_PATIENCE_S)

    async def main() -> None:
        async with until_signalled() as stop:
            await run(wanted, settings.url, client, stop=stop, telemetry=telemetry)

    try:
        uvloop.run(main())
    finally:
        telemetry.shutdown()


def _listen(text: str, option: str) -> Listen:
    from llmspell_dist.sidecar.settings import Listen  # noqa: PLC0415

    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise wrong(option, "must be HOST:PORT, such as 127.0.0.1:8750")
    return Listen(host, int(port))


def _limits(given: Iterable[str]) -> Limits:
    """Return the limits, some of them as ``NAME=NUMBER`` says; the last one of a name holds."""
    from llmspell_dist.sidecar.settings import Limits  # noqa: PLC0415

    kinds = {one.name: float if one.name.endswith("_s") else int for one in fields(Limits)}
    found: dict[str, Any] = {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in kinds:
            raise wrong("--limit", f"must be NAME=NUMBER, NAME one of {', '.join(kinds)}")
        try:
            value = kinds[name](number)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            what = "a whole number" if kinds[name] is int else "a number of seconds"
            raise wrong("--limit", f"must give {name} {what} above 0")
        found[name] = value
    return Limits(**found)


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TLS | None:
    from llmspell_dist.sidecar.settings import TLS  # noqa: PLC0415

    if certificate is None and key is None:
        if client_ca is not None:
            raise wrong("--tls-client-ca", "needs --tls-cert and --tls-key")
        return None
    if certificate is None or key is None:
        raise wrong("--tls-cert", "and --tls-key belong together")
    return TLS(certificate, key, client_ca)


def _log_to_stderr(log_format: str) -> None:
    """Let the library's log be seen; values are never in it."""
    from llmspell_dist.telemetry import JSONFormatter  # noqa: PLC0415 - only who serves needs it

    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JSONFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log = logging.getLogger("llmspell_dist")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def token(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is.")],
) -> Exit:
    """Make a bearer token, and the entry of the access file that knows only its hash."""
    from llmspell_dist.sidecar.auth.entries import NAME, NAME_RULE  # noqa: PLC0415
    from llmspell_dist.sidecar.auth.minting import new_token  # noqa: PLC0415

    if NAME.fullmatch(name) is None:
        raise wrong("NAME", NAME_RULE)
    secret, digest = new_token()
    if settings.as_json:
        settings.output.document({"name": name, "token": secret, "sha256": digest})
        return Exit.OK
    settings.output.say(secret)
    entry = f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\n'
    grants = 'grants = [{ scopes = ["agent:*"], verbs = ["read", "write", "delete", "list"] }]'
    print(f"\n{entry}{grants}", file=sys.stderr)
    return Exit.OK
