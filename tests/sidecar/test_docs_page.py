"""The page of the API: complete, and made of nothing that would have to be fetched.

Read by an HTML parser, and shown by a real browser, Debian's Chromium, which CI installs.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fix_sidecar import Sidecar

from llmspell_dist.sidecar.routes import all_endpoints

pytestmark = pytest.mark.one_server

VOID = {"meta", "br", "td", "th", "link", "img", "input", "hr"}
"""Elements that need no end, or need not have one."""


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        """Return all values of an attribute."""
        return [attrs[attribute] or "" for _, attrs in self.tags if attribute in attrs]


@pytest.fixture
async def answer(sidecar: Sidecar) -> httpx.Response:
    """The page as it is served."""
    return await sidecar.ask("GET", "/docs")


async def test_the_page_loads_nothing(answer: httpx.Response) -> None:
    """No script, picture, font or style from anywhere; and its policy forbids them."""
    page = Page(answer.text)
    used = {tag for tag, _ in page.tags}
    assert not used & {"script", "link", "img", "iframe", "object", "embed", "video", "form"}
    assert not page.values("src")
    assert "@import" not in answer.text
    assert "url(" not in answer.text
    assert not [attrs for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert all(link.startswith("#") or link == "openapi.json" for link in page.values("href"))
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_the_page_is_whole(answer: httpx.Response) -> None:
    """Every element ends, every link leads somewhere, and every id is there once."""
    page = Page(answer.text)
    assert not page.open
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = {link[1:] for link in page.values("href") if link.startswith("#")}
    assert links <= set(ids)


async def test_every_route_is_on_the_page(answer: httpx.Response) -> None:
    """With its method, its path and what it does."""
    text = Page(answer.text).text
    for endpoint in all_endpoints():
        if not endpoint.socket:
            assert endpoint.path in text


QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing leaves this machine
)
ITS_OWN = (".google.com", ".googleapis.com")
"""Whom the browser itself would like to ask; no page of ours names them."""


async def test_a_browser_shows_it_and_fetches_nothing_else(
    sidecar: Sidecar, tmp_path: Path
) -> None:
    """Every route stands in what it has made of the page; it asked nobody but the sidecar."""
    browser = shutil.which("chromium")
    if browser is None:
        missing = "no chromium here: the page is looked at by a parser only"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    log = tmp_path / "net.json"
    options = (*QUIET, f"--user-data-dir={tmp_path / 'browser'}", f"--log-net-log={log}")
    command = [browser, *options, "--dump-dom", f"{sidecar.url}/docs"]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    shown = Page(done.stdout)
    routes = [one for one in all_endpoints() if not one.socket]
    assert [tag for tag, _ in shown.tags].count("details") >= len(routes)
    noted = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = {event.get("params", {}).get("url", "") for event in noted}
    hosts = {urlsplit(url).netloc for url in asked if url.startswith(("http:", "https:", "ws"))}
    assert {host for host in hosts if not host.endswith(ITS_OWN)} == {urlsplit(sidecar.url).netloc}
