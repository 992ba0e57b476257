"""The package under the book: spectra of query-key matrices, signal propagation, collapse, LocAteR.

Modules, from the bottom up: `errors`; the mathematics `spectrum`, `initialisation`, `tokens`, `attention`,
`propagation`, `collapse`; training `corpus`, `transformer`, `locater`, `training`, `results`, `sweep`; on top
`pretrained`, `claims`, `plots`, `execution`, `cli`. Nothing is imported here, so that `import qkrepro` costs nothing.
"""

from importlib.metadata import version

__version__ = version("qkrepro")
