"""The scripts read alone: what their headers say is what they use, and what Python expects."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmspell_dist.changes import OMITTED, Op
from llmspell_dist.classes import BEHAVIOURS, StateClass
from llmspell_dist.errors import (
    ClassChangedError,
    ConflictError,
    CorruptRecordError,
    NumberOverflowError,
    OperationReusedError,
    OutcomeUnknownError,
    SpellError,
    StagedElementsLostError,
    StoreUnavailableError,
    WrongKindError,
)
from llmspell_dist.records import (
    MAX_HEADER,
    MIN_HEADER,
    RESTORED,
    Kind,
    StoredRecord,
    pack_record,
)
from llmspell_dist.redis import commits
from llmspell_dist.redis.commits import Commit, ConditionMode, ScopeKey, TTLMode
from llmspell_dist.redis.ring import WINDOW
from llmspell_dist.redis.scripts import ScriptError, load_script, resolve, scripts_folder
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope

pytestmark = pytest.mark.unit

FOLDER = scripts_folder()
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.lua"))
LIBRARY = sorted(path.stem for path in (FOLDER / "lib").glob("*.lua"))
COMMENT = re.compile(r"^\s*--.*$|(?<=\s)-- .*$", re.MULTILINE)


def source_of(name: str) -> str:
    """Return the text of a file."""
    return (FOLDER / f"{name}.lua").read_text(encoding="utf-8")


def header_of(name: str) -> str:
    """The comment lines at the top."""
    lines = []
    for line in source_of(name).splitlines():
        if not line.startswith("--") or line.startswith("---"):
            break
        lines.append(line[2:].strip())
    return "\n".join(lines)


def code_of(name: str) -> str:
    """Return a file without its comments."""
    return COMMENT.sub("", source_of(name))


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_opens_with_its_purpose_keys_and_answer(name: str) -> None:
    """Whoever opens the file knows what it is called with."""
    header = header_of(name)
    assert header.startswith(f"{name}: ")
    assert "KEYS[1]" in header
    assert re.search(r"^returns: .", header, re.MULTILINE)


@pytest.mark.parametrize("array", ["KEYS", "ARGV"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_declared_indexes_are_those_used(name: str, array: str) -> None:
    """One by one, and an open end where the index is computed."""
    declared = re.findall(rf"^{array}\[(\d+|n)(\.\.\.)?\]", header_of(name), re.MULTILINE)
    single = {int(index) for index, more in declared if not more}
    opened = [1_000_000 if index == "n" else int(index) for index, more in declared if more]
    code = code_of(name)
    used = {int(index) for index in re.findall(rf"{array}\[(\d+)\]", code)}
    computed = re.search(rf"{array}\[[^\]\d]|#{array}\b|unpack\({array}\b", code) is not None
    assert {index for index in used if not opened or index < min(opened)} == single
    assert computed == bool(opened), "an open end is declared if and only if it is used"


def test_library_files_take_what_they_are_given() -> None:
    """Only `rest`, which is a part of commit that stands apart, looks at its arguments."""
    using = {name for name in LIBRARY if re.search(r"\b(KEYS|ARGV)\b", code_of(f"lib/{name}"))}
    assert using == {"rest"}


def test_every_library_file_is_included_somewhere() -> None:
    """Nothing lies around that nothing calls."""
    included: set[str] = set()
    for name in [*SCRIPTS, *(f"lib/{name}" for name in LIBRARY)]:
        included |= set(re.findall(r'--- @include "lib/([a-z0-9_]+)"', source_of(name)))
    assert included == set(LIBRARY)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_has_a_shebang_or_what_fakeredis_lacks(name: str) -> None:
    """Redis 6.2 knows no shebang; `cmsgpack`, `struct` and `sha1hex` are not everywhere."""
    body = load_script(name).body.decode()
    assert not body.startswith("#!")
    for missing in ("cmsgpack", "struct.", "sha1hex", "cjson"):
        assert missing not in body
    assert not re.search(r"\bKEYS\s*\*|'KEYS'|\"KEYS\"", body)


# --- error codes ----------------------------------------------------------------------------------


def declared_errors(name: str) -> set[str]:
    """Return the codes that a header lists."""
    found = re.search(r"^errors: (.*)$", header_of(name), re.MULTILINE)
    return set(re.findall(r"\b[A-Z]{3,}\b", found[1])) if found else set()


def test_the_codes_of_commit_are_those_that_python_maps() -> None:
    """Neither side knows one that the other does not."""
    tree = ast.parse(inspect.getsource(commits.refusal) + inspect.getsource(commits._unfit))
    mapped = {
        node.comparators[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Name)
        and node.left.id == "code"
        and isinstance(node.comparators[0], ast.Constant)
    }
    assert mapped == declared_errors("commit")


def test_the_codes_that_commit_declares_are_the_ones_it_answers() -> None:
    """With all that it includes."""
    body = load_script("commit").body.decode()
    for code in declared_errors("commit"):
        assert re.search(rf"'{code}[' ]", body), code
    answered = set(re.findall(r"(?:return|nil,|problem,|outcome =|or|and) '([A-Z]{4,})[' ]", body))
    known_words = {"CONFLICT"} | declared_errors("commit")
    assert {word for word in answered if word not in {"HLEN", "LLEN"}} <= known_words


def test_the_code_of_read_is_the_one_that_the_reader_looks_for() -> None:
    """A scope that is too large for one answer."""
    from llmspell_dist.state import reads

    assert declared_errors("read") == {"TOOLARGE"}
    assert b"TOOLARGE" in inspect.getsource(reads).encode()


SCOPE = ScopeKey(b"n:{0}:agent:a", b"agent:a", b"n:{0}", Scope.agent("a"), b"")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CONFLICT 0=5-1", ConflictError),
        ("KIND change=0 kind=3 class=0 revision=1-1", WrongKindError),
        ("CLASS change=0 kind=3 class=5 revision=1-1", ClassChangedError),
        ("OVERFLOW change=0 kind=2 class=0 revision=1-1", NumberOverflowError),
        ("STAGED change=0 kind=0 class=0 revision=none", StagedElementsLostError),
        ("CORRUPT change=0 kind=0 class=0 revision=none", CorruptRecordError),
        ("UNKNOWN", OutcomeUnknownError),
        ("REUSED", OperationReusedError),
        ("FAILED OOM command not allowed", StoreUnavailableError),
    ],
)
def test_every_code_has_its_exception(text: str, expected: type[SpellError]) -> None:
    """With scope and key where it is about one."""
    one = commits.change(Op.INCREMENT, b"k", b"1")
    guard = commits.condition(ConditionMode.REVISION, b"k", Revision(1, 1))
    error = commits.refusal(text, Commit((SCOPE,), [one], [guard]), "server", "ring:1")
    assert type(error) is expected or isinstance(error, expected)
    if expected in (WrongKindError, CorruptRecordError, ClassChangedError):
        assert (error.scope, error.key) == ("agent:a", "k")  # type: ignore[attr-defined]
    assert text.partition(" ")[0] in declared_errors("commit")


# --- the loader -----------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> None:
    """Write scripts by name."""
    for name, text in files.items():
        (folder / f"{name}.lua").write_text(text)


def test_includes_come_once_before_their_first_user(tmp_path: Path) -> None:
    """However often they are asked for."""
    write(
        tmp_path,
        main='--- @include "a"\n--- @include "b"\nmain()',
        a='--- @include "c"\na()',
        b='--- @include "c"\n--- @include "a"\nb()',
        c="c()",
    )
    assert resolve("main", tmp_path) == "c()\na()\nb()\nmain()"


def test_an_include_may_stand_inside_a_function(tmp_path: Path) -> None:
    """Where it is indented."""
    write(tmp_path, main='local function f()\n  --- @include "a"\nend', a="a()")
    assert resolve("main", tmp_path) == "local function f()\na()\nend"


def test_scripts_that_include_each_other_are_refused(tmp_path: Path) -> None:
    """The error shows the circle."""
    write(tmp_path, a='--- @include "b"', b='--- @include "c"', c='--- @include "a"')
    with pytest.raises(ScriptError, match="a > b > c > a"):
        resolve("a", tmp_path)
    write(tmp_path, me='--- @include "me"')
    with pytest.raises(ScriptError, match="me > me"):
        resolve("me", tmp_path)


def test_a_missing_script_is_named_with_who_wants_it(tmp_path: Path) -> None:
    """As the path of includes that leads to it."""
    write(tmp_path, a='--- @include "b"', b='--- @include "gone"')
    with pytest.raises(ScriptError, match="a > b > gone"):
        resolve("a", tmp_path)
    with pytest.raises(ScriptError, match="nothing"):
        resolve("nothing", tmp_path)


def test_comments_are_not_sent_and_code_is(tmp_path: Path) -> None:
    """Every server would keep them."""
    write(tmp_path, a="-- one\n\n  -- two\nlocal x = '--' -- three\nreturn x\n")
    assert resolve("a", tmp_path) == "local x = '--' -- three\nreturn x"
    for name in SCRIPTS:
        assert b"@include" not in load_script(name).body


def test_a_script_is_named_by_its_content() -> None:
    """As the server does it."""
    import hashlib

    for name in SCRIPTS:
        script = load_script(name)
        assert script.sha.decode() == hashlib.sha1(script.body).hexdigest()  # noqa: S324
        assert load_script(name) is script


# --- constants ------------------------------------------------------------------------------------


def constants_of(name: str) -> dict[str, int]:
    """Numbers that a file gives names to."""
    found: dict[str, int] = {}
    for names, numbers in re.findall(
        r"^local ([A-Z_0-9, ]+) = ([\d, ]+?)(?: --.*)?$", source_of(name), re.MULTILINE
    ):
        found |= dict(zip(names.split(", "), map(int, numbers.split(", ")), strict=True))
    return found


OPERATIONS = {
    "SET": Op.SET, "DELETE": Op.DELETE, "EXPIRED": Op.EXPIRED, "TTL": Op.TTL,
    "COUNTED": Op.INCREMENT, "APPENDED": Op.APPEND, "MERGED": Op.MERGE, "ADOPTED": Op.ADOPT,
    "CLEARED": Op.CLEAR, "POLICY": Op.POLICY, "BROKEN": Op.BROKEN,
    "RESTORED": Op.RESTORED,
}  # fmt: skip


def test_numbers_have_the_same_meaning_on_both_sides() -> None:
    """Operations, kinds, classes, and where composites begin."""
    assert constants_of("lib/frame") == {**OPERATIONS, "OMITTED": OMITTED}
    assert set(OPERATIONS.values()) == set(Op) - {Op.COPY}
    kinds = {kind.name: int(kind) for kind in Kind if kind is not Kind.VALUE}
    heeded = {"CRITICAL", "SENSITIVE", "EXTERNAL"}
    classes = {name: int(StateClass[name]) for name in heeded}
    assert constants_of("lib/composite") == kinds | classes
    first_composite = min(kind for kind in Kind if kind.composite) << 4
    assert constants_of("lib/scope")["COMPOSITE"] == first_composite
    in_history = {"CLEARED": Op.CLEAR, "RESTORED": Op.RESTORED, "BY_RESTORE": RESTORED}
    assert constants_of("history") == in_history
    in_commit = constants_of("commit")
    assert in_commit["SET"] == Op.SET
    assert in_commit["COMPOSITE"] == first_composite
    assert (in_commit["BULK"], in_commit["EPHEMERAL"]) == (StateClass.BULK, StateClass.EPHEMERAL)
    assert re.search(rf"== {int(Op.COPY)} then -- copy", source_of("commit"))
    assert f"[{int(Op.COPY)}] = op_copy" in source_of("lib/rest")


def test_classes_are_treated_alike_on_both_sides() -> None:
    """Which keep values out of the log, and which a writer must know."""
    logged = re.search(r"NOT_LOGGED = \{(.*?)\}", source_of("lib/record"))
    assert logged is not None
    assert {int(number) for number in re.findall(r"\[(\d+)\]", logged[1])} == {
        state_class for state_class, does in BEHAVIOURS.items() if not does.log_payload
    }
    heeded = re.search(r"HEEDED = \{(.*?)\}", source_of("lib/composite"))
    assert heeded is not None
    assert {StateClass[name] for name in re.findall(r"\[([A-Z]+)\]", heeded[1])} == {
        state_class
        for state_class, does in BEHAVIOURS.items()
        if does.durable_ack or does.encrypt or does.strict
    }


def test_sizes_are_the_same_on_both_sides() -> None:
    """Headers, the scope's record, the ring."""
    shortest = re.search(r"SHORTEST = \{ \[0\] = ([\d, ]+) \}", source_of("lib/scope"))
    assert shortest is not None
    sizes = [int(number) for number in shortest[1].split(", ")]
    assert (sizes[0], sizes[3]) == (MIN_HEADER, MAX_HEADER)
    assert sizes[1] == sizes[2] == MIN_HEADER + 6
    assert r"'\1' .. string.rep('\0', 31)" in source_of("lib/scope")
    assert WINDOW == 4 * 256
    assert "s5 % 4 * 256 + s6" in source_of("commit")


def test_modes_of_expiry_and_conditions_are_those_that_the_scripts_know() -> None:
    """Their numbers stand in requests that another release may have packed."""
    assert list(TTLMode) == [0, 1, 2, 3, 4]
    assert list(ConditionMode) == [1, 2, 3, 4]
    assert set(re.findall(r"mode == (\d)", source_of("lib/op_set"))) == {"0", "1", "3", "4"}
    assert set(re.findall(r"mode == (\d)", source_of("lib/rest"))) == {"2", "3", "4"}


# --- the library, run ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lua() -> Any:
    """Functions of the library by name, as a server would run them."""
    lupa = pytest.importorskip("lupa.lua51")
    runtime = lupa.LuaRuntime(encoding="latin-1")
    names = [
        "add_integers",
        "is_integer_text",
        "pack_revision",
        "show_revision",
        "build_record",
        "p48",
        "u48",
    ]
    source = resolve("lib/decimal", FOLDER)
    for name in ("lib/revision", "lib/record"):
        source += "\n" + resolve(name, FOLDER)
    exported = ", ".join(f"{name} = {name}" for name in names)
    return runtime.execute(f"{source}\nreturn {{ {exported} }}")


int64 = st.integers(-(2**63), 2**63 - 1)


@given(a=int64, b=int64)
@example(a=2**63 - 1, b=1)
@example(a=-(2**63), b=-1)
@example(a=-(10**9), b=1)
@example(a=10**18, b=-(10**18))
def test_integers_are_added_exactly_or_refused(lua: Any, a: int, b: int) -> None:
    """Over the whole range of 64 bits, though Lua's numbers are doubles."""
    expected = str(a + b) if -(2**63) <= a + b < 2**63 else None
    assert lua.add_integers(str(a), str(b)) == expected


@given(st.builds(Revision, st.integers(0, 2**48 - 1), st.integers(0, 2**32 - 1)))
def test_revisions_are_packed_as_in_python(lua: Any, revision: Revision) -> None:
    """Both ways."""
    packed = lua.pack_revision(str(revision)).encode("latin-1")
    assert packed == revision.packed
    shown = lua.show_revision(revision.packed.decode("latin-1"))
    assert shown == ("none" if revision == (0, 0) else str(revision))


@given(
    kind=st.sampled_from(list(Kind)),
    state_class=st.sampled_from(list(StateClass)),
    flags=st.sampled_from([0, 4, 8, 12]),
    schema=st.integers(0, 65_535),
    ms=st.integers(0, 2**48 - 1),
    created=st.one_of(st.none(), st.integers(0, 2**48 - 1)),
    expires=st.integers(0, 2**48 - 1),
    payload=st.binary(max_size=20),
)
def test_records_are_packed_as_in_python(  # noqa: PLR0917 - one part of a record each
    lua: Any, kind: Kind, state_class: StateClass, flags: int, schema: int, ms: int,
    created: int | None, expires: int, payload: bytes,
) -> None:  # fmt: skip
    """Byte by byte."""
    record = StoredRecord(
        kind,
        state_class,
        flags,
        schema,
        Revision(ms, 7),
        ms if created is None else created,
        expires,
        payload,
    )

    def text(raw: bytes) -> str:
        return raw.decode("latin-1")

    built = lua.build_record(
        kind << 4 | state_class,
        flags,
        text(schema.to_bytes(2, "big")),
        text(record.revision.packed),
        text(record.created_ms.to_bytes(6, "big")),
        text(expires.to_bytes(6, "big")) if expires else "",
        text(payload),
    )
    assert built.encode("latin-1") == pack_record(record)
