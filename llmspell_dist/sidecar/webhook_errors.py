"""What can go wrong with a webhook."""

from __future__ import annotations

from llmspell_dist.errors import SpellError

__all__ = ["WebhookError"]


class WebhookError(SpellError):
    """The receiver of a webhook could not be reached, or did not answer as it must."""

    code = "WEBHOOK"

    def __init__(self, host: str, reason: str, status: int | None = None) -> None:
        self.host = host
        self.reason = reason
        self.status = status
        super().__init__(f"the webhook at {host} {reason}")

    @property
    def worth_retrying(self) -> bool:
        """Whether the same request may succeed in a moment."""
        return self.status is None or self.status in {429, 502, 503, 504}
