"""What several test modules share: copies of the checkout, and a site built in one."""

from pathlib import Path

import pytest
import shape_checks
from checkout_copy import Copy, make_copy
from hypothesis import settings

shape_checks.install()

settings.register_profile("book", deadline=None)  # the first example of a test may wait for an import
settings.load_profile("book")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A fresh copy in which nothing was executed and the site was built strictly; treat it as read-only."""
    copy = make_copy(tmp_path_factory.mktemp("built"))
    done = copy.qkrepro("html")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return copy


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A fresh copy of the checkout."""
    return make_copy(tmp_path)
