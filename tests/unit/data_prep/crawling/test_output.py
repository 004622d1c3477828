"""The files of a crawl beside those of other commands."""

from data_prep.common.files import rejected_name
from data_prep.crawling.crawl import Crawled
from data_prep.crawling.output import write
from data_prep.crawling.sources import Source
from data_prep.glossary.page import Entry, Page
from tests.unit.data_prep.helpers import PAIR, read_jsonl, run, write_jsonl


def test_a_crawl_replaces_its_own_rejected_items_and_leaves_those_of_compose(tmp_path, capsys):
    rows = write_jsonl(tmp_path / "rows.jsonl", [PAIR, {"anchor": "no positive"}])
    code, _, err = run(capsys, "compose", rows, "--skip-bad", "--output", tmp_path / "glossary.jsonl")
    assert code == 0 and str(tmp_path / "glossary.rejected.jsonl") in err
    page = Page("file:///page.html", [Entry("mould", "a fungus", "file:///page.html")])
    page.skip(3, "no definition", "damp")
    output = tmp_path / "glossary.csv"
    for count in (1, 0):
        del page.skipped[count:]
        write([Crawled(Source("page.html"), [page], entries=page.entries)], output)
        assert len(read_jsonl(rejected_name(output))) == count
    assert output.exists() and len(read_jsonl(tmp_path / "glossary.rejected.jsonl")) == 1
