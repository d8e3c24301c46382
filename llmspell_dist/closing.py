"""``with`` and ``async with`` for whatever is closed at the end of a block."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

__all__ = ["KEPT", "AsyncClosing", "Closing"]

KEPT: Final = 0.1
"""What hooks leave of a time limit to what is closed behind them."""


class AsyncClosing:
    """Has an asynchronous `close`, which the end of an ``async with`` block calls."""

    __slots__ = ()

    async def close(self) -> None:
        """Give back what is held; twice is allowed."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class Closing:
    """Has a `close`, which the end of a ``with`` block calls."""

    __slots__ = ()

    def close(self) -> None:
        """Give back what is held; twice is allowed."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
