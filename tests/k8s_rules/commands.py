"""Rules for what the containers run: commands, options and variables that the program has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from k8s_rules.model import Container, Manifests, Rule

import llmspell_dist

LOADTESTS: Final = Path(__file__).resolve().parents[2] / "loadtests"
_FOREIGN: Final = re.compile(r"OTEL_[A-Z_]+|AWS_[A-Z_]+|LOCUST_[A-Z_]+")
"""Variables of libraries, which the program hands on."""


@cache
def _program() -> Any:
    from typer.main import get_command

    from llmspell_dist.cli.app import app

    return get_command(app)


@cache
def variables() -> frozenset[str]:
    """Return every variable that is a literal of the package's code, or that an option reads."""
    package = Path(next(iter(llmspell_dist.__path__)))
    found: set[str] = set()
    for file in (*package.rglob("*.py"), *LOADTESTS.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        found.update(re.findall(r"[\"'](LLMSPELL_[A-Z_]+)[\"']", text))
    todo = [_program()]
    while todo:
        command = todo.pop()
        todo += getattr(command, "commands", {}).values()
        for option in command.params:
            named = getattr(option, "envvar", None) or ()
            found.update([named] if isinstance(named, str) else named)
    return frozenset(found)


def commands(manifests: Manifests) -> Iterator[str]:
    """The arguments of our image are a command of the program, with options that it has."""
    for one in manifests.workloads:
        for container in one.containers:
            if container.ours:
                if "command" in container.spec:
                    yield f"{one.name}/{container.name}: command replaces the image's entry point"
                words = [str(word) for word in container.spec.get("args", ())]
                yield from (f"{one.name}/{container.name}: {why}" for why in wrong_words(words))


def wrong_words(words: list[str]) -> Iterator[str]:
    """Say what of a command line the program does not have."""
    found, rest = _program(), list(words)
    while getattr(found, "commands", None) is not None:
        name = rest.pop(0) if rest else ""
        if name not in found.commands:
            yield f"there is no command {name or '(none)'} in {found.name}"
            return
        found = found.commands[name]
    try:
        context = found.make_context(found.name, rest, resilient_parsing=False)
    except Exception as error:  # whatever click it is: known by its shape
        if not hasattr(error, "format_message"):
            raise
        yield f"{' '.join(words)}: {error.format_message()}"
        return
    policy = context.params.get("policy")
    if policy:
        from llmspell_dist.backup.retention import RetentionPolicy
        from llmspell_dist.errors import InvalidArgumentError

        try:
            RetentionPolicy.parse(policy)
        except InvalidArgumentError as error:
            yield f"--policy: {error.rule}"


def environment(manifests: Manifests) -> Iterator[str]:
    """Every variable is one that the program reads, or is named by one that it reads."""
    for one in manifests.workloads:
        for container in one.containers:
            if not container.ours and container.image != "llmspell-load":
                continue
            values = [container.value(name) or "" for name in container.env]
            named = {text.removeprefix("env:") for text in values if text.startswith("env:")}
            named.update(name for text in values for name in re.findall(r"\$\((\w+)\)", text))
            for name in (*container.env, *_from_maps(manifests, container)):
                if name not in variables() | named and not _FOREIGN.fullmatch(name):
                    yield f"{one.name}/{container.name}: nobody reads {name}"


def _from_maps(manifests: Manifests, container: Container) -> Iterator[str]:
    for source in container.spec.get("envFrom", ()):
        name = source.get("configMapRef", {}).get("name")
        for one in manifests.of("ConfigMap"):
            if one["metadata"]["name"] == name:
                yield from one["data"]


RULES: Final[dict[str, Rule]] = {"commands": commands, "environment": environment}
