"""A headless Chromium, for the tests and pictures of our pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_prep.common.errors import first_line

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = "{}; install playwright (pip install 'embedfleet[dev]') and Chromium (apt-get install chromium, or python -m "
MISSING += "playwright install chromium)"


@contextmanager
def chromium() -> Iterator[Any | str]:
    """Yields playwright's browser, or the reason why there is none."""
    try:
        from playwright import sync_api as api
    except ImportError:
        yield "playwright is not installed"
        return
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with api.sync_playwright() as play:
        try:
            browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error as error:
            yield f"no browser starts here: {first_line(error)}"
            return
        yield browser
        browser.close()
