"""What the outputs of a notebook depend on, as digests, so that only what changed is executed again.

Of the package, a notebook depends on the modules that its cells import and on all that those import in turn (grimp),
wherever in them the import stands; docstrings and blank lines do not count. Names looked up by a string (`getattr`,
`importlib`) are not seen: import them.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from qkrepro.errors import ArgumentError

_NOT_PYTHON = re.compile(r"^\s*[%!?].*$|^.*\?\s*$", re.MULTILINE)  # IPython's magics, shell lines and help


def input_digests(
    root: Path, cells: Sequence[str], parameters: Mapping[str, Any], reads: Iterable[str], package: str = "qkrepro"
) -> dict[str, str]:
    """Return a digest of everything that the outputs of a notebook follow from, by the name of what it is.

    Parameters
    ----------
    root
        The checkout.
    cells
        Sources of the code cells, in order.
    parameters
        Values of the notebook's parameters by name.
    reads
        Files, folders or glob patterns relative to `root`.
    package
        Name of the package, which must be importable from `root`.

    Returns
    -------
    dict
        Digests under `code`, `parameters`, `constraints.txt`, the names of modules and each of `reads`.

    Raises ArgumentError when something in `reads` is not there.
    """
    digests = {
        "code": _digest("\0".join(cells)),
        "parameters": _digest(repr(sorted(parameters.items()))),
        "constraints.txt": _digest(_without_comments(root / "constraints.txt")),
    }
    for module in sorted(reached_modules(root, cells, package)):
        path = _module_path(root, module)
        digests[module] = _module_digest(path, path.stat().st_mtime_ns)
    for name in reads:
        digests[name] = _record_digest(root, name)
    return digests


def changed_inputs(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return the names of the inputs that differ, appeared or went."""
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def reached_modules(root: Path, cells: Sequence[str], package: str = "qkrepro") -> set[str]:
    """Return the modules of the package that the cells import, directly or through others, by their whole names.

    A cell that imports the package itself reaches all modules that its stub `__init__.pyi` names.
    """
    files = sorted((root / package).rglob("*.py"))
    graph = _import_graph(package, tuple((path, path.stat().st_mtime_ns) for path in files))
    direct = set(_imported(ast.parse(_NOT_PYTHON.sub("", "\n".join(cells))), package, graph.modules))
    stub = root / package / "__init__.pyi"
    if package in direct and stub.is_file():
        direct |= set(_imported(ast.parse(stub.read_text(encoding="utf-8")), package, graph.modules))
    return {package, *direct}.union(*(graph.find_upstream_modules(module) for module in direct))


@lru_cache(maxsize=1)
def _import_graph(package: str, versions: tuple[tuple[Path, int], ...]) -> Any:
    """Return the imports of the package; versions: its files with their times, so that a changed one is read anew."""
    import grimp

    return grimp.build_graph(package, cache_dir=None)


def _imported(tree: ast.AST, package: str, modules: Iterable[str]) -> Iterator[str]:
    """Yield the modules of the package that a piece of code imports, wherever in it the import stands."""
    known = set(modules)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:  # only in the stub, which stands in the package itself
                module = ".".join(filter(None, (package, module)))
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield from (name for name in (inner if inner in known else module,) if name in known)


def _module_path(root: Path, module: str) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _module_digest(path: Path, version: int) -> str:
    """Return the digest of a module without its docstrings and blank lines; `version` is the time of its file."""
    source = path.read_text(encoding="utf-8")
    lines, dropped = source.splitlines(), set[int]()
    for node in ast.walk(ast.parse(source)):
        documented = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            dropped.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return _digest("\n".join(line for number, line in enumerate(lines, 1) if line.strip() and number not in dropped))


def _record_digest(root: Path, name: str) -> str:
    paths = [root / name] if (root / name).exists() else sorted(root.glob(name))
    files = [
        file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()
    ]
    if not files:
        raise ArgumentError(
            f"reads must be files, folders or patterns that are there, relative to {root}, got {name!r}"
        )
    parts = [f"{file.relative_to(root).as_posix()}\0{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return _digest("\0".join(parts))


def _without_comments(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
