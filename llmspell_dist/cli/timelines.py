"""Timelines as table rows and trees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.cli.output import printable
from llmspell_dist.cli.wording import counted
from llmspell_dist.correlation import EntryKind
from llmspell_dist.correlation.documents import about

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from llmspell_dist.correlation import Timeline, TimelineEntry

__all__ = ["entry_row", "summary", "tree_of"]

_STYLES: Final = {
    EntryKind.EVENT: "green",
    EntryKind.CHANGE: "cyan",
    EntryKind.HOOK: "magenta",
    EntryKind.LEASE: "yellow",
    EntryKind.UNKNOWN: "red",
}


# --- rows ---------------------------------------------------------------------------


def entry_row(entry: TimelineEntry) -> tuple[str, ...]:
    """Return an entry as a line of a pipe."""
    return (
        str(entry.position),
        entry.time.isoformat(timespec="milliseconds"),
        entry.kind.value,
        str(entry.depth),
        ",".join(map(str, entry.causes)) or "-",
        entry.type,
        entry.id,
        entry.source or "-",
        about(entry) or "-",
    )


# --- trees ----------------------------------------------------------------------------------------


def summary(timeline: Timeline) -> str:
    """Return a timeline in a line."""
    said = timeline.statistics
    kinds = ", ".join(
        counted(count, str(kind), "unknown" if kind == EntryKind.UNKNOWN else "")
        for kind, count in sorted(said.by_kind.items())
    )
    more = " and more" if timeline.truncated else ""
    started = "" if said.started is None else said.started.isoformat(timespec="milliseconds")
    return f"{timeline.correlation_id}: {kinds}{more}, {_span(said.duration)} from {started}"


def tree_of(timeline: Timeline, depth: int) -> Tree:
    """Return a timeline as a tree: effects below their causes, `depth` levels of them.

    An entry with several causes stands once, below the nearest in time, and names the others.
    """
    from rich.text import Text  # noqa: PLC0415 - only where a terminal is drawn on
    from rich.tree import Tree  # noqa: PLC0415

    below: dict[int | None, list[int]] = {}
    for entry in timeline:
        parent = entry.causes[-1] if entry.causes else None
        below.setdefault(parent, []).append(entry.position)
    sizes = _sizes(timeline)
    root = Tree(_line(summary(timeline), "bold"))
    level = [(root, position, 1) for position in below.get(None, [])]
    for branch, position, here in level:  # it grows while it is walked
        entry = timeline[position]
        node = branch.add(_label(timeline, entry))
        hidden = below.get(position, [])
        if hidden and here >= depth:
            node.add(Text(f"… {sizes[position]} below, see --depth", style="dim", no_wrap=True))
        else:
            level += [(node, effect, here + 1) for effect in hidden]
    return root


def _sizes(timeline: Timeline) -> list[int]:
    """Return how many entries stand below each, in the tree."""
    sizes = [0] * len(timeline)
    for entry in sorted(timeline, key=lambda one: -one.depth):  # deeper ones are done before
        if entry.causes:
            sizes[entry.causes[-1]] += sizes[entry.position] + 1
    return sizes


def _label(timeline: Timeline, entry: TimelineEntry) -> Text:
    from rich.text import Text  # noqa: PLC0415

    label = Text(no_wrap=True, overflow="ellipsis")
    for text, style in _pieces(timeline, entry):
        label.append(printable(text), style)
    return label


def _pieces(timeline: Timeline, entry: TimelineEntry) -> Iterator[tuple[str, str]]:
    yield f"#{entry.position} ", "dim"
    yield f"+{_span(timeline.relative_time(entry))} ", "dim"
    yield entry.type, _STYLES[entry.kind]
    said = about(entry)
    if said:
        yield f" {said}", ""
    if entry.source:
        yield f" by {entry.source}", "dim"
    others = entry.causes[:-1]
    if others:
        yield f" (also from {', '.join(f'#{position}' for position in others)})", "dim"


def _line(text: str, style: str) -> Text:
    from rich.text import Text  # noqa: PLC0415

    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _span(duration: Any) -> str:
    seconds = duration.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 120:
        return f"{seconds:.3f}s"
    return f"{seconds / 60:.1f}m" if seconds < 7200 else f"{seconds / 3600:.1f}h"
