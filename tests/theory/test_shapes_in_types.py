"""The shapes in annotations are checked: functions that state them were called, and a wrong one is refused."""

import ast
from pathlib import Path

import pytest
import shape_checks
import torch

from qkrepro.theory.attention import causal_mask
from qkrepro.theory.spectrum import factor, qk_matrix
from qkrepro.theory.xavier import xavier_law

PACKAGE = Path(__file__).parents[2] / "qkrepro"


def test_a_call_is_checked_by_the_shapes_of_its_annotations():
    assert qk_matrix(torch.ones(2, 3, 5), torch.ones(2, 3, 5)).shape == (2, 5, 5)
    assert causal_mask(3).shape == (3, 3)
    assert {"qk_matrix", "causal_mask"} <= shape_checks.CHECKED


def test_the_shapes_of_methods_and_of_tuples_are_checked():
    law = xavier_law(4, 2)
    assert law.radius_cdf(torch.ones(3)).shape == (3,)
    assert len(factor(torch.eye(3), 3)) == 2
    assert {"XavierLaw.radius_cdf", "factor"} <= shape_checks.CHECKED

    def pair(w):
        return w, w.mT

    one = 'Float[Tensor, "d_head d_model"]'
    pair.__annotations__ = {"w": one, "return": f"tuple[{one}, {one}]"}
    assert len(shape_checks.checked(pair)(torch.ones(2, 2))) == 2
    with pytest.raises(shape_checks.ShapeOfTypeError, match="return is"):
        shape_checks.checked(pair)(torch.ones(2, 3))


def test_shapes_that_do_not_agree_are_refused():
    def transposed(w):
        return w.mT

    transposed.__annotations__ = {"w": 'Float[Tensor, "d_head d_model"]', "return": 'Float[Tensor, "d_head d_model"]'}
    assert shape_checks.checked(transposed)(torch.ones(2, 2)).shape == (2, 2)
    with pytest.raises(shape_checks.ShapeOfTypeError, match="return is"):
        shape_checks.checked(transposed)(torch.ones(2, 3))


def test_the_annotations_of_many_functions_state_shapes():
    stated = [
        node.name
        for room in ("theory", "models")
        for path in (PACKAGE / room).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.returns and shape_checks.STATED.match(ast.unparse(node.returns))
    ]
    assert len(stated) > 60, stated
