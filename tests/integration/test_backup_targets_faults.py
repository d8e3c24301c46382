"""S3 that fails, denies, cuts, is slow or full: tried again with bounds, or a clear failure."""

from __future__ import annotations

import io
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from llmspell_dist.backup.errors import (
    ObjectMissingError,
    TargetError,
    TargetPermissionError,
)

pytestmark = [pytest.mark.integration, pytest.mark.backup]

MB = 1 << 20
PART = 5 * MB


@pytest.fixture
def target(s3_faults):
    """A target behind the fault proxy."""
    target = s3_faults.place.open(part_size=PART, tries=4)
    yield target
    target.close()


@pytest.fixture
def direct(s3_place):
    """The same place without the proxy."""
    target = s3_place.open()
    yield target
    target.close()


CALLS = {
    "put": lambda target: target.put("a", b"new"),
    "get": lambda target: target.get("there"),
    "head": lambda target: target.head("there"),
    "list": lambda target: list(target.list("")),
    "delete": lambda target: target.delete(["there", "b"]),
}


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_what_passes_is_tried_again(target, s3_faults, direct, kind, status):
    """Errors of the server that pass are not seen by the caller."""
    direct.put("there", b"x")
    s3_faults.fail(kind, status=status, times=3)
    CALLS[kind](target)
    assert s3_faults.count(kind) == 4


@pytest.mark.parametrize("kind", CALLS)
def test_what_does_not_pass_is_an_error_with_its_tries(target, s3_faults, direct, kind):
    """After so many tries the error says what was done, to what, how often, and the answer."""
    direct.put("there", b"x")
    s3_faults.fail(kind, status=503, times=None)
    with pytest.raises(TargetError) as caught:
        CALLS[kind](target)
    error = caught.value
    assert type(error) is TargetError
    assert (error.doing, error.tries) == (kind, 4)
    assert s3_faults.count(kind) == 4
    assert "503" in str(error)
    assert "4 tries" in str(error)
    assert pickle.loads(pickle.dumps(error)).tries == 4  # noqa: S301


@pytest.mark.parametrize("kind", CALLS)
def test_denied_calls_are_final_and_named(target, s3_faults, direct, kind):
    """A right that is lacking is said at once, with the call that lacks it."""
    direct.put("there", b"x")
    s3_faults.deny(kind)
    with pytest.raises(TargetPermissionError) as caught:
        CALLS[kind](target)
    assert caught.value.doing == kind
    assert s3_faults.count(kind) == 1


def test_put_needs_no_other_right(target, s3_faults, direct):
    """Credentials that may only put are enough for put: short, long and only_new."""
    for kind in ("get", "head", "list", "delete"):
        s3_faults.deny(kind)
    assert target.put("a", b"short")
    assert target.put("b", b"l" * (2 * PART))
    assert target.put("c", b"new", only_new=True)
    assert not target.put("c", b"newer", only_new=True)
    assert [info.name for info in direct.list("")] == ["a", "b", "c"]
    assert direct.get("c") == b"new"


@pytest.mark.parametrize("code", ["", "QuotaExceeded", "EntityTooLarge"])
def test_full_is_final(target, s3_faults, direct, code):
    """A store that is full is not asked again, and nothing is there."""
    s3_faults.full(code=code)
    for data in (b"short", b"l" * (2 * PART)):
        with pytest.raises(TargetError) as caught:
            target.put("a", data)
        assert type(caught.value) is TargetError
        assert (code or "507") in str(caught.value)
    assert s3_faults.count("put") == 2
    assert not list(direct.list(""))


def test_full_in_the_middle_leaves_no_part(target, s3_faults, direct):
    """A long object that no longer fits is taken back, with its parts."""
    s3_faults.full(after=2)
    with pytest.raises(TargetError):
        target.put("a", b"l" * (3 * PART))
    assert direct.head("a") is None
    assert not list(direct.unfinished())


@pytest.mark.parametrize("bytes_", [0, 1, MB, PART - 1])
def test_cut_uploads_are_sent_again(target, s3_faults, direct, bytes_):
    """A connection that is cut while sending costs a try, of a part alone."""
    data = bytes(range(256)) * (3 * PART // 256)
    s3_faults.cut_upload(bytes_, times=2, match="partNumber=2")
    target.put("a", data)
    assert s3_faults.count("put", "partNumber=1") == 1
    assert s3_faults.count("put", "partNumber=2") == 3
    assert direct.get("a") == data


def test_uploads_that_are_always_cut_leave_nothing(target, s3_faults, direct):
    """An upload that does not come through is an error, and nothing of it stays."""
    s3_faults.cut_upload(MB, times=None, match="partNumber=2")
    with pytest.raises(TargetError) as caught:
        target.put("a", io.BytesIO(b"l" * (3 * PART)))
    assert caught.value.tries == 4
    assert direct.head("a") is None
    assert not list(direct.unfinished())


@pytest.mark.parametrize("bytes_", [0, 1, MB, 2 * MB - 1])
def test_cut_downloads_are_whole_in_the_end(target, s3_faults, direct, bytes_):
    """What is read is never shorter than the object: get reads again, open goes on."""
    data = bytes(range(256)) * (2 * MB // 256)
    direct.put("a", data)
    s3_faults.cut_download(bytes_, times=2)
    assert target.get("a") == data
    s3_faults.forget()
    s3_faults.cut_download(bytes_, times=2)
    with target.open("a") as file:
        assert file.read() == data
    # The rest is asked for, which may be too short to be cut again.
    assert s3_faults.count("get") == (3 if bytes_ < MB else 2)


def test_downloads_that_are_always_cut_are_an_error(target, s3_faults, direct):
    """An object that never comes whole is an error, not a shorter object."""
    direct.put("a", b"x" * MB)
    s3_faults.cut_download(1000, times=None)
    with pytest.raises(TargetError) as caught:
        target.get("a")
    assert caught.value.tries == 4


def test_an_open_object_that_changes_is_an_error(target, s3_faults, direct):
    """A reader that must connect again never mixes two objects."""
    direct.put("a", b"x" * (3 * MB))
    s3_faults.cut_download(MB)
    s3_faults.before("get", lambda: direct.put("a", b"y" * (3 * MB)))
    with target.open("a") as file, pytest.raises(TargetError):
        file.read()


@pytest.mark.parametrize("only_new", [False, True])
def test_lost_answers_are_no_second_writer(target, s3_faults, direct, only_new):
    """An object whose answer was lost is the caller's own when it is put again."""
    for name in ("a", "b"):
        s3_faults.lose("put")
        assert target.put(name, b"mine", only_new=only_new) is True
    assert direct.get("b") == b"mine"


def test_a_lost_answer_and_another_writer_are_told_apart(target, s3_faults, direct):
    """A first try that never arrived and another's object is False."""
    target.put("known", b"x", only_new=True)
    s3_faults.cut_upload()
    s3_faults.before("put", lambda: direct.put("a", b"theirs"))
    assert target.put("a", b"mine", only_new=True) is False
    assert direct.get("a") == b"theirs"


def test_a_completion_whose_answer_is_lost_is_done(target, s3_faults, direct):
    """A long object that is there although nobody said so counts as put."""
    s3_faults.lose("put", match="uploadId", after=2)
    assert target.put("a", b"l" * (2 * PART)) is True
    assert direct.head("a").size == 2 * PART
    assert not list(direct.unfinished())


def test_a_completion_that_is_refused_because_of_itself_is_done(target, s3_faults, direct):
    """412 for a long object that an earlier try, whose answer was lost, has made."""
    s3_faults.lose("put", match="uploadId", after=2)
    s3_faults.fail("put", status=412, code="PreconditionFailed", match="uploadId", after=2)
    assert target.put("a", b"l" * (2 * PART), only_new=True) is True
    assert direct.head("a").size == 2 * PART
    assert s3_faults.struck["put"] == 2


@pytest.mark.parametrize("heard", [True, False])
def test_a_completion_that_another_was_before_leaves_his(target, s3_faults, direct, heard):
    """412 because of another's object of the same size is False, and no part stays."""
    if not heard:
        s3_faults.fail("put", match="uploadId", after=2)
    s3_faults.before("put", lambda: direct.put("a", b"t" * (2 * PART)), match="uploadId")
    s3_faults.fail("put", status=412, code="PreconditionFailed", match="uploadId", after=1)
    assert target.put("a", b"l" * (2 * PART), only_new=True) is False
    assert direct.get("a")[:1] == b"t"
    assert not list(direct.unfinished())


def test_a_server_that_refuses_the_condition_is_asked_before(target, s3_faults, caplog):
    """Where If-None-Match is not implemented, looking before putting takes its place."""
    s3_faults.fail("put", status=501, code="NotImplemented")
    with caplog.at_level(logging.DEBUG, "llmspell_dist.backup"):
        assert target.put("a", b"mine", only_new=True) is True
    assert "If-None-Match" in caplog.text
    assert target.put("a", b"other", only_new=True) is False
    assert target.get("a") == b"mine"


def test_a_server_that_ignores_the_condition_is_found_out(target, s3_faults, caplog, monkeypatch):
    """A server that puts in spite of If-None-Match is recognised by a second put."""
    real = target._client.put_object
    asked = []

    def ignoring(**arguments):
        asked.append(arguments.pop("IfNoneMatch", None))
        return real(**arguments)

    monkeypatch.setattr(target._client, "put_object", ignoring)
    with caplog.at_level(logging.DEBUG, "llmspell_dist.backup"):
        assert target.put("a", b"mine", only_new=True) is True
    assert "If-None-Match" in caplog.text
    assert target.put("a", b"other", only_new=True) is False
    assert target.put("b", b"mine", only_new=True) is True
    assert asked == ["*", "*", None]
    assert target.get("a") == b"mine"
    s3_faults.deny("head")
    with pytest.raises(TargetPermissionError):  # better than to overwrite
        target.put("a", b"other", only_new=True)


def test_deletes_name_what_is_still_there(target, s3_faults, direct):
    """Keys that a batch could not remove are named; those that may pass are tried again."""
    names = [f"{number:04}" for number in range(5)]
    for name in names:
        direct.put(name, b"x")
    s3_faults.keep((names[1], "InternalError"), (names[3], "SlowDown"))
    target.delete(names)
    assert [info.name for info in direct.list("")] == [names[0], names[2], names[4]]
    s3_faults.keep((names[2], "AccessDenied"))
    with pytest.raises(TargetPermissionError) as caught:
        target.delete(names)
    assert caught.value.name == names[2]
    s3_faults.keep((names[4], "InvalidPart"))
    with pytest.raises(TargetError, match="InvalidPart"):
        target.delete(names)


def test_a_server_that_hangs_is_left(s3_faults, direct):
    """An answer that does not come costs a timeout, then another try."""
    direct.put("a", b"x")
    target = s3_faults.place.open(read_timeout_s=0.2)
    gate = s3_faults.hold("get")
    assert target.get("a") == b"x"
    assert s3_faults.count("get") == 2
    gate.set()
    target.close()


def test_no_try_begins_after_the_time_is_up(s3_faults):
    """The time that all tries may take is bounded, however many they may be."""
    target = s3_faults.place.open(tries=1000, patience_s=0.3, first_wait_s=0.1)
    s3_faults.fail("get", status=503, times=None)
    with pytest.raises(TargetError) as caught:
        target.get("a")
    assert 1 <= caught.value.tries <= 12
    target.close()


def test_a_server_that_is_away_is_an_error(target, s3_faults):
    """Connections that are cut are tried again, then an error."""
    s3_faults.down()
    with pytest.raises(TargetError) as caught:
        target.get("a")
    assert caught.value.tries == 4
    s3_faults.up()
    with pytest.raises(ObjectMissingError):
        target.get("a")


def test_a_missing_bucket_is_final(s3_faults, s3_place):
    """A bucket that does not exist is said, not taken for an empty one."""
    from llmspell_dist.backup.targets.s3 import S3Target

    right = s3_faults.place.open()
    target = S3Target("no-such-bucket", "", right.options)
    for call in CALLS.values():
        if call is not CALLS["head"]:  # of which S3 does not say why
            with pytest.raises(TargetError, match="NoSuchBucket"):
                call(target)
    target.close()
    right.close()


def test_throttling_of_many_threads_passes(target, s3_faults, direct):
    """Threads that are told to slow down all come through."""
    s3_faults.throttle(10)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: target.put(f"{i:02}", b"x"), range(16)))
    assert len(list(direct.list(""))) == 16


def test_uploads_of_killed_writers_can_be_taken_back(every_s3_place, s3_proxy):
    """An upload that nobody ends is listed by its age and removed; it is never an object."""
    faults = s3_proxy(every_s3_place)
    target, direct = faults.place.open(part_size=PART), every_s3_place.open()
    gate = faults.hold("put", match="partNumber=2")
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(target.put, "a", b"l" * (2 * PART))
        try:
            assert faults.waiting.acquire(timeout=30)
            assert [left.name for left in direct.unfinished()] == ["a"]
            assert not list(direct.list(""))
            if "upload-times" in every_s3_place.capabilities:
                assert direct.abort_unfinished(timedelta(hours=1)) == 0
            assert direct.abort_unfinished(timedelta(seconds=-5)) == 1
        finally:
            gate.set()
        with pytest.raises(TargetError):  # NoSuchUpload; moto breaks instead
            writing.result(30)
    assert not list(direct.unfinished())
    target.close()
    direct.close()


def test_secrets_stand_in_no_message_and_no_log(s3_faults, caplog):
    """Whatever the server says back, secrets stand in no error, log or repr."""
    secret = "hush-hush-hush"
    target = s3_faults.place.open(secret_key=secret, tries=2)
    said = [repr(target), target.label]
    with caplog.at_level(logging.DEBUG, "llmspell_dist"):
        for status, code in ((500, secret), (403, secret), (400, secret)):
            s3_faults.fail("get", status=status, code=code, times=2)
            with pytest.raises(TargetError) as caught:
                target.get("a")
            said += [repr(caught.value), str(caught.value)]
            s3_faults.clear()
    assert "trying again" in caplog.text
    assert secret not in caplog.text + "".join(said)
    target.close()
