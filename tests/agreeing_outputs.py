"""A plugin of pytest for nbval: cells must run, and their text must agree as `agreement` says, not byte for byte.

`make notebooks` loads it. A difference is told with the notebook, its cell, the two values, the tolerance, and the
processors here and of the record. What each kernel used is kept beside the numbers, for `reexecuted_notebooks`.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agreement import processor_of, text_difference
from nbval.plugin import IPyNbCell, IPyNbFile

from qkrepro.publishing.kernel import process_cost
from qkrepro.publishing.notebooks import joined_streams
from qkrepro.training.records import processor

TEXTS = ("text/plain", "text/markdown", "text/html", "application/papermill.record/text/plain")
_PICTURE = re.compile(r"data:image/png;base64,[^\"]*")  # in HTML: pictures differ by a last bit of a position
NUMBERS = Path(__file__).parent.parent / "notebooks" / "numbers"
COSTS = "costs"  # folder below $QKREPRO_NUMBERS, one file per notebook


def outputs_difference(new: Sequence[Any], old: Sequence[Any]) -> str | None:
    """The first difference between the outputs of a cell now and as committed; None where they agree."""
    shapes = [
        [(output.output_type, output.get("name"), sorted(output.get("data", {}))) for output in outputs]
        for outputs in (new, old)
    ]
    if shapes[0] != shapes[1]:
        return f"outputs {shapes[0]} instead of {shapes[1]}"
    for now, before in zip(new, old, strict=True):
        pairs = [(now.get("text", ""), before.get("text", ""))]
        pairs += [(now.data[kind], before.data[kind]) for kind in TEXTS if kind in before.get("data", {})]
        for pair in pairs:
            if found := text_difference(*(_PICTURE.sub("", "".join(text)) for text in pair)):
                return found
    return None


def compare_outputs(self: Any, test: Sequence[Any], ref: Sequence[Any], skip_compare: object = None) -> bool:
    """In place of nbval's own comparison; tells a difference where nbval looks for it."""
    found = outputs_difference(_joined(test), _joined(ref))
    notebook = Path(self.parent.path)
    numbers = NUMBERS / f"{notebook.stem}.json"
    where = (
        f"processor here: {processor()}; of the record: {processor_of(numbers) if numbers.is_file() else 'not known'}"
    )
    self.comparison_traceback = [f"{notebook.name}, cell {self.cell_num}: {found}\n{where}"] if found else []
    return found is None


def _joined(outputs: Sequence[Any]) -> list[Any]:
    """Printed text that the kernel cut into pieces as one output; what nbval knows of image formats stays out."""
    return joined_streams(list(outputs))


def teardown(self: Any) -> None:
    """In place of nbval's own end of a notebook: keep what its kernel used, then stop it."""
    if self.kernel is not None and self.kernel.is_alive():
        cpu_s, peak_mb = process_cost(self.kernel.km.provisioner.pid)
        path = Path(os.environ["QKREPRO_NUMBERS"]) / COSTS / f"{self.path.stem}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cpu_s": cpu_s, "peak_mb": peak_mb}), encoding="utf-8")
        self.kernel.stop()


IPyNbCell.compare_outputs = compare_outputs
IPyNbFile.teardown = teardown
