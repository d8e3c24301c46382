"""The table of targets for backups, and the fixtures that hand them out.

======== ==========================================================================================
folder   a folder
moto     moto's S3 in a process of its own, one per worker; it checks no signatures
radosgw  Ceph's S3 from Debian (`fix_radosgw`), one for all workers, about 20 s to start
======== ==========================================================================================

`place` runs over the quick ones, `every_place` over all; `s3_place` is moto, `every_s3_place`
moto and radosgw. Each hands out a `Place`: an empty folder or a bucket of the test's own.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import fix_radosgw
import pytest

CAPABILITIES = {
    "s3": "speaks S3: a URL with an endpoint, requests that a proxy can disturb",
    "upload-times": "tells when an upload began",
    "signatures": "refuses wrong credentials and what does not match its Content-MD5",
}

_QUICK = {"first_wait_s": 0.01, "patience_s": 30.0}
"""Tests wait for no longer pauses than they must."""

_MOTO = Path(__file__).with_name("fix_moto.py")


@dataclass(frozen=True)
class Service:
    """A running S3 server."""

    id: str
    endpoint: str
    access_key: str
    secret_key: str
    capabilities: frozenset[str]
    admin: Any = field(default=None, repr=False, compare=False)
    """A client of boto3 with all rights; see `Service.running`."""

    @classmethod
    @contextmanager
    def running(cls, name: str, **facts: Any) -> Iterator[Service]:
        """Give the service with a client, for as long as it runs."""
        service = cls(name, **facts)
        client = service.client()
        yield replace(service, admin=client)
        client.close()

    @property
    def options(self) -> dict[str, Any]:
        """The options of `open_target` that do not stand in the URL."""
        return {"access_key": self.access_key, "secret_key": self.secret_key, **_QUICK}

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to open the URL."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def client(self) -> Any:
        """Return a new client of boto3."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )

    def place(self, **bucket: Any) -> Place:
        """Make a bucket, and return the place in it."""
        name = f"t-{secrets.token_hex(8)}"
        self.admin.create_bucket(Bucket=name, **bucket)
        return Place(self.id, f"s3://{name}/some/prefix", self.capabilities, self)


@dataclass(frozen=True)
class Place:
    """Where a test may keep backups; empty, and its own."""

    id: str
    base: str
    capabilities: frozenset[str]
    service: Service | None = None
    query: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """What `open_target` takes; credentials are `options`, or `environment` for a process."""
        if self.service is None:
            return self.base
        query = {"endpoint": self.service.endpoint, "region": "us-east-1", **self.query}
        return f"{self.base}?{urlencode(query)}"

    @property
    def options(self) -> dict[str, Any]:
        """What `open_target` takes besides the URL."""
        return {} if self.service is None else self.service.options

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to open the URL."""
        return {} if self.service is None else self.service.environment

    @property
    def bucket(self) -> str:
        """The bucket of an S3 place."""
        return self.base.removeprefix("s3://").partition("/")[0]

    @property
    def folder(self) -> Path:
        """The folder of a folder."""
        return Path(self.base.removeprefix("file://"))

    def open(self, **more: Any) -> Any:
        """Return the target; `more` are options that go before the usual ones."""
        from llmspell_dist.backup.targets import open_target

        return open_target(self.url, **{**self.options, **more})

    def through(self, endpoint: str) -> Place:
        """Return the same place, reached by another endpoint (a proxy's)."""
        assert self.service is not None
        return replace(self, service=replace(self.service, endpoint=endpoint))


def folder_place(folder: Path) -> Place:
    """Return a place that is a folder."""
    return Place("folder", f"file://{folder}", frozenset())


@pytest.fixture(scope="session")
def moto() -> Iterator[Service]:
    """Moto's server, which ends with the session, or with us: it reads from a pipe of ours."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(_MOTO)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        port = process.stdout.readline().strip()
        assert port, "moto's server did not start"
        keys = {"access_key": "AKMOTO", "secret_key": "SKMOTO-not-shown"}
        facts = {"endpoint": f"http://127.0.0.1:{port}", "capabilities": frozenset({"s3"}), **keys}
        with Service.running("moto", **facts) as service:
            yield service
        process.stdin.close()
        process.wait(10)


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Ceph's gateway, which all workers share; skipped where it is not installed, but not in CI."""
    lacking = fix_radosgw.missing()
    if lacking:
        what = f"no {', '.join(lacking)} on PATH; apt-get install {fix_radosgw.PACKAGES}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must cover radosgw: {what}")
        pytest.skip(what)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with fix_radosgw.gateway(shared) as told:
        facts = {**told, "capabilities": frozenset(CAPABILITIES)}
        with Service.running("radosgw", **facts) as service:
            yield service


@pytest.fixture
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Place]:
    """A function that returns an empty place on the row of that name."""

    def get(row: str) -> Place:
        if row == "folder":
            return folder_place(tmp_path / "backups")
        service: Service = request.getfixturevalue(row)
        return service.place()

    return get


@pytest.fixture(params=["folder", "moto"])
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    """An empty place on each of the quick rows."""
    return places(request.param)


@pytest.fixture(params=["folder", "moto", "radosgw"])
def every_place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    """An empty place on each row."""
    return places(request.param)


@pytest.fixture
def s3_place(moto: Service) -> Place:
    """An empty bucket of moto's."""
    return moto.place()


@pytest.fixture(params=["moto", "radosgw"])
def every_s3_place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    """An empty bucket on each row that speaks S3."""
    return places(request.param)
