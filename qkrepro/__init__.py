"""The package under the book: spectra of query-key matrices, signal propagation, collapse, LocAteR.

`import qkrepro as qk` gives the names that a reader needs most; `__init__.pyi` lists them with where each is defined.
Rooms, from the top down, each importing only from those below it: `cli`, the command; `publishing`, which executes the
notebooks and builds the site; `chapters`, one module a notebook; `evidence`, what chapters share; `training`, text in
and record out; `models`, query and key weights of any model; `theory`, mathematics on tensors; below them `files` and
`errors`. A name is imported when it is first used, so that `import qkrepro` costs nothing.
"""

import lazy_loader

_lazy, _, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*_names, "__version__"])


def __getattr__(name: str) -> object:
    """Import a name of the front door; `__version__` is that of the installed package."""
    if name == "__version__":
        from importlib.metadata import version

        return version("qkrepro")
    return _lazy(name)


def __dir__() -> list[str]:
    """Return the names of the front door."""
    return list(__all__)
