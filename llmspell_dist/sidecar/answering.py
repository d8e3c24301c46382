"""Turns a reply, or an error, into the two messages of an ASGI response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmspell_dist.sidecar.bodies import JSON, MESSAGEPACK, plain
from llmspell_dist.sidecar.endpoint import VALUE
from llmspell_dist.sidecar.packing import packed
from llmspell_dist.sidecar.problems import PROBLEM, PROBLEM_MESSAGEPACK, problem_of

if TYPE_CHECKING:
    from llmspell_dist.sidecar.call import Call
    from llmspell_dist.sidecar.reply import Reply
    from llmspell_dist.sidecar.services import Services

__all__ = ["Answering"]

Messages = tuple[dict[str, Any], dict[str, Any]]
_PROBLEMS: Final = {JSON: PROBLEM, MESSAGEPACK: PROBLEM_MESSAGEPACK}
_CONTENT_TYPES: Final = {
    media: (b"content-type", media.encode()) for media in (JSON, MESSAGEPACK, *_PROBLEMS.values())
}
_NOT_KEPT: Final = (b"cache-control", b"no-store")
"""State changes without a word to caches, and may be secret."""
_NO_LENGTH: Final = frozenset({204, 304})


class Answering:
    """Writes answers in the form that the client asked for."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._write = services.bodies.write

    def reply(self, reply: Reply, call: Call) -> Messages:
        """Return the response of a reply."""
        headers, status = list(reply.headers), reply.status
        body = b""
        if not reply.empty:
            body, media = self._body(reply, call)
            encoding = call.headers.get(b"accept-encoding")
            if encoding is not None:
                body, used = packed(body, encoding)
                if used is not None:
                    headers += [(b"content-encoding", used), (b"vary", b"accept-encoding")]
            headers.append(_CONTENT_TYPES.get(media) or (b"content-type", media.encode()))
        method = call.scope["method"]
        head = method == "HEAD"
        if head or method == "GET" or reply.problem:
            headers.append(_NOT_KEPT)
        if status not in _NO_LENGTH and not (head and reply.empty):  # that of a GET is not known
            headers.append((b"content-length", b"%d" % len(body)))
        if self._services.draining:
            headers.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": status, "headers": headers}
        if head:
            body = b""
        return start, {"type": "http.response.body", "body": body}

    def _body(self, reply: Reply, call: Call) -> tuple[bytes, str]:
        document = reply.document
        if reply.media is not None:
            return document, reply.media
        wanted = call.wanted
        if call.endpoint.returns is not VALUE or isinstance(document, msgspec.Struct):
            document = plain(document)
        return self._write(document, wanted), _PROBLEMS[wanted] if reply.problem else wanted

    def problem(self, error: Exception, wanted: str) -> tuple[int, Messages]:
        """Return the status and the response of an error."""
        problem = problem_of(error)
        body = self._write(problem.document, wanted)
        headers = [
            _CONTENT_TYPES[_PROBLEMS[wanted]],
            (b"content-length", b"%d" % len(body)),
            _NOT_KEPT,
            *problem.headers,
        ]
        if self._services.draining:
            headers.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": problem.status, "headers": headers}
        return problem.status, (start, {"type": "http.response.body", "body": body})
