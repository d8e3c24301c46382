"""get, set, del, history, ls, scopes and stat, on every server of the table."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fix_servers import Server

from llmspell_dist import StateClass
from llmspell_dist.keys import KeySpace
from llmspell_dist.scope import Scope

pytestmark = pytest.mark.integration

Here = Callable[..., Any]
Prepare = Callable[..., None]


class Xor:
    """A cipher for tests: unreadable, and no secret."""

    def encrypt(self, payload: bytes, *, associated_data: bytes) -> bytes:
        """Flip every bit."""
        del associated_data
        return bytes(byte ^ 255 for byte in payload)

    decrypt = encrypt


# --- get and set ----------------------------------------------------------------------------------


def test_what_was_set_is_printed_as_json(here: Here) -> None:
    """The revision on setting, the value on getting."""
    done = here("set", "agent:alice", "mood", '{"now": "curious", "since": [1, 2]}')
    assert done.code == 0
    assert done.out.strip().replace("-", "").isdigit()
    shown = here("get", "agent:alice", "mood")
    assert shown.code == 0
    assert json.loads(shown.out) == {"now": "curious", "since": [1, 2]}


def test_a_missing_key_is_exit_code_1(here: Here) -> None:
    """With one line that says so; as JSON with found: false."""
    missing = here("get", "agent:alice", "nothing")
    assert (missing.code, missing.out) == (1, "")
    assert missing.err.count("\n") == 1
    assert "NOT_FOUND" in missing.err
    assert here("-q", "get", "agent:alice", "nothing").err == ""
    document = here("get", "agent:alice", "nothing", "--json")
    assert document.code == 1
    assert json.loads(document.out) == {"scope": "agent:alice", "key": "nothing", "found": False}


def test_json_works_before_and_after_the_command(here: Here) -> None:
    """And gives everything that is known."""
    here("set", "agent:alice", "n", "-5", "--class", "trusted", "--ttl", "2h")
    before = here("--json", "get", "agent:alice", "n")
    assert before == here("get", "agent:alice", "n", "--json")
    document = json.loads(before.out)
    assert document["value"] == -5
    assert document["class"] == "trusted"
    assert document["kind"] == "number"
    assert document["expires"] > document["created"]


def test_record_shows_everything_for_people(here: Here) -> None:
    """One name and value a line on a pipe."""
    here("set", "agent:alice", "k", "[1]")
    shown = here("get", "agent:alice", "k", "--record").out.splitlines()
    lines = dict(line.split("\t") for line in shown)
    assert lines["value"] == "[1]"
    assert lines["expires"] == "-"
    assert lines["class"] == "standard"


def test_text_is_stored_as_it_is(here: Here) -> None:
    """With --text, and given back so with --raw."""
    here("set", "agent:alice", "t", "no [json] é", "--text")
    assert here("get", "agent:alice", "t", "--raw").out == "no [json] é"
    assert json.loads(here("get", "agent:alice", "t").out) == "no [json] é"
    here("set", "agent:alice", "t", "--text", "--", "--json")
    assert here("get", "agent:alice", "t", "--raw").out == "--json"


def test_a_value_comes_from_the_standard_input(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a dash, as JSON or as text."""
    for text, flags, expected in (('{"a": 1}', (), {"a": 1}), ("a\nb", ("--text",), "a\nb")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert here("set", "agent:alice", "in", "-", *flags).code == 0
        assert json.loads(here("get", "agent:alice", "in").out) == expected


def test_what_json_shows_can_be_set_again(here: Here, prepare: Prepare) -> None:
    """Types that JSON lacks go round as tagged objects."""
    value = {"b": b"\0", "t": (1, {2}), "n": 2**70, 5: None}
    prepare(lambda state: state.set("agent:alice", "odd", value))
    shown = json.loads(here("get", "agent:alice", "odd", "--json").out)["value"]
    assert here("set", "agent:bob", "odd", json.dumps(shown)).code == 0
    again = json.loads(here("get", "agent:bob", "odd", "--json").out)["value"]
    assert again == shown
    assert "$map" in shown


def test_bytes_come_out_raw(here: Here, prepare: Prepare) -> None:
    """Byte for byte, without a newline."""
    prepare(lambda state: state.set("agent:alice", "b", b"\x00a\r\n"))
    assert here("get", "agent:alice", "b", "--raw").out.encode() == b"\x00a\r\n"


def test_if_absent_answers_no(here: Here) -> None:
    """With exit code 1, and nothing is changed."""
    assert here("set", "agent:alice", "k", "1", "--if-absent").code == 0
    second = here("set", "agent:alice", "k", "2", "--if-absent")
    assert second.code == 1
    assert "EXISTS" in second.err
    assert here("get", "agent:alice", "k", "--raw").out == "1"


def test_expected_revision_guards_a_set(here: Here) -> None:
    """A stale one is exit code 3 with both revisions as facts."""
    first = here("set", "agent:alice", "k", "1", "--expected", "none")
    revision = first.out.strip()
    assert here("set", "agent:alice", "k", "2", "--expected", revision).code == 0
    stale = here("set", "agent:alice", "k", "3", "--expected", revision, "--json")
    assert (stale.code, stale.out) == (3, "")
    error = json.loads(stale.err)["error"]
    assert error["code"] == "CONFLICT"
    assert error["expected"] == revision
    assert error["actual"] != revision
    assert error["keys"][0]["key"] == "k"


def test_the_past_is_shown(here: Here) -> None:
    """At a revision or a time; what was not there yet is exit code 1."""
    first = here("set", "agent:alice", "k", "1").out.strip()
    second = here("set", "agent:alice", "k", "2").out.strip()
    assert here("get", "agent:alice", "k", "--at", first).out == "1\n"
    assert json.loads(here("get", "agent:alice", "k", "--at", second, "--json").out)["value"] == 2
    assert here("get", "agent:alice", "k", "--at", "2100-01-01").out == "2\n"
    assert here("get", "agent:alice", "k", "--at", "2001-01-01T00:00:00Z").code == 1


def test_history_that_is_not_kept_is_exit_code_5(here: Here) -> None:
    """Bulk keeps values out of the log."""
    first = here("set", "agent:alice", "k", "1", "--class", "bulk").out.strip()
    here("set", "agent:alice", "k", "2", "--class", "bulk")
    gone = here("get", "agent:alice", "k", "--at", first)
    assert gone.code == 5
    assert "HISTORY_UNAVAILABLE" in gone.err


@pytest.mark.parametrize(
    "words",
    [
        ("get", "agent:alice"),
        ("get", "nonsense", "k"),
        ("get", "agent:alice", ""),
        ("get", "agent:alice", "k", "--at", "tomorrow"),
        ("get", "agent:alice", "k", "--nope"),
        ("set", "agent:alice", "k", "not json"),
        ("set", "agent:alice", "k", "1", "--ttl", "soon"),
        ("set", "agent:alice", "k", "1", "--ttl", "0"),
        ("set", "agent:alice", "k", "1", "--ttl", "200000d"),
        ("set", "agent:alice", "k", "1", "--class", "royal"),
        ("set", "agent:alice", "k", "1", "--expected", "x"),
        ("set", "agent:alice", "k", "1", "--expected", "none", "--if-absent"),
        ("history", "agent:alice", "k", "--limit", "0"),
        ("ls", "agent:alice", "--limit", "0"),
        ("ls", "agent:alice", "--prefix", "a", "--match", "b"),
        ("scopes", "--kind", "planet"),
        ("doctor", "--ignore", "everything"),
        ("nonsense",),
    ],
)
def test_bad_input_is_exit_code_2_and_one_line(here: Here, words: tuple[str, ...]) -> None:
    """In plain text and in JSON, with a code."""
    said = here(*words)
    assert (said.code, said.err.count("\n")) == (2, 1), said
    assert said.err.startswith("llmspell-dist: ")
    error = json.loads(here("--json", *words).err)["error"]
    assert error["code"]
    assert error["message"]


# --- del, history, ls, scopes, stat ---------------------------------------------------------------


def test_keys_are_deleted_as_one(here: Here) -> None:
    """Exit code 1 if none was there."""
    here("set", "agent:alice", "a", "1")
    here("set", "agent:alice", "b", "1")
    both = here("del", "agent:alice", "a", "b", "c", "--json")
    assert both.code == 0
    assert json.loads(both.out)["deleted"] == 2
    assert here("del", "agent:alice", "a").code == 1


def test_history_lists_the_changes_newest_first(here: Here) -> None:
    """With revision, operation, actor and value."""
    for value in ("1", "2", "3"):
        here("set", "agent:alice", "k", value)
    here("del", "agent:alice", "k")
    document = json.loads(here("history", "agent:alice", "k", "--json").out)
    assert [change["op"] for change in document["changes"]] == ["delete", "set", "set", "set"]
    assert [change["value"] for change in document["changes"]] == [None, 3, 2, 1]
    plain = here("history", "agent:alice", "k", "--limit", "2").out.splitlines()
    assert [line.split("\t")[2] for line in plain] == ["delete", "set"]
    assert here("history", "agent:alice", "never").code == 1


def test_keys_are_listed_and_filtered(here: Here, prepare: Prepare) -> None:
    """One a line on a pipe; with values in columns."""
    prepare(lambda state: state.set_many("agent:alice", {f"k{i}": i for i in range(30)}))
    assert len(here("ls", "agent:alice").out.splitlines()) == 30
    assert sorted(here("ls", "agent:alice", "--prefix", "k1").out.split()) == sorted(
        ["k1", *[f"k1{i}" for i in range(10)]]
    )
    assert here("ls", "agent:alice", "--match", "k?", "--limit", "4").out.count("\n") == 4
    (line,) = here("ls", "agent:alice", "--values", "--match", "k7").out.splitlines()
    assert line.split("\t")[0] == "k7"
    assert line.split("\t")[-1] == "7"
    assert here("ls", "agent:nobody").code == 0


def test_a_listing_is_one_json_document(here: Here, prepare: Prepare) -> None:
    """Also one of many pages, which is written as it comes."""
    prepare(lambda state: state.set_many("agent:alice", {f"k{i}": i for i in range(700)}))
    document = json.loads(here("ls", "agent:alice", "--json").out)
    assert len(set(document["keys"])) == 700
    assert document["complete"] is True
    items = json.loads(here("ls", "agent:alice", "--values", "--json").out)["items"]
    assert {item["key"]: item["value"] for item in items} == {f"k{i}": i for i in range(700)}


def test_scopes_are_listed_by_kind_and_prefix(here: Here) -> None:
    """As they are printed everywhere."""
    for scope in ("agent:alice", "agent:bob", "workflow:w1/step:plan", "global"):
        here("set", scope, "k", "1")
    assert len(here("scopes").out.splitlines()) == 4
    agents = json.loads(here("scopes", "--kind", "agent", "--json").out)["scopes"]
    assert sorted(agents) == ["agent:alice", "agent:bob"]
    assert here("scopes", "--prefix", "agent:b").out == "agent:bob\tagent\n"


def test_statistics_of_a_scope(here: Here) -> None:
    """Keys, bytes and the last revision."""
    revision = here("set", "agent:alice", "k", "1").out.strip()
    document = json.loads(here("stat", "agent:alice", "--json").out)
    assert document["keys"] == 1
    assert document["bytes"] > 0
    assert document["revision"] == revision
    assert "keys\t1" in here("stat", "agent:alice").out


def test_statistics_of_the_namespace(here: Here, server: Server, namespace: str) -> None:
    """Server, scopes and log; the namespace is not made by looking at it."""
    empty = json.loads(here("stat", "--json").out)
    assert empty["namespace"] == namespace
    assert empty["scopes"] == 0
    assert server.call("DBSIZE") == 0
    here("set", "agent:alice", "k", "1")
    (log,) = json.loads(here("stat", "--json").out)["log"]
    assert log["entries"] == 1
    assert log["floor"] == log["last"]
    if "memory-usage" in server.row.capabilities:
        assert log["bytes_per_entry"] > 0
    assert "log.entries\t1" in here("stat").out


# --- what is hidden, what is damaged --------------------------------------------------------------


def test_a_value_of_a_hiding_class_is_printed_only_on_request(here: Here, prepare: Prepare) -> None:
    """By no command, in no format."""
    secret = "hunter2"

    async def work(state: Any) -> None:
        await state.set("agent:alice", "pw", secret, state_class=StateClass.EXTERNAL)

    prepare(work)
    revision = json.loads(here("get", "agent:alice", "pw", "--json").out)["revision"]
    commands = [
        ("get", "agent:alice", "pw"),
        ("get", "agent:alice", "pw", "--raw"),
        ("get", "agent:alice", "pw", "--record"),
        ("get", "agent:alice", "pw", "--at", revision),
        ("ls", "agent:alice", "--values"),
        ("history", "agent:alice", "pw"),
    ]
    for words in commands:
        for flags in ((), ("--json",)):
            said = here(*words, *flags)
            assert secret not in said.out + said.err, words
        assert secret in here(*words, "--show-sensitive").out, words
    plain = here("get", "agent:alice", "pw")
    assert (plain.code, plain.out) == (1, "")
    assert "HIDDEN" in plain.err


def test_the_past_of_a_value_that_was_sensitive_then_stays_hidden(here: Here) -> None:
    """Although its class is another one now."""
    first = here("set", "agent:alice", "pw", '"hunter2"', "--class", "external").out.strip()
    here("set", "agent:alice", "pw", '"public"', "--class", "standard")
    said = here("get", "agent:alice", "pw", "--at", first)
    assert said.code == 1
    assert "hunter2" not in said.out + said.err


def test_an_encrypted_value_does_not_stop_a_listing(here: Here, prepare: Prepare) -> None:
    """The command has no cipher; the others are shown, the exit code is 5."""

    async def work(state: Any) -> None:
        await state.set("agent:alice", "pw", "hunter2", state_class=StateClass.SENSITIVE)
        await state.set("agent:alice", "k", 1)

    prepare(work, cipher=Xor())
    assert here("get", "agent:alice", "pw").code == 5
    listed = here("ls", "agent:alice", "--values", "--show-sensitive")
    assert listed.code == 5
    assert "k\t" in listed.out
    assert "hunter2" not in listed.out


def test_a_damaged_record_is_exit_code_5_and_leaves_the_others_readable(
    here: Here, server: Server, namespace: str
) -> None:
    """Scope and key are named."""
    here("set", "agent:alice", "good", "1")
    server.call("HSET", KeySpace(namespace).scope(Scope.agent("alice")), "bad", b"\x01junk")
    damaged = here("get", "agent:alice", "bad", "--json")
    assert damaged.code == 5
    error = json.loads(damaged.err)["error"]
    assert (error["code"], error["scope"], error["key"]) == ("CORRUPT_RECORD", "agent:alice", "bad")
    assert here("get", "agent:alice", "good").code == 0


def test_hostile_keys_cannot_steer_the_terminal(here: Here) -> None:
    """Escapes and brackets come out as text; JSON is exact."""
    key = "[red]\x1b[2J\t"
    here("set", "agent:alice", key, "1")
    listed = here("ls", "agent:alice")
    assert listed.out == "[red]\\x1b[2J\\t\n"
    assert json.loads(here("ls", "agent:alice", "--json").out)["keys"] == [key]


def test_passwords_in_urls_are_never_shown(run: Here) -> None:
    """Not even of a URL that cannot be understood or was put in the wrong place."""
    for words in (
        ("get", "a", "b", "--url", "redis://u:hunter2@127.0.0.1:1/0"),
        ("get", "a", "b", "--url", "redis://u:hunter2@127.0.0.1:notaport"),
        ("get", "a", "b", "--url", "http://u:hunter2@host"),
        ("get", "a", "b", "redis://u:hunter2@host/0"),
        ("redis://u:hunter2@host/0",),
    ):
        for flags in ((), ("--json",)):
            said = run(*flags, *words)
            assert said.code in {2, 4}
            assert "hunter2" not in said.out + said.err


def test_a_server_that_is_down_is_exit_code_4(run: Here) -> None:
    """With the server's name as a fact."""
    for words in (("get", "agent:a", "k"), ("doctor",), ("stat",)):
        said = run(*words, "--json", "--url", "redis://127.0.0.1:1/0")
        assert said.code == 4
        error = json.loads(said.err)["error"]
        assert error["code"] == "STORE_UNAVAILABLE"
        assert error["server"] == "127.0.0.1:1"
        assert "server start" in error["hint"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set", "global", "a", "1", "--ttl", "0s"), "--ttl must be more than zero, got '0s'"),
        (("set", "global", "a", "1", "--class", "x"), "--class must be one of"),
        (("set", "global", "a", "1", "--expected", "x"), "--expected must be a revision"),
        (("set", "global", "a", "{"), "VALUE must be JSON, or text with --text: "),
        (("set", "global", "a", '[{"$uuid": 1}]'), "VALUE at $[0] must have well-formed content"),
        (("set", "global", "", "1"), "KEY must not be empty"),
        (("get", "x", "a"), "SCOPE must be global or one of"),
        (("get", "global", "a", "--at", "1899-01-01"), "--at must not be before 1970, got '1899"),
        (("history", "global", "a", "--limit", "0"), "--limit must be"),
        (("ls", "global", "--match", "a", "--prefix", "b"), "--match cannot be combined with --pr"),
        (("scopes", "--kind", "x"), "--kind must be one of"),
    ],
)
def test_an_error_names_what_was_typed(here: Here, words: tuple[str, ...], said: str) -> None:
    """Options and places instead of the API's arguments, and values as they were typed."""
    done = here(*words)
    assert done.code == 2
    assert said in done.err
    named = said.partition(" must")[0].partition(" cannot")[0]
    assert json.loads(here("--json", *words).err)["error"]["argument"] == named


def test_an_error_names_the_variable_that_is_wrong(
    run: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the option was not given."""
    monkeypatch.setenv("LLMSPELL_URL", "ftp://x")
    assert "LLMSPELL_URL must begin with" in run("get", "global", "a").err
    assert "--url must begin with" in run("--url", "ftp://x", "get", "global", "a").err
