"""Every Python snippet of the documentation runs, and prints what its comments say that it prints.

The blocks of a page run in order, in one namespace and one event loop, in an empty folder, with
``LLMSPELL_URL`` naming a server of every row and a namespace of the page's own. What the rules are:

- ``print(...)  # -> text``: the line that is printed; ``…`` stands for any text.
- a block that begins with ``# name.py`` is a file: it is written, and run by the page's
  ``console`` blocks, whose ``$ python`` lines are run with the output that follows them. In a line
  that starts programs in parallel (``&``) the order of the output does not matter.
- ``python no-run: why`` is only compiled.

A page whose code names ``s3://team-backups`` has that bucket, on an S3 server of the tests.
"""

from __future__ import annotations

import ast
import asyncio
import codeop
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import llmspell_dist
from llmspell_dist import blocking

if TYPE_CHECKING:
    from fix_s3 import Service
    from fix_servers import Server

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (?P<name>[a-z_]+\.py)\n")
_PRINTS = re.compile(r"# -> (?P<text>.*)$", re.MULTILINE)
_MANY_PROCESSES = {"docs/state-management/tutorial.md"}
"""Pages whose processes need a server that they can share."""
_BUCKET = "team-backups"


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    note: str
    body: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        language, _, note = match["info"].partition(" ")
        line = text.count("\n", 0, match.start("body")) + 1
        yield Block(page, line, language, note.strip(), match["body"])


def _pages() -> list[Path]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
    return [page for page in found if any(block.language == "python" for block in blocks(page))]


def _page_parameters() -> Iterator[Any]:
    for page in _pages():
        name = page.relative_to(ROOT).as_posix()
        marks = [pytest.mark.needs("process")] if name in _MANY_PROCESSES else []
        yield pytest.param(page, id=name, marks=marks)


def _pattern(expected: str) -> str:
    return ".*".join(re.escape(part) for part in expected.split("…"))


class _Runner:
    """Runs the blocks of one page."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.loop = asyncio.Runner()

    def run(self, block: Block) -> None:
        if block.language == "console":
            self._console(block)
        elif block.language == "python":
            self._python(block)

    def _python(self, block: Block) -> None:
        padded = "\n" * (block.line - 1) + block.body
        code = compile(padded, block.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True)
        if block.note.startswith("no-run"):
            return
        file = _FILE.match(block.body)
        if file:
            (self.folder / file["name"]).write_text(block.body, encoding="utf-8")
            return
        self.capsys.readouterr()
        result = eval(code, self.names)  # noqa: S307 - our own documentation
        if inspect.iscoroutine(result):
            self.loop.run(result)
        printed = self.capsys.readouterr().out.splitlines()
        expected = _PRINTS.findall(block.body)
        assert len(printed) == len(expected), (block.place, printed)
        for line, promised in zip(printed, expected, strict=True):
            assert re.fullmatch(_pattern(promised), line), (block.place, line, promised)

    def _console(self, block: Block) -> None:
        for part in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if command.startswith("python ") and "-m asyncio" not in command:
                self._program(block, command, output.splitlines())

    def _program(self, block: Block, command: str, expected: list[str]) -> None:
        python = shlex.quote(sys.executable)
        parallel = "&" in command
        script = re.sub(r"\bpython\b", python, command) + ("\nwait" if parallel else "")
        package = str(Path(llmspell_dist.__file__).parents[1])
        done = subprocess.run(
            ["/bin/sh", "-c", script],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": package},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (block.place, command, done.stdout, done.stderr)
        printed = done.stdout.splitlines()
        if parallel:
            printed, expected = sorted(printed), sorted(expected)
        assert len(printed) == len(expected), (block.place, command, printed, done.stderr)
        for line, promised in zip(printed, expected, strict=True):
            assert re.fullmatch(_pattern(promised), line), (block.place, line, promised)

    def close(self) -> None:
        """Close what the page left open."""
        for value in list(self.names.values()):
            if isinstance(value, llmspell_dist.Spell):
                self.loop.run(value.close())
            elif isinstance(value, blocking.Spell):
                value.close()
        self.loop.close()


@pytest.fixture
def bucket(request: pytest.FixtureRequest, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket that the page's code names, and the environment by which it is found."""
    used = [one for one in blocks(page) if one.language == "python" and not one.note]
    if not any(f"s3://{_BUCKET}" in one.body for one in used):
        return
    service: Service = request.getfixturevalue("moto")
    client = service.client()
    client.create_bucket(Bucket=_BUCKET)
    client.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", service.endpoint)
    for name, text in service.environment.items():
        monkeypatch.setenv(name, text)


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("page", list(_page_parameters()))
def test_the_snippets_of_a_page_run_and_print_what_they_say(
    *,
    page: Path,
    server: Server,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In order, in one namespace, on every server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMSPELL_URL", server.url)
    monkeypatch.setenv("LLMSPELL_NAMESPACE", namespace)
    runner = _Runner(tmp_path, capsys)
    try:
        for block in blocks(page):
            runner.run(block)
    finally:
        runner.close()


def _pasted(block: Block) -> None:
    """Compile the block as a prompt does that gets it line by line, and Enter at the end."""
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    waiting: list[str] = []
    for number, line in enumerate([*block.body.splitlines(), ""]):
        waiting.append(line)
        try:
            complete = compiler("\n".join(waiting), block.place) is not None
        except SyntaxError as error:
            pytest.fail(f"{block.page.name}:{block.line + number}: {error.msg}: {line}")
        if complete:
            waiting.clear()
    assert not any(waiting), block.place


def test_what_is_no_file_can_be_pasted_at_a_prompt() -> None:
    """As the pages say: a compound statement has an empty line behind it, and none inside."""
    for page in sorted((ROOT / "docs").glob("**/*.md")):
        for block in blocks(page):
            if block.language == "python" and not _FILE.match(block.body):
                _pasted(block)


def test_a_snippet_that_is_not_run_says_why() -> None:
    """A note other than ``no-run: why`` would be a typing error that hides a snippet."""
    for page in _pages():
        for block in blocks(page):
            if block.language == "python" and block.note:
                assert re.fullmatch(r"no-run: \S.{5,}", block.note), block.place


def test_every_page_is_reached_from_the_readme() -> None:
    """Whoever starts at the README finds everything by links."""
    pages = {page.resolve() for page in (ROOT / "docs").glob("**/*.md")}
    todo, seen = [ROOT / "README.md"], set()
    while todo:
        page = todo.pop()
        if page in seen or not page.exists():
            continue
        seen.add(page)
        targets = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8"))
        todo += [(page.parent / target).resolve() for target in targets if "://" not in target]
    missing = {page.relative_to(ROOT).as_posix() for page in pages - seen}
    assert not missing
