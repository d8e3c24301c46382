"""What a client of a sidecar refuses by itself."""

from __future__ import annotations

from llmspell_dist.errors import InvalidArgumentError, SpellError

__all__ = ["NotThroughSidecarError", "OperationLostError"]


class NotThroughSidecarError(InvalidArgumentError, AttributeError):
    """The library has this, and a client of a sidecar has not."""

    code = "NOT_THROUGH_SIDECAR"

    def __init__(self, name: str, why: str) -> None:
        super().__init__("url", "http://…", f"must name Redis itself for {name}: {why}")


class OperationLostError(SpellError):
    """The end of something that takes long is not known: the sidecar ended it, or is away."""

    code = "OPERATION_LOST"
    may_have_happened = True
    """It may also have ended well before that."""

    def __init__(self, server: str, operation: str, why: str) -> None:
        self.server = server
        self.operation_id = operation
        self.why = why
        super().__init__(f"{server}: the end of operation {operation} is not known: {why}")
