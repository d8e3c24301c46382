"""URLs of targets mean what they say, or are refused before anything happens."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from llmspell_dist.backup.targets import open_target
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.backup.targets.s3 import S3Target
from llmspell_dist.errors import InvalidArgumentError, InvalidURLError

pytestmark = [pytest.mark.unit, pytest.mark.backup]


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///var/backups", "/var/backups"),
        ("file://localhost/var/backups", "/var/backups"),
        ("file:///with%20space", "/with space"),
        ("/var/backups/", "/var/backups"),
        (Path("/var/backups"), "/var/backups"),
    ],
)
def test_folders(url, folder):
    """A file URL and a path are a folder; nothing is made of it yet."""
    target = open_target(url)
    assert isinstance(target, FolderTarget)
    assert target.folder == Path(folder)
    assert target.label == f"file://{folder}"


def test_relative_paths_are_of_the_working_folder(tmp_path, monkeypatch):
    """A path without a slash before it is one below the working folder of the moment."""
    monkeypatch.chdir(tmp_path)
    target = open_target("some/folder", stale_after=timedelta(minutes=1))
    assert isinstance(target, FolderTarget)
    assert target.folder == tmp_path / "some" / "folder"
    assert not target.folder.exists()


def test_s3_options_stand_in_the_url():
    """Everything about a bucket but credentials can stand in its URL."""
    url = (
        "s3://my-bucket/a/b/?endpoint=https://s3.example:9000&region=eu-1&path_style=false"
        "&storage_class=STANDARD_IA&sse=aws:kms&sse_key_id=key&lock_mode=GOVERNANCE&lock_days=30"
        "&connections=3&tries=2&patience_s=1.5"
    )
    target = open_target(url, access_key="AK", secret_key="hush")
    assert isinstance(target, S3Target)
    options = target.options
    assert (target.bucket, target.prefix) == ("my-bucket", "a/b/")
    assert target.label == "s3://my-bucket/a/b"
    assert (options.endpoint, options.region) == ("https://s3.example:9000", "eu-1")
    assert options.path_style is False
    assert (options.storage_class, options.sse, options.sse_key_id) == (
        "STANDARD_IA",
        "aws:kms",
        "key",
    )
    assert (options.lock_mode, options.lock_days) == ("GOVERNANCE", 30)
    assert (options.connections, options.tries, options.patience_s) == (3, 2, 1.5)
    assert "hush" not in repr(target)
    target.close()


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("endpoint=https://s3.example.org:9000", "https://s3.example.org:9000/team/b/x"),
        (
            "endpoint=https://s3.example.org&path_style=true",
            "https://s3.example.org/team/b/x",
        ),
        (
            "endpoint=https://s3.example.org&path_style=false",
            "https://team.s3.example.org/b/x",
        ),
        ("region=eu-west-1&path_style=true", "https://s3.eu-west-1.amazonaws.com/team/b/x"),
        ("region=us-east-1", "https://team.s3.amazonaws.com/b/x"),
    ],
)
def test_the_bucket_stands_where_the_server_wants_it(query, asked):
    """In the path, or in the name of the host: what is really asked for."""
    target = open_target(f"s3://team/b?{query}", access_key="A", secret_key="S")
    assert isinstance(target, S3Target)
    place = target._place("x")
    url = target._client.generate_presigned_url("get_object", Params=place)
    assert url.partition("?")[0] == asked
    target.close()


def test_a_bucket_alone_has_no_prefix():
    """Without a prefix objects lie at the top of the bucket."""
    for url in ("s3://bucket/", "s3://bucket"):
        target = open_target(url)
        assert isinstance(target, S3Target)
        assert not target.prefix
        assert target.label == "s3://bucket"
        target.close()


def test_a_target_is_returned_as_it_is(tmp_path):
    """What is a target already is taken as it is, and takes no options."""
    target = FolderTarget(tmp_path)
    assert open_target(target) is target
    with pytest.raises(InvalidURLError):
        open_target(target, tries=3)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3:bucket",
        "s3://",
        "s3://b",
        "s3:///bucket",
        "s3://bucket/../up",
        "s3://bucket/a//b",
        "s3://bucket/ü",
        "s3://bucket/a?nonsense=1",
        "s3://bucket/a?region=x&region=y",
        "s3://bucket/a?path_style=yes",
        "s3://bucket/a?lock_days=soon",
        "s3://bucket/a?region=",
        "s3://bucket/a#part",
        "s3://[bad/a",
        "file://host/folder",
        "file:///",
        "file:///folder?x=1",
        "http://bucket/a",
        "ftp://folder",
        "with\0zero",
        7,
        None,
        b"/folder",
    ],
)
def test_nonsense_is_refused(url):
    """A URL that means no target is refused, with the rule."""
    with pytest.raises(InvalidURLError) as caught:
        open_target(url)
    assert "must" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKID:hush@bucket/a",
        "s3://bucket/a?secret_key=hush",
        "s3://bucket/a?access_key=hush",
        "s3://bucket/a?AWS_SESSION_TOKEN=hush",
        "s3://bucket/a?password=hush",
        "s3://bucket/a?endpoint=http://user:hush@host",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_shown(url):
    """A URL ends up in logs and process lists: it may hold no credentials."""
    with pytest.raises(InvalidArgumentError) as caught:
        open_target(url)
    assert "credentials" in str(caught.value)
    assert "hush" not in f"{caught.value!r} {caught.value}"


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("endpoint", {"endpoint": "s3.example"}),
        ("endpoint", {"endpoint": "http://host/path"}),
        ("endpoint", {"endpoint": "http://host:99999"}),
        ("storage_class", {"storage_class": "cold please"}),
        ("sse", {"sse": "rot13"}),
        ("sse_key_id", {"sse": "AES256", "sse_key_id": "key"}),
        ("lock_mode", {"lock_mode": "SOFT", "lock_days": 1}),
        ("lock_days", {"lock_mode": "GOVERNANCE"}),
        ("lock_days", {"lock_mode": "GOVERNANCE", "lock_days": 0}),
        ("lock_days", {"lock_days": 3}),
        ("secret_key", {"access_key": "AK"}),
        ("session_token", {"session_token": "token"}),
        ("profile", {"profile": "p", "access_key": "AK", "secret_key": "SK"}),
        ("tries", {"tries": 0}),
        ("patience_s", {"patience_s": -1}),
        ("connections", {"connections": True}),
        ("part_size", {"part_size": 1000}),
        ("colour", {"colour": "blue"}),
    ],
)
def test_wrong_options_are_named(argument, options):
    """An option that cannot be is refused when the target is opened, by its name."""
    with pytest.raises(InvalidArgumentError) as caught:
        open_target("s3://bucket/a", **options)
    assert caught.value.argument == argument


def test_a_folder_knows_no_options_of_s3():
    """Options of another kind of target are an error, not ignored."""
    with pytest.raises(InvalidArgumentError, match="region"):
        open_target("/folder", region="eu-1")


def test_a_missing_profile_is_said(monkeypatch, tmp_path):
    """A profile that the configuration lacks is an error that names it."""
    from llmspell_dist.backup.errors import TargetError

    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(TargetError, match=r"no credentials.*nobody"):
        open_target("s3://bucket/a?profile=nobody")


def test_boto3_is_loaded_when_it_is_needed():
    """Neither the library nor a folder loads boto3; a bucket does."""
    program = (
        "import sys, llmspell_dist\n"
        "from llmspell_dist.backup.targets import open_target\n"
        "open_target('/folder')\n"
        "assert not {'boto3', 'botocore'} & sys.modules.keys()\n"
        "open_target('s3://bucket/a')\n"
        "assert 'boto3' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_boto3_a_bucket_says_what_to_install():
    """A missing boto3 is an error that names the extra, for buckets alone."""
    program = (
        "import sys\n"
        "sys.modules['boto3'] = None\n"
        "from llmspell_dist.backup.targets import open_target\n"
        "open_target('/folder')\n"
        "open_target('s3://bucket/a')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "InvalidURLError" in run.stderr
    assert "llmspell-dist[backup]" in run.stderr
