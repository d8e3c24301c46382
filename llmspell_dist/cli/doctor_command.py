"""``doctor``: what is wrong with the server, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.output import Output
from llmspell_dist.cli.settings import Settings, command
from llmspell_dist.config import default_url, parse_url
from llmspell_dist.errors import InvalidArgumentError

if TYPE_CHECKING:
    from llmspell_dist.doctor import Finding

__all__ = ["register"]

# By the rank of the severity.
_MARKS = (("✓", "green"), ("i", "blue"), ("!", "yellow"), ("✗", "bold red"))


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "doctor")(doctor)


async def doctor(
    settings: Settings,
    *,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="CHECK", help="Leave a check out; can be repeated."),
    ] = None,
) -> Exit:
    """Check the server and say what to do; exit code 10 for problems, 11 for warnings only.

    It writes into a scratch namespace and removes that again. -q shows problems and warnings only.
    """
    # Imported here: no other command needs it.
    from llmspell_dist.doctor import CHECKS, Severity  # noqa: PLC0415

    left_out = ignore or []
    for name in left_out:
        if name not in CHECKS:
            raise InvalidArgumentError("--ignore", name, f"must be one of {', '.join(CHECKS)}")
    found = await (_through_sidecar(settings) if settings.through_sidecar else _seen(settings))
    findings = [one for one in found.findings if one.check not in left_out]
    worst = max((finding.severity for finding in findings), key=lambda s: s.rank, default=None)
    if settings.as_json:
        settings.output.document(
            {
                "url": found.url,
                "server": {"flavour": found.flavour, "version": found.version},
                "namespace": found.namespace,
                "worst": (worst or Severity.OK).value,
                "findings": [
                    {
                        "check": finding.check,
                        "severity": finding.severity.value,
                        "found": finding.found,
                        "advice": finding.advice or None,
                    }
                    for finding in findings
                ],
            }
        )
    else:
        _show([f for f in findings if not settings.quiet or f.severity.rank > 1], settings.output)
    if worst is Severity.PROBLEM:
        return Exit.PROBLEMS
    return Exit.WARNINGS if worst is Severity.WARNING else Exit.OK


class _Found(NamedTuple):
    """What was found, and where."""

    url: str
    flavour: str
    version: str
    namespace: str
    findings: list[Finding]


async def _seen(settings: Settings) -> _Found:
    """Look at the server."""
    from llmspell_dist.doctor import collect, diagnose  # noqa: PLC0415

    facts = await collect(settings.url, options=settings.options)
    url = str(parse_url(settings.url or default_url()))
    return _Found(url, facts.flavour, facts.version, facts.namespace, diagnose(facts))


async def _through_sidecar(settings: Settings) -> _Found:
    """Have a sidecar look at the server behind it, as its user and from its place."""
    from llmspell_dist.doctor import Finding, Severity  # noqa: PLC0415
    from llmspell_dist.remote.operators import Operators  # noqa: PLC0415

    async with settings.connect() as spell:
        operators = Operators(spell)
        told = await operators.doctor()
    findings = [
        Finding(one["check"], Severity(one["severity"]), one["found"], one["advice"] or "")
        for one in told["findings"]
    ]
    server = told["server"]
    return _Found(
        *(operators.server, server["flavour"], server["version"], told["namespace"], findings)
    )


def _show(findings: list[Finding], output: Output) -> None:
    if not output.terminal:
        output.table((), [(f.severity.value, f.check, f.found, f.advice) for f in findings])
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.padding import Padding  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.severity.rank]
        said = Text(finding.found)
        if finding.advice:
            said.append(f"\n→ {finding.advice}", style="dim" if finding.severity.rank < 2 else "")
        table.add_row(Text(mark, style=style), Text(finding.check, style=style), said)
    Console().print(Padding(table, (0, 0, 0, 1)))
