"""What the outputs of a notebook depend on, as digests, so that only what changed is executed again.

The dependence on the package is followed by function, not by file: from the names that the cells import, through every
top-level function, class and constant that those mention, across modules and through imports inside functions.
Statements at the top of a reached module that bind no name count always, docstrings never; a file of the package that a
reached statement names counts whole. Names looked up by a string (`getattr`, `importlib`) are not seen: import them.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkrepro.errors import ArgumentError

Target = tuple[str, str | None]  # module and name; None is the whole module
_NOT_PYTHON = re.compile(r"^\s*[%!?].*$|^.*\?\s*$", re.MULTILINE)  # IPython's magics, shell lines and help


@dataclass(frozen=True)
class Unit:
    """A top-level statement: its text without docstrings, the names it mentions, what it imports of the package."""

    text: str
    names: frozenset[str]
    imports: frozenset[Target]


def input_digests(
    root: Path, cells: Sequence[str], parameters: Mapping[str, Any], reads: Iterable[str]
) -> dict[str, str]:
    """Digest of everything that the outputs of a notebook follow from, by the name of what it is.

    root: the checkout. cells: sources of the code cells, in order. parameters: values by name. reads: files, folders or
    glob patterns relative to `root`. Keys: `code`, `parameters`, `constraints.txt`, `qkrepro.MODULE`, each of `reads`.
    Raises ArgumentError when something in `reads` is not there.
    """
    digests = {
        "code": _digest("\0".join(cells)),
        "parameters": _digest(repr(sorted(parameters.items()))),
        "constraints.txt": _digest(_without_comments(root / "constraints.txt")),
    }
    package = root / "qkrepro"
    for module, units in sorted(reached_units(package, cells).items()):
        digests[f"qkrepro.{module}"] = _digest("\0".join(units))
        for data in sorted(package.rglob("*.*")):
            if data.suffix != ".py" and any(f'"{data.name}"' in unit for unit in units):
                name = data.relative_to(root).as_posix()
                digests[name] = _record_digest(root, name)
    for name in reads:
        digests[name] = _record_digest(root, name)
    return digests


def changed_inputs(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Names of the inputs that differ, appeared or went."""
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def reached_units(package: Path, cells: Sequence[str]) -> dict[str, list[str]]:
    """Texts of the top-level statements of the package that the cells reach, by module, in an order of their own."""
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in package.rglob("*.py")
        if path.parent == package or path.stem != "__init__"  # nothing but a docstring in those of the rooms
    }
    parsed: dict[str, dict[str, list[Unit]]] = {}
    todo = sorted(_imports(ast.parse(_NOT_PYTHON.sub("", "\n".join(cells))), modules), key=str)
    todo.append(("__init__", ""))
    seen: set[Target] = set()
    while todo:
        module, name = target = todo.pop()
        if target in seen:
            continue
        seen.add(target)
        if module not in parsed:
            parsed[module] = _units(modules[module].read_text(encoding="utf-8"), modules)
            todo.append((module, ""))
        units = parsed[module]
        if name is None or name not in units:
            todo += [(module, each) for each in units]
            continue
        for unit in units[name]:
            todo += unit.imports
            todo += [(module, each) for each in unit.names if each in units]
    return {
        module: sorted(unit.text for name, each in units.items() if (module, name) in seen for unit in each)
        for module, units in parsed.items()
    }


def _units(source: str, modules: Mapping[str, Path]) -> dict[str, list[Unit]]:
    """Top-level statements of a module by the name they bind; under "" those that bind none."""
    lines = source.splitlines()
    units: dict[str, list[Unit]] = {"": []}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                text = ast.unparse(_only(statement, alias))
                targets = frozenset(_imports(_only(statement, alias), modules))
                units.setdefault((alias.asname or alias.name).split(".")[0], []).append(
                    Unit(text, frozenset(), targets)
                )
            continue
        names = frozenset(node.id for node in ast.walk(statement) if isinstance(node, ast.Name))
        unit = Unit(_text(statement, lines), names, frozenset(_imports(statement, modules)))
        for name in _bound(statement) or [""]:
            units.setdefault(name, []).append(unit)
    return units


def _only(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> ast.Import | ast.ImportFrom:
    if isinstance(statement, ast.Import):
        return ast.Import([alias])
    return ast.ImportFrom(statement.module, [alias], statement.level)


def _bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    else:
        return []
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def _text(statement: ast.stmt, lines: Sequence[str]) -> str:
    """Lines of a statement, decorators with it, without the docstrings in it."""
    first = min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", []))])
    dropped: set[int] = set()
    for node in ast.walk(statement):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and ast.get_docstring(node) is not None
        ):
            dropped.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return ""  # the docstring of the module
    return "\n".join(lines[i - 1] for i in range(first, (statement.end_lineno or first) + 1) if i not in dropped)


def _imports(tree: ast.AST, modules: Mapping[str, Path]) -> Iterator[Target]:
    """What a piece of code imports of the package, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found: list[Target] = [(name, None) for name in _dotted(a.name for a in node.names)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "qkrepro":
            inside = (node.module or "").partition(".")[2]
            found = [_target(inside, alias.name, modules) for alias in node.names]
        else:
            continue
        yield from (target for target in found if target[0] in modules)


def _dotted(names: Iterable[str]) -> list[str]:
    return [name.partition(".")[2] or "__init__" for name in names if name.split(".")[0] == "qkrepro"]


def _target(module: str, name: str, modules: Mapping[str, Path]) -> Target:
    whole = None if name == "*" else name
    inner = f"{module}.{name}" if module else name
    return (inner, None) if inner in modules else (module or "__init__", whole)


def _record_digest(root: Path, name: str) -> str:
    found = [root / name] if (root / name).exists() else sorted(root.glob(name))
    files = [
        file for path in found for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()
    ]
    if not files:
        raise ArgumentError(
            f"reads is {name!r}; allowed: files, folders or patterns that are there, relative to {root}"
        )
    parts = [f"{file.relative_to(root).as_posix()}\0{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return _digest("\0".join(parts))


def _without_comments(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
