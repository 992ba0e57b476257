"""Which revision of the book this is, as git knows it; outside a checkout the answers say so."""

import time
from pathlib import Path

from qkrepro.files import git

NO_REVISION = "unknown (not a git checkout)"


def book_revision(root: Path) -> str:
    """Return the abbreviated revision of the checkout, with "-dirty" when something in it was changed since."""
    return git(root, "describe", "--always", "--dirty") or NO_REVISION


def last_change(root: Path) -> str:
    """Return the date of the last commit, YYYY-MM-DD in UTC; today outside a checkout."""
    return time.strftime("%Y-%m-%d", time.gmtime(float(git(root, "log", "-1", "--format=%ct") or time.time())))


def file_revision(root: Path, path: Path) -> str:
    """Return the abbreviated revision of the last commit that touched a file, with "+" when it was changed since."""
    revision = git(root, "log", "-1", "--format=%h", "--", str(path))
    if not revision:
        return "not committed" if git(root, "rev-parse", "HEAD") else NO_REVISION
    return revision + "+" * bool(git(root, "status", "--porcelain", "--", str(path)))
