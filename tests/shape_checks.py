"""Check the shapes in the annotations of `qkrepro.theory` and `qkrepro.models` after every call, while the tests run.

An annotation such as `Float[Tensor, "*batch d_head d_model"]` binds its names for one call: every argument and the
result must agree on them. The call comes first, so that what the package refuses is refused by its own errors.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
from types import ModuleType
from typing import Any

import jaxtyping
import numpy as np
from torch import Tensor

ROOMS = ("qkrepro.theory.", "qkrepro.models.")
KINDS = ("Float", "Float64", "Complex128", "Bool", "Int", "Int8")
NAMES = {kind: getattr(jaxtyping, kind) for kind in KINDS} | {"Tensor": Tensor, "np": np}
CHECKED: set[str] = set()  # functions that were called and checked


class ShapeOfTypeError(TypeError):
    """A value that is not of the shape or dtype that the annotation states."""


def checked(function: Any) -> Any:
    """The function with its annotated shapes checked after each call; itself when it has none."""
    signature = inspect.signature(function)
    written = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    written["return"] = signature.return_annotation
    shapes = {name: text for name, text in written.items() if isinstance(text, str) and text.startswith(KINDS)}
    if not shapes:
        return function
    types = {name: eval(text, NAMES) for name, text in shapes.items()}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        values = signature.bind(*args, **kwargs).arguments | {"return": result}
        with jaxtyping.jaxtyped("context"):
            for name, expected in types.items():
                if values.get(name) is not None and not isinstance(values[name], expected):
                    found = f"{getattr(values[name], 'dtype', type(values[name]))} {np.shape(values[name])}"
                    raise ShapeOfTypeError(f"{function.__qualname__}: {name} is {found}, annotated as {shapes[name]}")
        CHECKED.add(function.__qualname__)
        return result

    return call


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: Any) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                setattr(module, name, checked(value))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith(ROOMS):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec and spec.loader:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Check every module of the two rooms that is imported from now on."""
    assert not [name for name in sys.modules if name.startswith(ROOMS)], "imported before its shapes could be checked"
    sys.meta_path.insert(0, _Finder())
