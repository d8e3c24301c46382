"""docs/kubernetes says what is so: the Secrets that are expected, the files, commands and YAML."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from fix_k8s import COMPONENTS, K8S, OVERLAYS, ROOT
from k8s_rules.commands import wrong_words
from k8s_rules.secrets import GIVEN

pytestmark = pytest.mark.unit

PAGE = ROOT / "docs" / "kubernetes" / "README.md"


@pytest.fixture(scope="module")
def text() -> str:
    """The page."""
    return PAGE.read_text(encoding="utf-8")


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_every_secret_that_the_manifests_expect_is_listed(text: str) -> None:
    """With all its keys, and no other."""
    rows = re.findall(r"^\| `(llmspell-[a-z-]+)` \| ((?:`[\w.]+`(?:, )?)+) \|", text, re.MULTILINE)
    listed = {name: set(re.findall(r"`([\w.]+)`", keys)) for name, keys in rows}
    assert listed == GIVEN


def test_every_component_and_overlay_is_named(text: str) -> None:
    """Both in the page and in the folder's own."""
    short = (K8S / "README.md").read_text(encoding="utf-8")
    for name in (*COMPONENTS, *OVERLAYS):
        assert f"`{name}`" in text, name
        assert f"`{name}`" in short, name


def test_the_yaml_is_yaml(text: str) -> None:
    """Whatever is there to be copied can be read."""
    for block in _blocks(text, "yaml"):
        assert list(yaml.safe_load_all(block))


def test_the_access_file_is_one(text: str, tmp_path: Path) -> None:
    """The sidecar takes the example as it stands."""
    from llmspell_dist.sidecar.auth.reading import read_entries

    (block,) = _blocks(text, "toml")
    entries = read_entries(block.encode(), tmp_path / "access.toml")
    assert entries.tokens
    assert entries.issuers


def test_the_commands_exist(text: str) -> None:
    """Every llmspell-dist that is typed or run in a pod is one that the program takes."""
    found = [
        shlex.split(words.split("|")[0].split(">")[0], comments=True)
        for block in _blocks(text, "console")
        for words in re.findall(r"llmspell-dist ((?!@|=)[a-z].*)", block)
    ]
    assert found
    for words in found:
        assert list(wrong_words(words)) == [], words


def test_the_folders_that_commands_name_are_there(text: str) -> None:
    """`kubectl apply -k k8s/…` would fail on a typing error."""
    for path in re.findall(r"\bk8s/[\w/.-]*\w", text):
        assert (ROOT / path).exists(), path
