"""The pictures of the tour: those that its page shows, light enough for the repository; what is missing is named."""

import re
from contextlib import contextmanager

from tests.launching import ROOT
from tests.soak import tour


def test_the_page_shows_every_picture_and_they_are_light():
    page = (ROOT / "docs" / "start" / "tour.md").read_text(encoding="utf-8")
    shown = re.findall(r"\(\.\./pictures/(\w+)\.webp\)", page)
    assert sorted(shown) == sorted(shot.name for shot in tour.SHOTS)
    sizes = {path.stem: path.stat().st_size for path in tour.PICTURES.glob("*")}
    assert sizes.keys() == {*shown} and all(sizes.values()) and sum(sizes.values()) < 600_000


def test_a_folder_without_a_quickstart_and_a_missing_browser_are_named(tmp_path, monkeypatch, capsys):
    assert tour.main([str(tmp_path)]) == 2
    assert "holds no finished quickstart; run it first: bash launch/quickstart.sh" in capsys.readouterr().err

    @contextmanager
    def no_browser():
        yield "no browser starts here: no such file"

    monkeypatch.setattr(tour, "chromium", no_browser)
    (tmp_path / "run-ddp").mkdir()
    (tmp_path / "run-ddp" / "report.html").touch()
    (tmp_path / "shards").mkdir()
    assert tour.main([str(tmp_path)]) == 2
    assert "no browser starts here: no such file; install playwright" in capsys.readouterr().err
