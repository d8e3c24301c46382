"""Check the documentation: links and anchors lead somewhere, Python snippets compile.

That the snippets also do what the text says is for tests/integration/ to show.
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


def pages() -> list[Path]:
    """Return every page of the documentation."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def anchors(text: str) -> set[str]:
    """Return the anchors that the headings of a page give."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in plain}


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Yield a complaint for each relative link of `page` that leads nowhere."""
    for target in _LINK.findall(_FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        if not other.exists():
            yield f"link to {target}: no such file"
        elif anchor and other.suffix == ".md" and anchor not in anchors(other.read_text()):
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


def main() -> int:
    """Print every complaint; end with 1 if there is one."""
    found = 0
    for page in pages():
        text = page.read_text()
        for complaint in [*broken_links(page, text), *broken_snippets(text)]:
            print(f"{page.relative_to(ROOT)}: {complaint}")
            found += 1
    print(f"{len(pages())} pages, {found} complaints")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
