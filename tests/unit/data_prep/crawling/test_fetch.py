"""Parts of the crawler's fetching that need no server; the rest is in end_to_end/test_crawl.py."""

import gzip
import zlib
from functools import partial

import pytest

pytest.importorskip("httpx")
pytest.importorskip("protego")
pytest.importorskip("w3lib")

from data_prep.common.retry_after import retry_after
from data_prep.crawling.fetch import MAX_PAGE, NotFetched, _redirect, _unpack
from data_prep.crawling.http_cache import Answer

TEXT = b"<p>text" * 100
gzipped = partial(gzip.compress, mtime=0)  # without the time: every process must name the tests alike


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("", TEXT),
        ("gzip", gzipped(TEXT)),
        ("gzip", gzipped(TEXT[:50]) + gzipped(TEXT[50:]) + bytes(8)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)[2:]),
    ],
    ids=["none", "gzip", "gzip in two streams and padding", "deflate", "deflate without its header"],
)
def test_packed_bodies_are_unpacked(coding, packed):
    assert _unpack(packed, coding) == TEXT


@pytest.mark.parametrize(
    ("coding", "packed", "reason"),
    [
        ("br", b"", "is packed as br, which was not asked for"),
        ("gzip", b"no gzip", "its gzip is broken"),
        ("gzip", gzipped(TEXT)[:-12], "its gzip ends in the middle: the answer was cut short"),
        (
            "gzip",
            gzipped(TEXT) + gzipped(TEXT)[:12],
            "its gzip ends in the middle: the answer was cut short",
        ),
        ("deflate", zlib.compress(TEXT)[:-9], "its deflate ends in the middle: the answer was cut short"),
        ("gzip", gzipped(bytes(MAX_PAGE + 1)), "is larger than 10 MiB; it was not read further"),
        (
            "gzip",
            gzipped(bytes(MAX_PAGE)) + gzipped(b"x"),
            "is larger than 10 MiB; it was not read further",
        ),
    ],
)
def test_bodies_that_are_not_unpacked(coding, packed, reason):
    with pytest.raises(NotFetched) as error:
        _unpack(packed, coding)
    assert str(error.value) == reason


def testretry_after_is_seconds_or_a_date():
    assert retry_after("7") == 7 and retry_after("soon") is None and retry_after("") is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2115 07:28:00 GMT") > 1e9


@pytest.mark.parametrize(
    ("body", "target"),
    [
        (b"<meta http-equiv=refresh content='0;url=../b?q=\xc3\xa9#part'>", "http://x.org/b?q=%C3%A9"),
        (b"<meta http-equiv=refresh content='600;url=/b'>", ""),
        (b"<p>text", ""),
    ],
)
def test_pages_that_refresh_soon_redirect(body, target):
    assert _redirect(Answer("http://x.org/a/", 200, {"content-type": "text/html"}, body)) == target
