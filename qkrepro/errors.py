"""The package's own errors, and the checks that raise them with messages of one form.

λ must be finite and > 0, got 0
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # PyTorch takes a second to import, and not every command needs it
    from torch import Tensor


class QKReproError(ValueError):
    """Bad input of any kind; the command line prints its message as one line and exits with 2."""


class ShapeError(QKReproError):
    """Tensors whose shapes do not fit together."""


class ArgumentError(QKReproError):
    """A value outside what is allowed: a temperature, a location, a variance, a name."""


class CheckpointError(QKReproError):
    """A file of weights that is missing, damaged, refused or of an unknown architecture."""


class CorpusError(QKReproError):
    """A corpus that is missing, damaged, empty or not UTF-8."""


class RunError(QKReproError):
    """A training run or a record that cannot be started, continued or read."""


class NotebookError(QKReproError):
    """A notebook that failed when it ran, or whose cells or parameters break the book's rules."""


class SiteError(QKReproError):
    """A site that could not be built, or that is not whole."""


def check_finite(name: str, value: Tensor) -> None:
    """Raise ArgumentError when a tensor holds a NaN or an infinity."""
    import torch

    if bool(torch.isfinite(value.sum())):  # one pass without a copy: a finite sum has finite terms
        return
    if not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise ArgumentError(f"{name} must be finite, got {bad} non-finite values of {value.numel()}")


def check_number(
    name: str, value: Any, *, above: float | None = None, at_least: float | None = None, below: float | None = None
) -> None:
    """Raise ArgumentError unless a value is one finite real number within the bounds: > above, >= at_least, < below."""
    limits = (">", above, operator.gt), (">=", at_least, operator.ge), ("<", below, operator.lt)
    bounds = [(f"{sign} {limit:g}", inside, limit) for sign, limit, inside in limits if limit is not None]
    good = isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) < float("inf")
    if not good or not all(inside(float(value), limit) for _, inside, limit in bounds):
        raise ArgumentError(f"{name} must be {' and '.join(['finite', *(text for text, *_ in bounds)])}, got {value!r}")


def check_integer(name: str, value: Any, *, at_least: int) -> None:
    """Raise ArgumentError unless `value` is an integer >= `at_least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ArgumentError(f"{name} must be an integer >= {at_least}, got {value!r}")


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ArgumentError unless `value` is one of the allowed names."""
    choices = list(allowed)
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_qk_shapes(w_q: Tensor, w_k: Tensor) -> None:
    """Raise ShapeError unless w_q and w_k have one shape (..., d_head, d_model) with d_head <= d_model, both finite."""
    if w_q.shape != w_k.shape:
        raise ShapeError(f"w_q and w_k must have equal shapes, got {tuple(w_q.shape)} and {tuple(w_k.shape)}")
    if w_q.ndim < 2 or 0 in w_q.shape:
        raise ShapeError(f"w_q must have shape (..., d_head, d_model), none of them 0, got {tuple(w_q.shape)}")
    if w_q.shape[-2] > w_q.shape[-1]:
        raise ShapeError(f"d_head must not exceed d_model = {w_q.shape[-1]}, got {w_q.shape[-2]}")
    check_finite("w_q", w_q)
    check_finite("w_k", w_k)
