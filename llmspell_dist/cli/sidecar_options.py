"""The options of ``sidecar``; each can be given by a variable as well, as containers do it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from llmspell_dist.cli.backup_options import KEYS_VARIABLE, OLDER_VARIABLE, URL_VARIABLE

__all__ = [
    "Access",
    "Archive",
    "BackupKeys",
    "Backups",
    "Bind",
    "Drain",
    "Fleet",
    "Health",
    "KeepLeases",
    "LimitValues",
    "LogFormat",
    "OlderKeys",
    "TLSCertificate",
    "TLSClientCA",
    "TLSKey",
    "Unix",
    "WebhookHosts",
]

_PREFIX: Final = "LLMSPELL_SIDECAR_"

Bind = Annotated[
    str,
    typer.Option(
        "--bind",
        metavar="HOST:PORT",
        envvar=f"{_PREFIX}BIND",
        help="Where the API is served; none: nowhere.",
    ),
]
Unix = Annotated[
    Path | None,
    typer.Option(
        "--unix",
        metavar="PATH",
        envvar=f"{_PREFIX}UNIX",
        help="A socket on which it is served too.",
    ),
]
Health = Annotated[
    str | None,
    typer.Option(
        "--health",
        metavar="HOST:PORT",
        envvar=f"{_PREFIX}HEALTH",
        help="Where only /livez, /readyz and /metrics are served: for probes.",
    ),
]
Access = Annotated[
    Path | None,
    typer.Option(
        "--access",
        metavar="FILE",
        envvar=f"{_PREFIX}ACCESS",
        help="Who may what (default: everybody everything, on loopback only).",
    ),
]
TLSCertificate = Annotated[
    Path | None,
    typer.Option("--tls-cert", metavar="FILE", envvar=f"{_PREFIX}TLS_CERT", help="PEM, its chain."),
]
TLSKey = Annotated[
    Path | None,
    typer.Option("--tls-key", metavar="FILE", envvar=f"{_PREFIX}TLS_KEY", help="PEM, of that."),
]
TLSClientCA = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca",
        metavar="FILE",
        envvar=f"{_PREFIX}TLS_CLIENT_CA",
        help="Only clients with a certificate that it signed.",
    ),
]
Drain = Annotated[
    float,
    typer.Option(
        "--drain",
        metavar="SECONDS",
        envvar=f"{_PREFIX}DRAIN",
        min=0.0,
        max=3600.0,
        help="How long a stop waits for what was accepted.",
    ),
]
KeepLeases = Annotated[
    bool,
    typer.Option(
        "--keep-leases",
        envvar=f"{_PREFIX}KEEP_LEASES",
        help="Leases of clients outlive its stop: for gateways with several replicas.",
    ),
]
Backups = Annotated[
    str | None,
    typer.Option(
        "--backups",
        metavar="URL",
        envvar=URL_VARIABLE,
        help="Where backups are kept: s3://bucket/prefix, file:///folder.",
    ),
]
BackupKeys = Annotated[
    str | None,
    typer.Option(
        "--backup-keys",
        metavar="URL",
        envvar=KEYS_VARIABLE,
        help="What encrypts them: file:///folder, env:VARIABLE, aws-kms:KEY.",
    ),
]
OlderKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--backup-older-keys",
        metavar="URL",
        envvar=OLDER_VARIABLE,
        help="What encrypted older ones; can be repeated.",
    ),
]
Archive = Annotated[
    bool,
    typer.Option(
        "--archive",
        envvar=f"{_PREFIX}ARCHIVE",
        help="Ship the change log to the archive beside the backups.",
    ),
]
Fleet = Annotated[
    bool,
    typer.Option(
        "--fleet",
        envvar=f"{_PREFIX}FLEET",
        help="Take part in the fleet's hooks: its guards are asked about what is written here.",
    ),
]
WebhookHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--webhook-host",
        metavar="HOST",
        envvar=f"{_PREFIX}WEBHOOK_HOSTS",
        help="May be sent webhooks without TLS, beside this machine; can be repeated.",
    ),
]
LimitValues = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=NUMBER",
        envvar=f"{_PREFIX}LIMITS",
        help="One of its limits, such as body_bytes=1048576; can be repeated.",
    ),
]
LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format",
        metavar="text|json",
        envvar=f"{_PREFIX}LOG_FORMAT",
        help="How it logs, to standard error.",
    ),
]
