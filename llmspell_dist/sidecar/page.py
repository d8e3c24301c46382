"""The OpenAPI document as one page of plain HTML: no script, no CDN, readable in any browser."""

from __future__ import annotations

import json
from functools import lru_cache
from html import escape
from typing import Any, Final

__all__ = ["docs_page"]

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --dim: #888; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; }
h2 { border-bottom: 1px solid var(--line); margin-top: 2.5rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; }
summary { cursor: pointer; padding: .4rem .7rem; }
details > div { padding: 0 1rem 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .92em; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .6rem; border-radius: 6px; }
.method { display: inline-block; width: 4.5rem; font-weight: 700; }
.GET { color: #2a7ab8; } .PUT, .PATCH { color: #b8860b; }
.POST { color: #2e8b57; } .DELETE { color: #c0392b; }
.dim { color: var(--dim); } table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; border-top: 1px solid var(--line);
  padding: .25rem .6rem .25rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .2rem .8rem; }
"""


@lru_cache(maxsize=4)
def docs_page(openapi: bytes) -> bytes:
    """Return the page of an OpenAPI document."""
    document = json.loads(openapi)
    tags = document["tags"]
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = {tag["name"]: [] for tag in tags}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag[operation["tags"][0]].append((method.upper(), path, operation))
    links = "".join(f'<a href="#tag-{tag["name"]}">{escape(tag["name"])}</a>' for tag in tags)
    sections = "".join(
        f'<h2 id="tag-{tag["name"]}">{escape(tag["name"])}</h2><p>{escape(tag["description"])}</p>'
        + "".join(_operation(*one) for one in by_tag[tag["name"]])
        for tag in tags
    )
    schemas = "".join(
        f'<details id="schema-{name}"><summary><code>{escape(name)}</code></summary><div><pre>'
        f"{escape(json.dumps(schema, indent=2))}</pre></div></details>"
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    info = document["info"]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} <span class=dim>{escape(info['version'])}</span></h1>"
        f"<p>{escape(info['description'])} The document behind this page: "
        f'<a href="openapi.json">openapi.json</a>.</p><nav>{links}'
        f'<a href="#schemas">schemas</a></nav>{sections}'
        f'<h2 id="schemas">schemas</h2>{schemas}</body></html>'
    )
    return page.encode()


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{escape(one['name'])}</code><td>{one['in']}"
        f"<td>{_text(one.get('description', ''))}"
        f"<td><code>{escape(_type(one['schema']))}</code></tr>"
        for one in operation["parameters"]
    )
    answers = "".join(
        f"<tr><td>{status}<td>{_text(answer['description'])}<td>{_content(answer)}</tr>"
        for status, answer in operation["responses"].items()
    )
    body = operation.get("requestBody")
    told = f"<p>Body: {_content(body)}</p>" if body else ""
    table = f"<table><tr><th>Parameter<th>In<th><th>Type</tr>{parameters}</table>"
    return (
        f'<details id="{operation["operationId"]}"><summary>'
        f'<span class="method {method}">{method}</span> <code>{escape(path)}</code> '
        f"<span class=dim>{_text(operation['summary'])}</span></summary><div>"
        f"<p>{_text(operation['description'])}</p>{table if parameters else ''}{told}"
        f"<table><tr><th>Answer<th><th>Body</tr>{answers}</table></div></details>"
    )


def _text(text: str) -> str:
    """Return text with what stands between backticks as code."""
    parts = escape(text).replace("``", "`").split("`")
    shown = "".join(
        f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)
    )
    return shown.replace("\n\n", "<br><br>")


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(json.dumps(one) for one in schema["enum"])
    return str(schema.get("type", schema.get("$ref", "any")))


def _content(answer: dict[str, Any]) -> str:
    content = answer.get("content")
    if not content:
        return ""
    media, shape = next(iter(content.items()))
    name = shape["schema"].get("$ref", "").rpartition("/")[2]
    link = f'<a href="#schema-{name}"><code>{name}</code></a> ' if name else ""
    return f"{link}<span class=dim>{', '.join(content) if name else media}</span>"
