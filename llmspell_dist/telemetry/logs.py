"""Structured logs: a line of JSON a record, and the same records to an OpenTelemetry collector.

A record says when, how grave, who logs and what; in which trace and correlation, on whose behalf;
and of an error its code and where it came from. What it never says: the message of an exception
that is attached (it may show what somebody passed), the value in an `InvalidArgumentError`, and
what looks like a password, token or key.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from time import time_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from opentelemetry._logs import LogRecord, SeverityNumber

from llmspell_dist.context import get_context
from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.masking import mask_text
from llmspell_dist.telemetry.sampling import active_span, code_of

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider

__all__ = ["JSONFormatter", "OTLPHandler"]

_LEVELS: Final = (
    (logging.CRITICAL, SeverityNumber.FATAL, "FATAL"),
    (logging.ERROR, SeverityNumber.ERROR, "ERROR"),
    (logging.WARNING, SeverityNumber.WARN, "WARN"),
    (logging.INFO, SeverityNumber.INFO, "INFO"),
    (logging.DEBUG, SeverityNumber.DEBUG, "DEBUG"),
)


def message_of(record: logging.LogRecord) -> str:
    """Return what a record says; of an argument that was refused its rule, not its value."""
    arguments: Any = record.args
    if isinstance(arguments, Mapping):
        arguments = {name: _shown(value) for name, value in arguments.items()}
    elif arguments:
        arguments = tuple(_shown(value) for value in arguments)
    try:
        said = str(record.msg) % arguments if arguments else str(_shown(record.msg))
    except (TypeError, ValueError, KeyError):
        said = str(record.msg)  # a wrong format is no reason to lose the record
    return mask_text(said)


def _shown(value: Any) -> Any:
    if isinstance(value, InvalidArgumentError):
        return f"{value.argument} {value.rule}"
    return value


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what is known beside the message: correlation, actor, and the error."""
    said: dict[str, Any] = {}
    context = get_context()
    if context is not None:
        for name in ("correlation_id", "causation_id", "actor"):
            value = getattr(context, name)
            if value is not None:
                said[name] = value
    error = record.exc_info[1] if record.exc_info else _error_among(record.args)
    if error is not None:
        said["error.type"] = code_of(error)
    if record.exc_info and record.exc_info[1] is not None:
        said["exception.type"] = type(record.exc_info[1]).__qualname__
        said["exception.stacktrace"] = _places(record.exc_info[2])
    return said


def _error_among(arguments: Any) -> SpellError | None:
    if isinstance(arguments, tuple):
        return next((one for one in arguments if isinstance(one, SpellError)), None)
    return None


def _places(where: TracebackType | None) -> str:
    """Return the way of an exception, without its message and without lines of source."""
    frames = traceback.extract_tb(where)
    return "\n".join(f"{one.filename}:{one.lineno} in {one.name}" for one in frames)


class JSONFormatter(logging.Formatter):
    """Formats a record as one line of JSON; for any handler of the standard library."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said: dict[str, Any] = {
            "timestamp": when.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": message_of(record),
        }
        span = active_span().get_span_context()
        if span.is_valid:
            said["trace_id"] = f"{span.trace_id:032x}"
            said["span_id"] = f"{span.span_id:016x}"
        said.update(facts_of(record))
        return json.dumps(said, ensure_ascii=False, default=str)


class OTLPHandler(logging.Handler):
    """Hands records to OpenTelemetry, as `JSONFormatter` would show them.

    The SDK's own handler is deprecated, and sends exceptions with their messages and whatever lies
    in a record's attributes.
    """

    def __init__(self, provider: LoggerProvider, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record over; those of OpenTelemetry itself are not, lest they go in circles."""
        if record.name.startswith("opentelemetry"):
            return
        try:
            number, text = _severity(record.levelno)
            self._provider.get_logger(record.name).emit(
                LogRecord(
                    timestamp=int(record.created * 1e9),
                    observed_timestamp=time_ns(),
                    severity_text=text,
                    severity_number=number,
                    body=message_of(record),
                    attributes=facts_of(record),
                )
            )
        except Exception:  # noqa: BLE001 - as every handler: logging breaks no program
            self.handleError(record)


def _severity(level: int) -> tuple[SeverityNumber, str]:
    for least, number, text in _LEVELS:
        if level >= least:
            return number, text
    return SeverityNumber.TRACE, "TRACE"
