"""S3 on loopback for the rows of backups: Ceph's gateway where it is installed, else moto's server.

The gateway is started by the program that the tests use for it, and ends when we are gone.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

__all__ = ["S3", "running_s3"]

_GATEWAY = Path(__file__).resolve().parents[1] / "tests" / "fix_radosgw.py"
_START_SECONDS = 110
_MOTO = _GATEWAY.with_name("fix_moto.py")


@dataclass(frozen=True, slots=True)
class S3:
    """A running S3 server."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs in its environment to use the URL of a bucket."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def new_bucket(self) -> str:
        """Make a bucket and return its URL, as `Backups.to` takes it."""
        import boto3  # noqa: PLC0415 - only for these rows
        from botocore.config import Config  # noqa: PLC0415

        name = f"bench-{secrets.token_hex(6)}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}?{urlencode({'endpoint': self.endpoint, 'region': 'us-east-1'})}"


@contextmanager
def running_s3(*, quick: bool = False) -> Iterator[S3]:
    """Start a server and stop it at the end; a smoke run does not wait for the gateway."""
    if not quick and shutil.which("radosgw") and shutil.which("ceph-osd") and _GATEWAY.is_file():
        with _gateway() as server:
            yield server
    else:
        with _moto() as server:
            yield server


@contextmanager
def _gateway() -> Iterator[S3]:
    folder = tempfile.mkdtemp(prefix="llmspell-rgw-", dir="/tmp")  # sockets need short paths
    command = [sys.executable, str(_GATEWAY), folder]
    # Not captured: what it starts would hold the pipe open.
    subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=sys.stderr, timeout=_START_SECONDS, check=True
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{folder}/control")
        told = json.loads(connection.makefile("rb").readline())
        try:
            yield S3("radosgw", told["endpoint"], told["access_key"], told["secret_key"])
        finally:
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(30)
            with suppress(OSError):
                connection.recv(1)


@contextmanager
def _moto() -> Iterator[S3]:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(_MOTO)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise SystemExit("moto's server did not start")
        try:
            yield S3("moto", f"http://127.0.0.1:{port}", "AKMOTO", "SKMOTO")
        finally:
            process.stdin.close()
            process.wait(10)
