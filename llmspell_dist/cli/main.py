"""The entry point: runs a command and turns whatever happens into one line and an exit code.

The terminal libraries are imported when a command runs, not for ``--version``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `docs/cli.md` lists them."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        from llmspell_dist import __version__  # noqa: PLC0415

        print(f"llmspell-dist {__version__}")
        return 0
    from llmspell_dist.cli.exits import Exit  # noqa: PLC0415

    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.PIPE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return code


def _run(words: list[str]) -> int:
    from llmspell_dist.cli.exits import Exit, exit_of  # noqa: PLC0415
    from llmspell_dist.cli.hints import hint_of  # noqa: PLC0415
    from llmspell_dist.cli.wording import described  # noqa: PLC0415
    from llmspell_dist.errors import SpellError  # noqa: PLC0415

    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # a text that a terminal lacks is no crash
    options = words[: words.index("--")] if "--" in words else words
    as_json = "--json" in options
    try:
        from llmspell_dist.cli.app import app  # noqa: PLC0415

        result = app(words, prog_name="llmspell-dist", standalone_mode=False)
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except SpellError as error:
        message, facts = described(error, options)
        hint = hint_of(error)
        if hint is not None:
            facts = {**facts, "hint": hint}
            message = f"{message} ({hint})"
        return _fail(exit_of(error), error.code, message, facts, as_json=as_json)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in {"typer", "rich", "click"}:
            said = "the command line needs more: pip install 'llmspell-dist[cli]'"
            return _fail(Exit.USAGE, "NOT_INSTALLED", said, {}, as_json=as_json)
        # typer brings its own copy of click, or uses the one that is installed: known by its shape.
        if hasattr(error, "format_message"):
            said = error.format_message()
            return _fail(Exit.USAGE, "USAGE", said, {}, as_json=as_json)
        if type(error).__name__ == "Abort":
            return Exit.INTERRUPTED
        if os.environ.get("LLMSPELL_DEBUG"):
            raise
        said = f"{type(error).__name__}: {error} (a bug; LLMSPELL_DEBUG=1 shows where)"
        return _fail(Exit.INTERNAL, "INTERNAL", said, {}, as_json=as_json)
    return int(result or 0)


def _fail(code: int, name: str, message: str, facts: dict[str, object], *, as_json: bool) -> int:
    """Say in one line what went wrong, without secrets."""
    from llmspell_dist.cli.output import printable  # noqa: PLC0415
    from llmspell_dist.errors import mask_secrets  # noqa: PLC0415

    sys.stdout.flush()
    said = mask_secrets(" ".join(message.split()))
    if as_json:
        described = {"code": name, "message": said, **{n: _plain(f) for n, f in facts.items()}}
        print(json.dumps({"error": described}), file=sys.stderr)
    else:
        print(printable(f"llmspell-dist: {name}: {said}"), file=sys.stderr)
    return code


def _plain(fact: object) -> object:
    """Return a fact as JSON has it: revisions and operations as text."""
    from llmspell_dist.errors import ConflictingKey, mask_secrets  # noqa: PLC0415

    if fact is None or isinstance(fact, bool | int | float):
        return fact
    if isinstance(fact, ConflictingKey):
        return {name: _plain(part) for name, part in fact._asdict().items()}
    if type(fact) in (list, tuple):
        return [_plain(part) for part in fact]  # type: ignore[attr-defined]
    return mask_secrets(str(getattr(fact, "id", fact)))
