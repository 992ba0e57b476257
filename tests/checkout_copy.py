"""A copy of the checkout that tests may run and break."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Copy:
    """A copy of what git would commit, with the package of that copy."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def qkrepro(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command in the copy; output and exit code are in the answer."""
        command = [sys.executable, "-c", "from qkrepro.cli.app import main; main()", *arguments]
        environment = os.environ | {"PYTHONPATH": str(self.root)}
        environment.pop("QKREPRO_NUMBERS", None)
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)

    def change(self, path: str, old: str, new: str) -> None:
        """Replace text in a file of the copy; it must be there."""
        file = self.root / path
        text = file.read_text(encoding="utf-8")
        assert old in text, f"{path} has no {old!r}"
        file.write_text(text.replace(old, new), encoding="utf-8")


def _files() -> Sequence[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def make_copy(target: Path) -> Copy:
    """Copy the files under version control, and the new ones that git does not ignore."""
    for name in _files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return Copy(target)
