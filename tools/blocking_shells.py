"""Writes shells: classes whose methods run the coroutines of another class in the background.

For services that need an event loop: their steps cannot be carried out by a thread that waits. The
signatures and docstrings are taken from the source as they stand.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

_HEAD = '''"""{about}, blocking: carried out in the client's background event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

{imports}

if TYPE_CHECKING:
    from llmspell_dist.blocking.backstage import Backstage
{typing}

__all__ = {names}


'''
_CLASS = '''class {name}{bases}:
    """As its asynchronous twin `{module}.{name}`, blocking.

    What is called back (`progress`) is called in the background.
    """

    def __init__(self, backstage: Backstage, there: Async{name}) -> None:
        self._backstage = backstage
        self._there = there

    def __repr__(self) -> str:
        return repr(self._there)

'''

_CLOSING = "AsyncClosing"
_STOP = "stop: asyncio.Event"
"""An event of the loop: threads have their own."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


class _Source:
    """A module that is read."""

    def __init__(self, root: Path, path: str) -> None:
        text = (root / path).read_text(encoding="utf-8")
        tree = ast.parse(text)
        self.module = path.removesuffix(".py").replace("/", ".")
        self.lines = text.splitlines()
        self.classes = {one.name: one for one in tree.body if isinstance(one, ast.ClassDef)}
        self.imports = _imports(tree, self.module)


class Shells:
    """One module of shells over classes of one or several sources."""

    def __init__(
        self,
        root: Path,
        about: str,
        sources: Mapping[str, Sequence[str]],
        bases: Mapping[str, str],
    ) -> None:
        self._root = root
        self._about = about
        self._sources = sources
        self._bases = bases
        self._names = [name for names in sources.values() for name in names]
        self._at_runtime: set[str] = set()
        self._for_types: set[str] = set()

    def text(self) -> str:
        """Return the module, not formatted yet."""
        classes = [text for path in self._sources for text in self._of(path)]
        head = _HEAD.format(
            about=self._about,
            imports="\n".join(sorted(self._at_runtime)),
            typing="\n".join(f"    {line}" for line in sorted(self._for_types - self._at_runtime)),
            names=sorted(self._names),
        )
        return head + "\n\n".join(classes)

    def _of(self, path: str) -> Iterator[str]:
        source = _Source(self._root, path)
        for name in self._sources[path]:
            found = source.classes[name]
            self._for_types.add(f"from {source.module} import {name} as Async{name}")
            above = [
                (_Source(self._root, self._bases[base]), base)
                for base in _bases_of(found)
                if base in self._bases
            ]
            lineage = [(one, one.classes[base]) for one, base in above] + [(source, found)]
            closing = any(_CLOSING in _bases_of(cls) for _, cls in lineage)
            if closing:
                self._at_runtime.add("from llmspell_dist.closing import Closing")
            parts = [
                _CLASS.format(name=name, module=source.module, bases="(Closing)" if closing else "")
            ]
            members: dict[str, tuple[_Source, Function]] = {}
            for one, cls in lineage:
                for member in cls.body:
                    if isinstance(member, Function):
                        members.setdefault(member.name, (one, member))
            if "__init__" in members:
                one, init = members["__init__"]
                parts.append(self._attributes(init, one.imports))
            parts += [self._member(member, one) for one, member in members.values()]
            yield "".join(parts)

    def _attributes(self, init: Function, imports: Mapping[str, str]) -> str:
        """Return a property for each public attribute that is made by calling its class."""
        found = []
        for node, after in pairwise([*init.body, ast.Pass()]):
            match node:
                case ast.Assign(
                    targets=[ast.Attribute(attr=name)], value=ast.Call(func=ast.Name(id=cls))
                ) if not name.startswith("_"):
                    doc = ast.unparse(after) if isinstance(after, ast.Expr) else ""
                    said = f"        {doc}\n" if doc else '        """See the twin."""\n'
                    own = cls in self._names
                    there = f"self._there.{name}"
                    value = f"{cls}(self._backstage, {there})" if own else there
                    found.append(
                        f"    @property\n    def {name}(self) -> {cls}:\n{said}"
                        f"        return {value}\n\n"
                    )
                    if not own:
                        self._for_types.add(imports[cls])
        return "".join(found)

    def _member(self, member: Function, source: _Source) -> str:
        if member.name.startswith("_"):
            return ""
        self._note(member, source.imports)
        doc = member.body[0]
        first = min([member.lineno, *(one.lineno for one in member.decorator_list)])
        head = "\n".join(source.lines[first - 1 : doc.end_lineno])
        head = head.replace("    @abstractmethod\n", "", 1)
        head = head.replace("async def ", "def ", 1).replace("@cached_property", "@property")
        if _STOP in head:
            head = head.replace(_STOP, "stop: threading.Event")
            self._for_types.add("import threading")
            self._at_runtime.add("from llmspell_dist.blocking.stopping import until")
        return f"{head}\n        {self._body(member)}\n\n"

    def _body(self, member: Function) -> str:
        is_property = any(
            isinstance(one, ast.Name) and one.id.endswith("property")
            for one in member.decorator_list
        )
        there = f"self._there.{member.name}"
        call = there if is_property else f"{there}({', '.join(_passed(member.args))})"
        if "stop" in [one.arg for one in member.args.args]:
            call = f"self._backstage.run(until(stop, {there}))"
        elif isinstance(member, ast.AsyncFunctionDef):
            call = f"self._backstage.run({call})"
        returns = member.returns
        if isinstance(returns, ast.Name) and returns.id in self._names:
            call = f"{returns.id}(self._backstage, {call})"
        is_none = isinstance(returns, ast.Constant) and returns.value is None
        return call if is_none else f"return {call}"

    def _note(self, member: Function, imports: Mapping[str, str]) -> None:
        """Note what the signature needs: for its defaults when it is run, else for its types."""
        arguments = member.args
        defaults = [*arguments.defaults, *(one for one in arguments.kw_defaults if one)]
        for name in _names_in(defaults):
            if name in imports:
                self._at_runtime.add(imports[name])
        for name in _names_in([arguments, *([member.returns] if member.returns else [])]):
            if name in imports and name not in self._names:
                self._for_types.add(imports[name])


def _bases_of(cls: ast.ClassDef) -> list[str]:
    return [one.id for one in cls.bases if isinstance(one, ast.Name)]


def _passed(arguments: ast.arguments) -> Iterator[str]:
    for one in arguments.args[1:]:
        yield one.arg
    if arguments.vararg:
        yield f"*{arguments.vararg.arg}"
    for one in arguments.kwonlyargs:
        yield f"{one.arg}={one.arg}"
    if arguments.kwarg:
        yield f"**{arguments.kwarg.arg}"


def _names_in(nodes: Sequence[ast.AST]) -> set[str]:
    return {one.id for node in nodes for one in ast.walk(node) if isinstance(one, ast.Name)} - set(
        dir(builtins)
    )


def _imports(tree: ast.Module, module: str) -> dict[str, str]:
    """Return the import line for every name that stands at the top of a module."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = f"from {module} import {node.name}"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    found[target.id] = f"from {module} import {target.id}"
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Import):
            found |= {one.name: f"import {one.name}" for one in inner.names if not one.asname}
        if isinstance(inner, ast.ImportFrom) and inner.module != "__future__":
            for one in inner.names:
                line = f"from {inner.module} import {one.name}"
                found[one.asname or one.name] = line + (f" as {one.asname}" if one.asname else "")
    return found
