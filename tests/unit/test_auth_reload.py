"""An access file that changes while the sidecar runs."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fix_auth import NOW, claims, jwks, jwt_entry, public_jwk, signed, token_entry

from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.errors import AccessFileError, UnauthenticatedError
from llmspell_dist.sidecar.auth.files import FileWatch
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.auth.minting import new_token

if TYPE_CHECKING:
    from fix_auth import Issuer, ManualTime

pytestmark = [pytest.mark.unit, pytest.mark.security]

OLD, NEW = new_token(), new_token()
OLD_HEADER, NEW_HEADER = f"Bearer {OLD.secret}", f"Bearer {NEW.secret}"
ANONYMOUS = '[anonymous]\ngrants = [{scopes = ["*"], verbs = ["read"]}]\n'


class Running:
    """An access whose file a test changes."""

    def __init__(self, path: Path, time: ManualTime) -> None:
        self.path = path
        self.time = time
        path.write_text(token_entry(OLD.sha256))
        self.access = Access.load(path, clocks=time.clocks)

    async def changes_to(self, text: str | None) -> None:
        """Replace the file, as a careful editor does, and let a second pass."""
        self.path.unlink(missing_ok=True)
        if text is not None:
            self.path.write_text(text)
        await self.a_second_passes()

    async def a_second_passes(self) -> None:
        self.time.advance(1)
        await self.access.refresh()

    @property
    def who(self) -> tuple[bool, bool]:
        """Whether the old and the new token are known."""
        known = [self.access.cached(one) is not None for one in (OLD_HEADER, NEW_HEADER)]
        return known[0], known[1]


@pytest.fixture
def running(access_path: Path, manual_time: ManualTime) -> Running:
    """An access with the old token."""
    return Running(access_path, manual_time)


async def test_a_changed_file_is_in_force_within_a_second(running: Running) -> None:
    """New tokens are known, old ones are not; grants are those of now."""
    await running.changes_to(token_entry(NEW.sha256))
    assert running.who == (False, True)
    with pytest.raises(UnauthenticatedError):
        await running.access.authenticate(OLD_HEADER)
    grants = '[{scopes = ["global"], verbs = ["read"]}]'
    await running.changes_to(token_entry(NEW.sha256, grants=grants))
    principal = running.access.cached(NEW_HEADER)
    assert principal is not None
    assert principal.may(Verb.READ, "global")
    assert not principal.may(Verb.READ, "agent:a")


async def test_the_file_is_looked_at_once_a_second(running: Running) -> None:
    """However often somebody asks."""
    running.path.write_text(token_entry(NEW.sha256))
    await running.access.refresh()
    assert running.who == (True, False)
    await running.a_second_passes()
    assert running.who == (False, True)


async def test_an_unchanged_file_is_not_read_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at its size, time and inode is enough, and the answers that were kept stay."""
    await running.a_second_passes()
    rules = running.access._rules

    def refuse(_: FileWatch) -> bytes:
        raise AssertionError("it was read")

    monkeypatch.setattr(FileWatch, "read", refuse)
    for _ in range(3):
        await running.a_second_passes()
    assert running.access._rules is rules


async def test_the_swap_of_a_mounted_secret_is_noticed(
    tmp_path: Path, manual_time: ManualTime
) -> None:
    """As Kubernetes does it: from one moment to the next ..data leads to another folder."""
    for name, token in (("..1", OLD), ("..2", NEW)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "access.toml"
        file.write_text(token_entry(token.sha256))
        os.utime(file, (NOW - 500, NOW - 500))  # same size, same time: only the inode differs
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "access.toml").symlink_to("..data/access.toml")
    access = Access.load(tmp_path / "access.toml", clocks=manual_time.clocks)
    (tmp_path / "..next").symlink_to("..2")
    (tmp_path / "..next").rename(tmp_path / "..data")
    assert access.cached(OLD_HEADER) is not None
    manual_time.advance(1)
    await access.refresh()
    assert access.cached(OLD_HEADER) is None
    assert access.cached(NEW_HEADER) is not None


async def test_a_second_write_within_one_tick_is_noticed(
    access_path: Path, manual_time: ManualTime
) -> None:
    """Same inode, size and time: a file that was written just now is read again."""

    def write(token: str) -> None:
        with access_path.open("r+" if access_path.exists() else "x") as file:
            file.write(token_entry(token))
        os.utime(access_path, (NOW, NOW))

    write(OLD.sha256)
    access = Access.load(access_path, clocks=manual_time.clocks)
    write(NEW.sha256)
    manual_time.advance(1)
    await access.refresh()
    assert access.cached(NEW_HEADER) is not None


@pytest.mark.parametrize(
    "text",
    [None, "", "[[token]", "[[token]]\nname = 5", "\xff", token_entry("not a digest"), "x = 1"],
    ids=["gone", "empty", "half", "shape", "bytes", "digest", "unknown"],
)
async def test_a_broken_file_leaves_the_old_one_in_force(
    running: Running, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    """`problem` says what is wrong, the log once; a mended file is taken over."""
    with caplog.at_level(logging.ERROR, "llmspell_dist.sidecar.auth"):
        await running.changes_to(text)
        await running.a_second_passes()
        await running.a_second_passes()
    assert running.who == (True, False)
    assert running.access.problem is not None
    assert str(running.path) in running.access.problem
    (record,) = caplog.records
    assert "the old one stays" in record.message
    await running.changes_to(token_entry(NEW.sha256))
    assert running.who == (False, True)
    assert running.access.problem is None


async def test_a_file_that_comes_back_as_it_was_is_no_problem_any_more(running: Running) -> None:
    """Gone and back, or broken and mended."""
    for broken in (None, "["):
        await running.changes_to(broken)
        assert running.access.problem is not None
        await running.changes_to(token_entry(OLD.sha256))
        assert running.access.problem is None
        assert running.who == (True, False)


async def test_a_file_that_would_open_a_public_address_is_not_taken_over(
    running: Running,
) -> None:
    """What was promised when the address was bound holds as long as it is."""
    running.access.check_bind("0.0.0.0")  # noqa: S104
    await running.changes_to(token_entry(NEW.sha256) + ANONYMOUS)
    assert running.access.problem is not None
    assert "anonymous" in running.access.problem
    assert running.access.requires_credentials
    assert running.who == (True, False)


async def test_a_file_may_open_a_loopback_address(running: Running) -> None:
    """There it is a choice."""
    running.access.check_bind("127.0.0.1")
    await running.changes_to(token_entry(OLD.sha256) + ANONYMOUS)
    assert running.access.problem is None
    assert not running.access.requires_credentials


async def test_a_key_file_that_is_mended_completes_the_access_file(
    running: Running,
) -> None:
    """The access file itself does not change any more: what it names is looked at until right."""
    keys = running.path.with_name("keys.json")
    keys.write_text("{")
    await running.changes_to(token_entry(NEW.sha256) + jwt_entry("keys.json"))
    assert running.access.problem is not None
    assert "jwt[0] (cluster).jwks" in running.access.problem
    assert running.who == (True, False)
    keys.write_bytes(jwks(public_jwk("RSA", "rsa")))
    await running.a_second_passes()
    assert running.access.problem is None
    await running.access.authenticate(f"Bearer {signed(claims())}")


async def test_keys_that_were_fetched_outlive_a_reload_and_answers_do_not(
    running: Running, issuer: Issuer
) -> None:
    """The issuer is not asked again; a JWT is judged by the rules of now."""
    await running.changes_to(jwt_entry(issuer.url))
    token = f"Bearer {signed(claims())}"
    before = await running.access.authenticate(token)
    grants = '{claims = {sub = "*"}, grants = [{scopes = ["global"], verbs = ["read"]}]}'
    await running.changes_to(jwt_entry(issuer.url, rules=f"[{grants}]"))
    assert running.access.cached(token) is None
    after = await running.access.authenticate(token)
    assert (before.may(Verb.READ, "agent:a"), after.may(Verb.READ, "agent:a")) == (True, False)
    assert len(issuer.asked) == 1


async def test_a_token_that_is_judged_during_a_reload_is_judged_by_the_new_file(
    running: Running, issuer: Issuer
) -> None:
    """An issuer that was taken out meanwhile lets nobody in."""
    await running.changes_to(jwt_entry(issuer.url))
    issuer.gate.clear()
    waiting = asyncio.create_task(running.access.authenticate(f"Bearer {signed(claims())}"))
    await asyncio.sleep(0)
    await running.changes_to(token_entry(OLD.sha256))
    issuer.gate.set()
    with pytest.raises(UnauthenticatedError):
        await waiting


async def test_refreshing_goes_on_whatever_happens(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that nobody thought of is logged; the next second brings the next look."""
    seconds: list[float] = []
    real = Access.refresh

    async def fails_once(access: Access) -> None:
        if not seconds:
            raise OSError("disk on fire")
        await real(access)

    async def sleep(delay: float) -> None:
        seconds.append(delay)
        running.time.advance(delay)
        if len(seconds) == 3:
            raise asyncio.CancelledError
        running.path.write_text(token_entry(NEW.sha256))

    monkeypatch.setattr(Access, "refresh", fails_once)
    with pytest.raises(asyncio.CancelledError):
        await running.access.refresh_forever(sleep=sleep)
    assert seconds == [1.0, 1.0, 1.0]
    assert running.who == (False, True)
    assert "looking for a new access file failed" in caplog.text


@pytest.mark.parametrize("problem", ["folder", "writable", "large", "missing"])
def test_a_file_that_cannot_be_trusted_is_not_read(tmp_path: Path, problem: str) -> None:
    """A folder, a file that everybody may write, one that is too large, none at all."""
    path = tmp_path / "access.toml"
    if problem == "folder":
        path.mkdir()
    elif problem == "writable":
        path.write_text(token_entry(OLD.sha256))
        path.chmod(0o666)
    elif problem == "large":
        path.write_text("#" * 1_100_000)
    rule = {
        "folder": "Is a directory|must be a file",
        "writable": "writable by everybody",
        "large": "at most",
        "missing": "No such file",
    }[problem]
    with pytest.raises(AccessFileError, match=rule) as caught:
        Access.load(path)
    assert caught.value.path == str(path)
