"""What several test modules share: copies of the checkout, and a site built in one."""

from pathlib import Path

import pytest
import shape_checks
from checkout_copy import Copy, make_copy, make_small_copy
from hypothesis import settings

shape_checks.install()

settings.register_profile("book", deadline=None)  # the first example of a test may wait for an import
settings.load_profile("book")

ONE_WORKER = ("test_browser", "test_jupyterlab", "test_launch_links", "test_readers")  # they drive the browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that read the whole site or drive the browser in one worker: one build, one browser at a time."""
    for item in items:
        if "built" in getattr(item, "fixturenames", ()) or item.path.stem in ONE_WORKER:
            item.add_marker(pytest.mark.xdist_group("site"))


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


@pytest.fixture
def small(tmp_path: Path) -> Copy:
    """A fresh copy of the checkout with a book of three pages."""
    return make_small_copy(tmp_path)
