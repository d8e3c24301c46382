"""Write and read your own types: dataclasses, and msgspec or pydantic models where installed.

``python typed_models.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from importlib.util import find_spec

import llmspell_dist
from llmspell_dist import CodecError

AGENT = "agent:buyer"


@dataclass
class Item:
    """A line of an order."""

    name: str
    price: Decimal


@dataclass
class Order:
    """What the agent is about to buy."""

    number: int
    placed: datetime
    items: list[Item] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)


async def main(url: str) -> None:
    """Take models through the store and get equal ones back."""
    async with llmspell_dist.connect(url, namespace="example-typed") as spell:
        state = spell.state
        await state.clear(AGENT)

        order = Order(7, datetime.now(UTC), [Item("lamp", Decimal("19.90"))], {"urgent"})
        await state.set(AGENT, "order", order)
        found = await state.get(AGENT, "order", as_type=Order)
        print(f"a dataclass comes back: {found}")
        assert found == order

        # Without as_type the same value is plain data: any program can read it.
        plain = await state.get(AGENT, "order")
        assert plain["items"] == [{"name": "lamp", "price": Decimal("19.90")}]

        # What does not fit says where.
        await state.set(AGENT, "order", {"number": "seven", "placed": None})
        try:
            await state.get(AGENT, "order", as_type=Order)
        except CodecError as error:
            print(f"refused: {error}")
        else:
            raise AssertionError("a wrong shape was accepted")

        if find_spec("msgspec"):
            await with_msgspec(state)
        if find_spec("pydantic"):
            await with_pydantic(state)
        await state.clear(AGENT)


async def with_msgspec(state: llmspell_dist.StateManager) -> None:
    """Do the same with a msgspec.Struct."""
    import msgspec  # noqa: PLC0415 - optional

    class Offer(msgspec.Struct):
        shop: str
        price: float

    await state.set(AGENT, "offer", Offer("corner shop", 21.5))
    assert await state.get(AGENT, "offer", as_type=Offer) == Offer("corner shop", 21.5)
    print("a msgspec.Struct comes back")


async def with_pydantic(state: llmspell_dist.StateManager) -> None:
    """Do the same with a pydantic model."""
    import pydantic  # noqa: PLC0415 - optional

    class Review(pydantic.BaseModel):
        stars: int = pydantic.Field(ge=1, le=5)
        text: str

    await state.set(AGENT, "review", Review(stars=4, text="bright"))
    assert await state.get(AGENT, "review", as_type=Review) == Review(stars=4, text="bright")
    print("a pydantic model comes back")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://typed"))
