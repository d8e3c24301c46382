"""The context in force, as the headers of a request: who asks, on whose behalf, in which trace."""

from __future__ import annotations

from urllib.parse import quote

from llmspell_dist.context import get_context
from llmspell_dist.correlation.context import current_correlation
from llmspell_dist.correlation.headers import to_headers
from llmspell_dist.correlation.traceparent import active_traceparent

__all__ = ["context_headers"]

_SAFE = "!#$&'()*+./:;<=>?@[]^_`{|}~"


def context_headers(client_name: str | None) -> dict[str, str]:
    """Return the headers that say what a commit made by the request belongs to.

    Raises what stops commits here, as in a simulation (`CommitContext.refuse`).
    """
    said = get_context()
    if said is None:
        headers = {} if client_name is None else {"x-actor": quote(client_name, safe=_SAFE)}
        if (trace := active_traceparent()) is not None:
            headers["traceparent"] = str(trace)
        return headers
    found = current_correlation()
    headers = {} if found is None else to_headers(found, causation_id=said.causation_id)
    if found is None and said.causation_id is not None:
        headers["x-causation-id"] = quote(said.causation_id, safe=_SAFE)
    if "traceparent" not in headers and (trace := active_traceparent()) is not None:
        headers["traceparent"] = str(trace)
    actor = said.actor or client_name
    if actor is not None:
        headers["x-actor"] = quote(actor, safe=_SAFE)
    return headers
