"""Check the shapes in the annotations of `qkrepro.theory` and `qkrepro.models` after every call, while the tests run.

An annotation such as `Float[Tensor, "*batch d_head d_model"]` binds its names for one call: every argument and the
result must agree on them. The call comes first, so that what the package refuses is refused by its own errors.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import re
import sys
from numbers import Real
from types import ModuleType
from typing import Any, get_args, get_origin

import jaxtyping
import numpy as np
import torch
from torch import Tensor

ROOMS = ("qkrepro.theory.", "qkrepro.models.")
KINDS = ("Float", "Float64", "Complex128", "Bool", "Int", "Int8")
STATED = re.compile(rf"(tuple\[)?({'|'.join(KINDS)})\[")  # one shape, or a tuple of them
NAMES = {kind: getattr(jaxtyping, kind) for kind in KINDS} | {"Tensor": Tensor, "np": np, "float": Real, "Any": object}
STATED_SHAPES: dict[Any, tuple[inspect.Signature, dict[str, str]]] = {}  # by function
CHECKED: set[str] = set()  # functions that were called and checked


class ShapeOfTypeError(TypeError):
    """A value that is not of the shape or dtype that the annotation states."""


def checked(function: Any) -> Any:
    """The function with its annotated shapes checked after each call; itself when it has none."""
    signature = inspect.signature(function)
    written = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    written["return"] = signature.return_annotation
    shapes = {name: text for name, text in written.items() if isinstance(text, str) and STATED.match(text)}
    if not shapes:
        return function
    STATED_SHAPES[function] = signature, shapes

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if not torch.compiler.is_compiling():  # which cannot trace a signature
            _check(function, args, kwargs, result)
        return result

    return call


def _check(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    signature, shapes = STATED_SHAPES[function]
    values = signature.bind(*args, **kwargs).arguments | {"return": result}
    with jaxtyping.jaxtyped("context"):
        for name, text in shapes.items():
            if values.get(name) is not None and not _fits(values[name], _evaluated(text)):
                raise ShapeOfTypeError(
                    f"{function.__qualname__}: {name} is {_described(values[name])}, annotated as {text}"
                )
    CHECKED.add(function.__qualname__)


@functools.cache
def _evaluated(text: str) -> Any:
    return eval(text, NAMES)


def _fits(value: Any, expected: Any) -> bool:
    if get_origin(expected) is tuple:
        return len(value) == len(get_args(expected)) and all(map(_fits, value, get_args(expected)))
    return isinstance(value, expected)


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_described, value))
    return f"{getattr(value, 'dtype', type(value))} {np.shape(value)}"


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
            elif inspect.isclass(value) and value.__module__ == module.__name__:
                for method, body in list(vars(value).items()):
                    if inspect.isfunction(body):
                        setattr(value, method, checked(body))


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
