"""A mail is sent once, whoever dies when; and where nobody can know, somebody is asked.

``python effects_run_once.py [URL]``; without a URL everything happens inside this process.
"""

from __future__ import annotations

import asyncio
import sys

import llmspell_dist
from llmspell_dist.agents import AgentState, EffectFailedError, EffectUnknownError

AGENT = "example-mailer"


class MailServer:
    """Counts what it sends."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send(self, to: str) -> str:
        """Send a mail and return its id."""
        self.sent.append(to)
        return f"mail-{len(self.sent)}"

    async def send_and_lose_the_reply(self, to: str) -> str:
        """Send it, and break before anybody hears of it."""
        await self.send(to)
        raise ConnectionError("the reply was lost")

    def refuse(self, to: str) -> str:
        """Say that there is no such user."""
        raise ValueError(f"no user {to}")


async def main(url: str) -> None:
    """Show an effect in each of its states."""
    mail = MailServer()
    async with llmspell_dist.connect(url, namespace="example-agents") as spell:
        await spell.agents.delete(AGENT)
        await spell.agents.save(AgentState.new(AGENT, "mailer"))

        async with spell.agents.run(AGENT, label="worker 1") as agent:
            first = await agent.effect("welcome:bob").run(mail.send, "bob")
            # An exception that says "certainly not done" makes a failure, and that may be retried.
            try:
                await agent.effect("welcome:zoe", failed_on=ValueError).run(mail.refuse, "zoe")
            except ValueError as error:
                print(f"failed: {error}")
            # The reply is lost: it was sent or not, nobody here can tell.
            try:
                await agent.effect("welcome:ann").run(mail.send_and_lose_the_reply, "ann")
            except ConnectionError as error:
                print(f"unknown: {error}")

        async with spell.agents.run(AGENT, label="worker 2") as agent:
            assert await agent.effect("welcome:bob").run(mail.send, "bob") == first
            try:
                await agent.effect("welcome:zoe").run(mail.send, "zoe")
            except EffectFailedError as error:
                print(error)
            await agent.effect("welcome:zoe", retry_failed=True).run(mail.send, "zoe")
            try:
                await agent.effect("welcome:ann").run(mail.send, "ann")
            except EffectUnknownError as error:
                print(error)
                if "ann" in mail.sent:  # found out where the truth is: at the mail server
                    await agent.effect("welcome:ann").resolve("mail-2")

            for record in await agent.effects():
                print(f"{record.key}: {record.status}, {record.attempts} attempts, {record.result}")
            assert {record.status.value for record in await agent.effects()} == {"committed"}

        assert sorted(mail.sent) == ["ann", "bob", "zoe"]
        await spell.agents.delete(AGENT)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://example"))
