"""Printing: tables on a terminal, tab-separated lines on a pipe, one JSON document on request."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final

__all__ = ["Output", "printable"]

_PAGE: Final = 200
"""Rows whose widths decide those of a table's columns."""
_IDS: Final = frozenset({"ID", "PARENT", "BACKUP", "TIMELINE", "CORRELATION"})
"""Columns that are never folded: other commands take what stands there."""
_NARROWEST: Final = 6
"""So many characters wide every other column is."""
_HIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """Return `text` without what could steer a terminal or break a line; escaped as in Python."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _HIDDEN_CATEGORIES
        else char
        for char in text
    )


class Output:
    """Where a command's answer goes: to people, to a pipe, or as JSON."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.terminal = not as_json and sys.stdout.isatty()

    # --- JSON

    def dumps(self, document: Any) -> str:
        """Return a document as text, on one line; ASCII where the output is not UTF-8."""
        encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
        return json.dumps(document, ensure_ascii=encoding != "utf8", allow_nan=False)

    def document(self, document: Any) -> None:
        """Print one JSON document; indented on a terminal."""
        if sys.stdout.isatty():
            print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
        else:
            print(self.dumps(document))

    async def stream(
        self, head: dict[str, Any], name: str, items: AsyncIterable[Any], problem: Callable[[], int]
    ) -> None:
        """Print one JSON document with a long list in it, in constant memory.

        It ends with ``complete``: false if an error cut it off, which then goes on its way.
        `problem` counts what could not be read, for the field ``unreadable``.
        """
        opening = self.dumps(head)[1:-1]
        sys.stdout.write(f"{{{opening}, {self.dumps(name)}: [")
        complete, comma = False, ""
        try:
            async for item in items:
                sys.stdout.write(f"{comma}\n {self.dumps(item)}")
                comma = ","
            complete = True
        finally:
            sys.stdout.write(
                f'\n], "unreadable": {problem()}, "complete": {self.dumps(complete)}}}\n'
            )

    # --- for people and pipes

    def say(self, text: str) -> None:
        """Print a confirmation, which -q leaves out."""
        if not self.quiet:
            print(printable(text))

    def lines(self, texts: Iterable[str]) -> None:
        """Print lines of any length, which nobody wraps."""
        for text in texts:
            print(printable(text))

    def value(self, shown: Any) -> None:
        """Print a value in JSON notation; indented and coloured on a terminal."""
        if not self.terminal:
            print(self.dumps(shown))
            return
        from rich.console import Console  # noqa: PLC0415
        from rich.syntax import Syntax  # noqa: PLC0415

        text = json.dumps(shown, indent=2, ensure_ascii=False)
        safe = "\n".join(map(printable, text.split("\n")))
        Console().print(Syntax(safe, "json", background_color="default", word_wrap=True))

    def fields(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Print names and values, one pair a line."""
        self.table((), [(name, "-" if value is None else str(value)) for name, value in pairs])

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows: a table on a terminal, tab-separated lines without a heading on a pipe."""
        if not self.terminal:
            for row in rows:
                print("\t".join(map(printable, row)))
            return
        rest = iter(rows)
        heading = bool(columns)
        while page := list(islice(rest, _PAGE)):
            self._page(columns, page, heading=heading)
            heading = False

    async def rows(self, columns: Sequence[str], rows: AsyncIterable[Sequence[str]]) -> None:
        """Print rows as they come, in constant memory; as `table` otherwise."""
        page: list[Sequence[str]] = []
        heading = bool(columns)
        try:
            async for row in rows:
                if not self.terminal:
                    print("\t".join(map(printable, row)))
                    continue
                page.append(row)
                if len(page) == _PAGE:
                    self._page(columns, page, heading=heading)
                    page, heading = [], False
        finally:
            if page:
                self._page(columns, page, heading=heading)

    def _page(self, columns: Sequence[str], rows: list[Sequence[str]], *, heading: bool) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=None, show_header=heading, pad_edge=False, header_style="bold")
        least = 0
        for place in range(len(rows[0])):
            name = columns[place] if columns else ""
            whole, style = name in _IDS, "cyan" if place == 0 else ""
            table.add_column(name, overflow="fold", no_wrap=whole, style=style)
            least += max(len(row[place]) for row in rows) if whole else _NARROWEST
        for row in rows:
            # Text, because brackets in a key are no markup.
            table.add_row(*[Text(printable(cell)) for cell in row])
        # Where ids leave nothing to the others, the terminal may break the lines.
        console = Console()
        console.width = max(console.width, least + 2 * len(rows[0]) if _IDS & {*columns} else 0)
        console.print(table)
