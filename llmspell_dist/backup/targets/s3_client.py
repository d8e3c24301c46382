"""The client of boto3 that a target speaks through."""

from __future__ import annotations

from typing import Any, Final

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.loaders import create_loader

from llmspell_dist.backup.targets.s3_calls import Calls, Fault, FaultKind, read_fault
from llmspell_dist.backup.targets.s3_options import S3Options
from llmspell_dist.backup.targets.s3_upload import content_md5

__all__ = ["s3_client"]

_LOADER: Final = create_loader()
"""Has the description of S3 once, whose reading is most of what opening a target takes."""


def s3_client(options: S3Options, calls: Calls) -> Any:
    """Return a client; nothing is connected to yet. `TargetError` if it cannot be made."""
    config = Config(
        connect_timeout=options.connect_timeout_s,
        read_timeout=options.read_timeout_s,
        max_pool_connections=options.connections,
        proxies=dict(options.proxies) if options.proxies else None,
        retries={"total_max_attempts": 1, "mode": "standard"},  # `Calls` tries again
        s3={"addressing_style": _addressing(options)},
        # Content-MD5 goes with every upload; the newer checksums many servers do not know.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent_extra="llmspell-dist",
    )
    try:
        core = botocore.session.Session(profile=options.profile)
        core.register_component("data_loader", _LOADER)
        session = boto3.session.Session(
            botocore_session=core,
            aws_access_key_id=options.access_key,
            aws_secret_access_key=options.secret_key,
            aws_session_token=options.session_token,
        )
        client = session.client(
            "s3",
            endpoint_url=options.endpoint,
            region_name=options.region or session.region_name or "us-east-1",
            verify=options.ca_bundle,
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        fault = read_fault(error) or Fault(FaultKind.FINAL, f"{type(error).__name__}: {error}")
        raise calls.error(fault, "open", "") from None
    client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
    return client


def _addressing(options: S3Options) -> str:
    if options.path_style is None:
        return "auto" if options.endpoint is None else "path"
    return "path" if options.path_style else "virtual"


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    body = params["body"]
    data = body if isinstance(body, bytes) else str(body).encode()
    params["headers"]["Content-MD5"] = content_md5(data)
