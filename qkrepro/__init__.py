"""The package under the book: spectra of query-key matrices, signal propagation, collapse, LocAteR.

Rooms, from the top down, each importing only from those below it: `cli`, the command; `publishing`, which executes the
notebooks and builds the site; `chapters`, one module a notebook; `evidence`, what chapters share; `training`, text in
and record out; `models`, query and key weights of any model; `theory`, mathematics on tensors; below them `files` and
`errors`. Nothing is imported here, so that `import qkrepro` costs nothing.
"""


def __getattr__(name: str) -> str:
    """`__version__`, read from the installed package when it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module 'qkrepro' has no attribute {name!r}")
    from importlib.metadata import version

    return version("qkrepro")
