"""Servers for the tests of programs that use the library; works with any test framework.

::

    with llmspell_dist.testing.memory_url() as url:
        async with llmspell_dist.connect(url) as spell:
            ...
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from llmspell_dist.redis.embedded import EmbeddedServer
from llmspell_dist.redis.locate import memory_servers

__all__ = ["embedded_server", "memory_url"]

_serial = itertools.count()


@contextmanager
def memory_url(name: str | None = None) -> Iterator[str]:
    """Give the URL of a server inside this process that starts empty and ends with the block.

    Fast to create and gone without trace; one process only, no persistence. Needs the extra
    ``memory``, else `StoreUnavailableError`. Two blocks with the same `name` at once share the
    server.
    """
    memory = memory_servers()
    chosen = name or f"testing-{os.getpid()}-{next(_serial)}"
    memory.acquire(chosen)
    try:
        yield f"memory://{chosen}"
    finally:
        memory.release(chosen)


@contextmanager
def embedded_server(
    *,
    binary: str | os.PathLike[str] | None = None,
    config: Mapping[str, str | int | tuple[str, ...]] | None = None,
) -> Iterator[EmbeddedServer]:
    """Give a real server in a temporary folder; its `url` is for ``connect``.

    It can be stopped, killed and started again inside the block, and keeps its data meanwhile.
    Comes from PATH, else from the extra ``embedded``. Raises `StoreUnavailableError` if there is
    none or it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="llmspell-") as folder:
        server = EmbeddedServer(folder=folder, binary=binary, config=config or {})
        with server:
            yield server
