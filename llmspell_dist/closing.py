"""``with`` and ``async with`` for whatever is closed at the end of a block."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Self, TypeVar

__all__ = ["KEPT", "AsyncClosing", "AsyncOpening", "Closing"]

T = TypeVar("T", bound=AbstractAsyncContextManager[Any])
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


class AsyncOpening(Generic[T]):
    """What a call returns that opens something: by ``async with``, or ``await`` and closed by hand.

    Who forgets both is told so where the mistake shows, not that some class lacks something.
    """

    __slots__ = ("_entered", "_opened")

    call = ""
    """How users write the call."""
    blocking = ""
    """Its twin for code without an event loop."""

    def __init__(self) -> None:
        self._entered = False

    async def open(self) -> T:
        """Open it."""
        raise NotImplementedError

    def __await__(self) -> Generator[Any, None, T]:
        return self.open().__await__()

    async def __aenter__(self) -> T:
        if self._entered:
            raise RuntimeError(f"{self.call} is entered already: each block needs its own")
        self._entered = True
        try:
            self._opened = await self.open()
        except BaseException:
            self._entered = False
            raise
        return self._opened

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered = False
        await self._opened.__aexit__(kind, error, traceback)

    if not TYPE_CHECKING:  # type checkers say it themselves

        def __getattr__(self, name: str) -> NoReturn:
            said = f"{self._forgotten()}: it has no {name!r} yet"
            raise AttributeError(said, name=name, obj=self)

        def __enter__(self) -> NoReturn:
            raise TypeError(f"{self._forgotten()}; for code without an event loop: {self.blocking}")

        def __exit__(self, *_: object) -> None: ...

        def _forgotten(self) -> str:
            return f"{self.call} needs `await` or `async with` before it"


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
