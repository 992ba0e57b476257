"""The package under the book: spectra of query-key matrices, signal propagation, collapse, LocAteR.

Modules, from the bottom up: `errors`; the mathematics `spectrum`, `initialisation`, `tokens`, `attention`,
`propagation`, `collapse`; training `corpus`, `transformer`, `locater`, `training`, `results`, `sweep`; on top
`pretrained`, `claims`, `plots`, `execution`, `cli`. Nothing is imported here, so that `import qkrepro` costs nothing.
"""


def __getattr__(name: str) -> str:
    """`__version__`, read from the installed package when it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module 'qkrepro' has no attribute {name!r}")
    from importlib.metadata import version

    return version("qkrepro")
