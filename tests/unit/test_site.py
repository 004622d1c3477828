"""The documentation builds as a site: no broken link or anchor, no page outside the navigation."""

import logging

import pytest

from tests.launching import ROOT


def test_the_site_builds_without_a_warning(tmp_path, monkeypatch):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.utils import CountHandler

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)
    counted = CountHandler()
    counted.setLevel(logging.WARNING)
    logging.getLogger("mkdocs").addHandler(counted)
    try:
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
        build(config)
    finally:
        logging.getLogger("mkdocs").removeHandler(counted)
    assert not counted.get_counts(), counted.get_counts()
    assert (tmp_path / "site" / "start" / "from_pairs" / "index.html").is_file()
