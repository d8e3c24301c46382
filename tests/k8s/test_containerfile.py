"""The Containerfile, read as a builder reads it: what it stands on, who runs, what gets in."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from dataclasses import dataclass, field

import pytest
from fix_k8s import ROOT, Render

pytestmark = pytest.mark.unit

_SECRET = re.compile(r"(?i)passw|secret|token|credential|api_?key|AKIA|BEGIN [A-Z ]*PRIVATE")
_FROM = re.compile(r"(?P<base>\S+)(?: AS (?P<name>\S+))?")


@dataclass
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def of(self, word: str) -> list[str]:
        return [rest for found, rest in self.lines if found == word]


def parse(text: str) -> tuple[list[tuple[str, str]], list[Stage]]:
    """Return what stands before the first stage, and the stages."""
    joined = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    before: list[tuple[str, str]] = []
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        assert word.isupper(), line
        rest = " ".join(rest.split())
        if word == "FROM":
            found = _FROM.fullmatch(rest)
            assert found, line
            stages.append(Stage(found["base"], found["name"] or ""))
        else:
            (stages[-1].lines if stages else before).append((word, rest))
    return before, stages


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    """The stages by name, in order."""
    return {one.name: one for one in parse((ROOT / "Containerfile").read_text())[1]}


def _lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """Return a stage and those that it builds on, the nearest first."""
    found = [stages[name]]
    while found[-1].base in stages:
        found.append(stages[found[-1].base])
    return found


def _last(stages: dict[str, Stage], name: str, word: str) -> str:
    return next(rest for one in _lineage(stages, name) for rest in reversed(one.of(word)))


def test_the_base_is_a_variable_that_the_builder_gives() -> None:
    """No default, so no tag and no registry; every stage stands on it or on another stage."""
    before, stages = parse((ROOT / "Containerfile").read_text())
    assert before == [("ARG", "BASE")]
    names = {one.name for one in stages}
    assert all(one.base == "${BASE}" or one.base in names for one in stages)


def test_what_is_built_without_a_target_is_the_sidecar(stages: dict[str, Stage]) -> None:
    """The last stage, and it has neither the builder's tools nor the load tests."""
    assert list(stages)[-1] == "sidecar"
    assert [one.name for one in _lineage(stages, "sidecar")] == ["sidecar", "runtime"]


@pytest.mark.parametrize("name", ["sidecar", "load"])
def test_it_runs_as_somebody_without_rights(
    stages: dict[str, Stage], name: str, overlay: Render
) -> None:
    """By number, as the kubelet wants it for runAsNonRoot, and the number of the manifests."""
    user, group = _last(stages, name, "USER").split(":")
    assert int(user) >= 10000
    assert int(group) >= 10000
    users = {
        (one.pod.get("securityContext", {}) | container.spec["securityContext"])["runAsUser"]
        for one in overlay("load").workloads
        for container in one.containers
        if container.image in {"llmspell-dist", "llmspell-load"}
    }
    assert users == {int(user)}


@pytest.mark.parametrize("name", ["sidecar", "load"])
def test_it_starts_without_a_shell(stages: dict[str, Stage], name: str) -> None:
    """In exec form, by a whole path: signals reach the program itself."""
    entry, words = _last(stages, name, "ENTRYPOINT"), _last(stages, name, "CMD")
    assert json.loads(entry)[0].startswith("/opt/llmspell/bin/")
    assert isinstance(json.loads(words), list)
    assert not any(one.of("RUN") for one in _lineage(stages, name))


def test_it_works_where_nothing_can_be_written(stages: dict[str, Stage]) -> None:
    """No bytecode, home and working folder in /tmp, no volume of its own."""
    told = " ".join(stages["runtime"].of("ENV"))
    assert "PYTHONDONTWRITEBYTECODE=1" in told
    assert "HOME=/tmp" in told
    assert stages["runtime"].of("WORKDIR") == ["/tmp"]
    assert not any(one.of("VOLUME") for one in stages.values())


def test_nothing_comes_from_the_internet_but_packages(stages: dict[str, Stage]) -> None:
    """No ADD, no download: only what is copied, and what pip resolves."""
    for one in stages.values():
        assert not one.of("ADD")
        for line in one.of("RUN"):
            assert not re.search(r"curl|wget|git |https?://|apt|sudo|chmod|--index|--trusted", line)


def test_our_package_cannot_be_another_one_of_that_name(stages: dict[str, Stage]) -> None:
    """The wheel is installed by its file; by name, an index might have a newer one."""
    for name in ("build", "build-load"):
        for line in stages[name].of("RUN"):
            if " install " in line:
                assert re.search(r'set -- /wheels/\*\.whl && .* install "\$1\[', line), line


def test_no_secret_is_built_in(stages: dict[str, Stage]) -> None:
    """Neither an argument nor a variable nor a file looks like one."""
    for one in stages.values():
        for word, rest in one.lines:
            if word in {"ARG", "ENV", "COPY", "LABEL"}:
                assert not _SECRET.search(rest), rest


def test_the_extras_that_are_installed_exist(stages: dict[str, Stage]) -> None:
    """Pip only warns of an extra that there is not, and the image would lack it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (told,) = stages["build"].of("ARG")
    chosen = set(told.removeprefix("EXTRAS=").split(","))
    assert chosen <= extras.keys()
    assert {"backup", "embedded", "sidecar", "otel"} <= chosen
    (line,) = stages["build-load"].of("RUN")
    more = re.search(r"\[\$\{EXTRAS\},(\w+)\]", line)
    assert more
    assert more[1] in extras


def test_what_the_wheel_is_made_of_is_copied(stages: dict[str, Stage]) -> None:
    """The build would fail without the readme, the license or the scripts that it includes."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, wheel = table["project"], table["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {"pyproject.toml", project["readme"], *project["license-files"]}
    wanted |= {*wheel["packages"], *wheel["force-include"]}
    copied = {name for line in stages["build"].of("COPY") for name in line.split()[:-1]}
    assert copied == wanted


def test_what_is_copied_is_there_and_reaches_the_builder(stages: dict[str, Stage]) -> None:
    """.containerignore lets in exactly what the Containerfile copies, and no more."""
    lines = (ROOT / ".containerignore").read_text().splitlines()
    rules = [line for line in lines if line and line[0] != "#"]
    assert rules[0] == "*"
    let_in = {line[1:] for line in rules if line.startswith("!")}
    copied: set[str] = set()
    for one in stages.values():
        for line in one.of("COPY"):
            if not line.startswith("--from="):
                *sources, _ = line.split()
                copied.update(sources)
    assert copied == let_in
    for name in copied:
        assert (ROOT / name).exists(), name
    for kept_out in (".git", ".env", "tests", "id_rsa", "backup-keys"):
        assert not any(fnmatch.fnmatch(kept_out, one) for one in let_in)
