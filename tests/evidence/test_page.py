"""What a chapter's page keeps for others to cite."""

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from myst_nb.ext.glue import glue as library_glue

from qkrepro.evidence.page import glue


@pytest.mark.parametrize("value", ["4 of 40", "−0.25", 12, 0.31830988])
def test_a_value_is_kept_as_the_library_keeps_it(value: str | float) -> None:
    InteractiveShell.instance()
    with capture_output() as kept:
        glue("chapter-key", value)
    with capture_output() as expected:
        library_glue("chapter-key", value, display=False)
    assert len(kept.outputs) == len(expected.outputs) == 1
    assert kept.outputs[0].data == expected.outputs[0].data
    assert kept.outputs[0].metadata == expected.outputs[0].metadata
