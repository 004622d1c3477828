"""A store that fails while an object is read: its own reason, not a damaged file, and no traceback."""

import gzip
import io
import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.common.errors import BadInput, Failed
from data_prep.reading.files import read_items
from data_prep.remote import location as locations
from data_prep.remote.location import Location
from tests.servers import answering
from tests.unit.data_prep.helpers import run
from tests.unit.data_prep.reading.test_opening import zstd

ROWS = 1500
SECRET = "hunter2-5f0c"
DENIED = b"<Error><Code>AccessDenied</Code><Message>not for you</Message></Error>"


def objects() -> dict[str, bytes]:
    """The same rows in each format, more than a megabyte of each, as random texts pack badly."""
    draw = random.Random(0)
    rows = [{"anchor": f"question {n}", "positive": draw.randbytes(900).hex()} for n in range(ROWS)]
    lines, table = "".join(json.dumps(row) + "\n" for row in rows).encode(), io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=500)
    csv = "anchor,positive\n" + "".join(f"{row['anchor']},{row['positive']}\n" for row in rows)
    return {
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines, 1),
        "a.jsonl.zst": zstd(lines),
        "a.json": json.dumps(rows).encode(),
        "a.csv": csv.encode(),
        "a.parquet": table.getvalue(),
    }


class Server:
    """Speaks so much of S3 as readers need. allowed: requests for bytes that are answered before one is denied."""

    def __init__(self):
        self.objects, self.allowed = objects(), 0

    def __call__(self, request, body: bytes) -> tuple:
        data = self.objects[request.path.partition("?")[0].removeprefix("/data/")]
        if request.command == "HEAD":
            return 200, "application/octet-stream", data
        self.allowed -= 1
        if self.allowed < 0:
            return 403, "application/xml", DENIED
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["Range"]).groups())
        last = min(last, len(data) - 1)
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return 206, "application/octet-stream", data[first : last + 1], headers


@pytest.fixture(scope="module")
def server():
    made = Server()
    with answering(made) as port, pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patched.setenv("AWS_ACCESS_KEY_ID", "of-a-test")
        patched.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patched.setenv("AWS_REGION", "us-east-1")
        locations._filesystem.cache_clear()
        yield made
    locations._filesystem.cache_clear()


@pytest.mark.parametrize("name", objects())
def test_the_reason_of_the_store_is_said_wherever_reading_is(server, name, tmp_path, capsys):
    place = Location("s3", f"data/{name}")
    server.allowed = 1000
    assert sum(1 for _ in read_items(place)) == ROWS
    took = 1000 - server.allowed
    assert 3 <= took < 10 or name == "a.parquet"  # requests: for the first bytes, then for a megabyte each
    for allowed in range(took):
        server.allowed = allowed
        with pytest.raises(Failed, match=f"s3://data/{name}: .*ACCESS_DENIED.*from the environment are read: AWS_ACC"):
            list(read_items(place))
    server.allowed = took // 2
    code, _, err = run(capsys, "shard", place, "--output", tmp_path / "s", "--workers", "1")
    assert code == 1 and err.splitlines()[-1].startswith(f"error: s3://data/{name}: ") and SECRET not in err


def test_an_object_that_is_gone_while_it_is_read_is_no_damage(tmp_path):
    class Gone(io.BytesIO):
        def read(self, size=None):
            raise FileNotFoundError(2, "Path does not exist")

    file = locations.StoredFile(Location("s3", "data/a.jsonl.gz"), Gone())
    with pytest.raises(BadInput, match="s3://data/a.jsonl.gz: no such bucket or object"):
        pa.CompressedInputStream(file, "gzip").read()


def test_what_a_store_calls_invalid_is_its_failure():
    place = Location("gs", "data/a")
    with pytest.raises(Failed, match="gs://data/a: Status.INVALID_ARGUMENT"), place.errors():
        raise pa.ArrowInvalid("Status(INVALID_ARGUMENT: user project missing)")  # to a 400 of Google
