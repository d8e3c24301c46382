"""Check the documentation: links and anchors lead somewhere, snippets compile, tables are tables.

That the snippets also do what the text says is for tests/docs/ to show.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^ *```", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_CODE_SPAN = re.compile(r"`[^`\n]*`")


def pages() -> list[Path]:
    """Return every page of the documentation."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def anchors(text: str) -> set[str]:
    """Return the anchors that the headings of a page give; one that comes again is numbered."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = 0
        while (name := f"{anchor}-{again}" if again else anchor) in found:
            again += 1
        found.add(name)
    return found


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Yield a complaint for each relative link of `page` that leads nowhere."""
    for target in _LINK.findall(_CODE_SPAN.sub("", _FENCE.sub("", text))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        if not other.exists():
            yield f"link to {target}: no such file"
        elif not other.is_relative_to(ROOT):
            yield f"link to {target}: outside of the project"
        elif anchor and other.suffix == ".md" and anchor not in anchors(other.read_text("utf-8")):
            yield f"link to {target}: no such heading"


def broken_snippets(text: str) -> Iterator[str]:
    """Yield a complaint for each Python snippet that does not compile."""
    for match in _FENCE.finditer(text):
        if match["language"] in {"python", "py"}:
            line = text.count("\n", 0, match.start()) + 1
            try:
                compile(
                    textwrap.dedent(match["body"]),
                    f"snippet at line {line}",
                    "exec",
                    flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                )
            except SyntaxError as error:
                yield f"snippet at line {line}: {error.msg}"


def broken_structure(text: str) -> Iterator[str]:
    """Yield a complaint for a fence that is never closed, and for each row of another width."""
    if len(re.findall(r"^ *```", text, re.MULTILINE)) % 2:
        yield "a code fence is not closed"
    width = 0
    # Emptied, not removed: the lines keep their numbers.
    plain = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for number, line in enumerate(plain.splitlines(), 1):
        if not line.startswith("|"):
            width = 0
            continue
        cells = _CODE_SPAN.sub("", line).replace(r"\|", "").count("|") - 1
        width = width or cells
        if cells != width:
            yield f"line {number}: {cells} cells in a table of {width}"


def main() -> int:
    """Print every complaint; end with 1 if there is one."""
    found = 0
    for page in pages():
        text = page.read_text("utf-8")
        complaints = [*broken_structure(text), *broken_links(page, text), *broken_snippets(text)]
        for complaint in complaints:
            print(f"{page.relative_to(ROOT)}: {complaint}")
            found += 1
    print(f"{len(pages())} pages, {found} complaints")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
