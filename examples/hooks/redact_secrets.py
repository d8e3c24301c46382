"""A hook that redacts: secrets never reach the store, and mail addresses never leave it.

``python redact_secrets.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

import llmspell_dist
from llmspell_dist.hooks import HookContext, HookPoint, Modified, SecurityHook

SCOPE = "agent:example-redact"
MAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+")


def without_mail(value: Any) -> Any:
    """Mask mail addresses, wherever they are in the value."""
    if isinstance(value, str):
        return MAIL.sub("(mail)", value)
    if isinstance(value, dict):
        return {name: without_mail(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_mail(part) for part in value]
    return value


def mask_mail(ctx: HookContext) -> Modified | None:
    """Change what the caller of any read gets; what is stored stays as it is."""
    value = ctx.data["value"]
    masked = without_mail(value)
    return None if masked == value else Modified({"value": masked})


async def main(url: str) -> None:
    """Write a conversation with secrets, read it in every way there is."""
    async with llmspell_dist.connect(url, namespace="example-hooks") as spell:
        # A guard: if it fails itself, nothing is written or read.
        spell.hooks.register(HookPoint.BEFORE_STATE_WRITE, SecurityHook(), on_failure="cancel")
        spell.hooks.register(HookPoint.AFTER_STATE_READ, mask_mail, on_failure="cancel")

        await spell.state.clear(SCOPE)
        await spell.state.set(SCOPE, "login", {"user": "ann", "password": "hunter2"})
        await spell.state.append(SCOPE, "messages", "write to ann@example.org", "and to bob")
        async with spell.state.transaction() as tx:
            tx.merge(SCOPE, "login", {"api_key": "hunter3", "mail": "ann@example.org"})

        print("login:", await spell.state.get(SCOPE, "login"))
        print("messages:", await spell.state.get(SCOPE, "messages"))
        everything = repr(await spell.state.get_all(SCOPE))
        everything += repr(await spell.state.history(SCOPE, "login"))
        everything += repr([item async for item in spell.state.items(SCOPE)])
        assert "hunter" not in everything
        assert "@example.org" not in everything

        # Without the hook behind reads the mail address is there, and the secrets are not.
        spell.hooks.disable("mask_mail")
        stored = await spell.state.get(SCOPE, "login")
        print("stored:", stored)
        assert stored == {
            "user": "ann",
            "password": "***",
            "api_key": "***",
            "mail": "ann@example.org",
        }
        await spell.state.clear(SCOPE)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://redact"))
