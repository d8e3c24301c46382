"""What a sidecar remembers of its clients' writes: bounded, and aware of what was forgotten.

Each principal has bounds of its own and pays for them with its own memory. A counter moves on with
whatever is forgotten; what a client was told last says up to where the counter was, and so whether
anything of it can have been forgotten since.
"""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    import asyncio

    from llmspell_dist.sidecar.reply import Reply

__all__ = ["Memory", "RememberedClient"]

KEPT_S: Final = 600.0
"""For how long a client that sends nothing is remembered."""
MAX_CLIENTS: Final = 10_000
"""Of one principal; those that were silent for the longest go first."""
MAX_ENTRIES: Final = 10_000
"""Of one principal: writes whose answer may not have arrived."""
MAX_HELD: Final = 50_000
"""Clients and entries of all; who holds the most gives way."""

_LEAST: Final = 2
"""A client and its write: who holds no more gives nothing up while another does."""

Carried: TypeAlias = "asyncio.Task[Reply | None]"


class RememberedClient:
    """The writes of one client that may come again."""

    __slots__ = ("born", "entries", "floor", "owner", "seen")

    def __init__(self, owner: _Owner, born: int) -> None:
        self.owner = owner
        self.born = born
        """What was carried out since is known here, down to `floor`."""
        self.entries: OrderedDict[int, Carried] = OrderedDict()
        self.floor = 0
        """Numbers below it are settled, or forgotten."""
        self.seen = 0.0


class _Owner:
    """The clients of one principal, those that were silent for the longest first."""

    __slots__ = ("clients", "entries", "forgot", "seen")

    def __init__(self, forgot: int) -> None:
        self.clients: OrderedDict[str, RememberedClient] = OrderedDict()
        self.entries = 0
        self.forgot = forgot
        """When a client of it was forgotten last, by the counter."""
        self.seen = 0.0

    @property
    def held(self) -> int:
        return len(self.clients) + self.entries


class Memory:
    """Clients by principal and name, with the writes of each."""

    def __init__(self) -> None:
        self.moment = 0
        """Moves on when a client is forgotten."""
        self._owners: OrderedDict[str, _Owner] = OrderedDict()
        self._held = 0
        self._dropped = 0
        """When a principal was forgotten last."""

    def find(self, label: str, name: str) -> RememberedClient | None:
        """Return a client that is remembered."""
        owner = self._owners.get(label)
        return None if owner is None else owner.clients.get(name)

    def never_made(self, label: str, name: str, number: int, since: int) -> bool:
        """Return whether a write that is not remembered was certainly not carried out.

        `since`: a moment before it was sent for the first time.
        """
        owner = self._owners.get(label)
        client = None if owner is None else owner.clients.get(name)
        if client is not None:
            if number < client.floor:
                return False
            if client.born <= since:
                return True
        return (self._dropped if owner is None else owner.forgot) <= since

    def client(self, label: str, name: str) -> RememberedClient:
        """Return a client, remembered from now on; those silent for long are forgotten."""
        now = monotonic()
        owner = self._owners.get(label)
        if owner is None:
            owner = self._owners[label] = _Owner(self._dropped)
        else:
            self._owners.move_to_end(label)
        owner.seen = now
        client = owner.clients.get(name)
        if client is not None:
            owner.clients.move_to_end(name)
            client.seen = now
        self._forget_idle(owner, now)
        if client is None:
            while len(owner.clients) >= MAX_CLIENTS:
                self._forget_oldest(owner)
            self._make_room()
            client = owner.clients[name] = RememberedClient(owner, self.moment)
            client.seen = now
            self._held += 1
        return client

    def keep(self, client: RememberedClient, number: int, carried: Carried) -> None:
        """Remember a write of a client; in the place of what was known of it."""
        owner = client.owner
        if number not in client.entries:
            while owner.entries >= MAX_ENTRIES:
                self._forget_entry(owner)
            self._make_room()
            owner.entries += 1
            self._held += 1
        client.entries[number] = carried

    def drop(self, client: RememberedClient, number: int, carried: Carried) -> None:
        """Forget a write that did not happen: it may be tried again."""
        if client.entries.get(number) is carried:
            del client.entries[number]
            self._count_out(client.owner)

    def settle(self, client: RememberedClient, below: int) -> None:
        """Forget what the client has heard of."""
        entries = client.entries
        while entries and next(iter(entries)) < below:
            self._forget_first(client)

    # --- forgetting

    def _forget_first(self, client: RememberedClient) -> None:
        number, _ = client.entries.popitem(last=False)
        client.floor = max(client.floor, number + 1)
        self._count_out(client.owner)

    def _count_out(self, owner: _Owner) -> None:
        owner.entries -= 1
        self._held -= 1

    def _forget_entry(self, owner: _Owner) -> None:
        """Forget the oldest write of the client that was silent for the longest."""
        oldest = next(iter(owner.clients.values()))
        if oldest.entries:
            self._forget_first(oldest)
        if not oldest.entries and len(owner.clients) > 1:
            self._forget_oldest(owner)

    def _forget_oldest(self, owner: _Owner) -> None:
        _, client = owner.clients.popitem(last=False)
        size = len(client.entries)
        client.entries.clear()
        owner.entries -= size
        self._held -= size + 1
        self.moment += 1
        owner.forgot = self.moment

    def _forget_idle(self, present: _Owner, now: float) -> None:
        while now - next(iter(self._owners.values())).seen >= KEPT_S:
            self._forget_owner()
        clients = present.clients
        while clients and now - next(iter(clients.values())).seen >= KEPT_S:
            self._forget_oldest(present)

    def _forget_owner(self) -> None:
        _, owner = self._owners.popitem(last=False)
        while owner.clients:
            self._forget_oldest(owner)
        self._dropped = self.moment

    def _make_room(self) -> None:
        """Keep all together within bounds: at the cost of who holds the most."""
        while self._held >= MAX_HELD:
            largest = max(self._owners.values(), key=lambda owner: owner.held)
            if largest.held <= _LEAST:
                if len(self._owners) == 1:
                    return
                self._forget_owner()
            elif largest.entries:
                self._forget_entry(largest)
            else:
                self._forget_oldest(largest)
