"""JSON as it is typed: read without loss, refused in the words of the command line."""

from __future__ import annotations

import json
from typing import Any

from llmspell_dist.cli.wording import wrong
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.jsonable import from_json

__all__ = ["parse_json"]


def _no_constant(name: str) -> Any:
    raise ValueError(f'{name} is written {{"$float": "{float(name)}"}}')


def _no_json(why: str) -> InvalidArgumentError:
    return wrong("VALUE", f"must be JSON, or text with --text: {why}")


def parse_json(text: str) -> Any:
    """Return the value that a JSON text stands for; the error does not quote it."""
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _no_json(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise _no_json("it nests too deep") from None
    except ValueError as error:
        raise _no_json(str(error)) from None
    try:
        return from_json(document)
    except InvalidArgumentError as error:
        raise wrong(error.argument.replace("value", "VALUE", 1), error.rule) from None
    except RecursionError:
        raise _no_json("it nests too deep") from None
