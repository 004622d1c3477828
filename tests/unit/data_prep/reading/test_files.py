"""Reading fast is reading the same: JSON, normal forms, lengths and columns against their plain definitions."""

import json
import re
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.reading.files import DECODER, Blank, Item, Span, decode_fast, read_items
from data_prep.records import Record, count_words, normalise
from data_prep.shards.columns import arrow_schema, to_batch
from data_prep.shards.folder import COLUMNS
from data_prep.texts.lengths import Lengths

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
# Written by hand, so that keys stand twice and every spelling of a text occurs
spelt = st.sampled_from(
    ['"a"', '"\\u0061"', '"\\""', '"\\u0022"', '"\\\\"', '"é"', '"\\\\u0022"', '""', "1e400", "-0", "9" * 30]
)
pairs = st.lists(st.tuples(st.sampled_from(['"a"', '"\\u0061"', '"b"', '"\\""', '"\\u0022"']), spelt), max_size=4)
objects = pairs.map(lambda some: "{" + ", ".join(f"{key} : {value}" for key, value in some) + "}")


def plainly(text: str):
    """Answer of DECODER: its value with the types of its parts, or that it refuses."""
    try:
        return repr(DECODER.decode(text))
    except (ValueError, RecursionError):
        return "refused"


@settings(deadline=None)
@given(values.map(lambda value: json.dumps(value, ensure_ascii=False)) | values.map(json.dumps) | objects)
@example('{"a": 1, "a": "\\u0022\\u0022"}')
@example('{"a": "\\u0022", "a": "\\""}')
@example('{"a": "\\ud83d"}')
@example('{"a": NaN}')
@example("[" * 2000)
def test_fast_json_says_what_plain_json_says_or_nothing(text):
    if "\\ud83d" not in text:
        text = text.encode("utf-8", "replace").decode()
    try:
        found = repr(decode_fast(text.encode()))
    except ValueError:
        return  # the plain decoder is asked
    assert found == plainly(text)


def test_the_rows_that_most_files_hold_are_read_fast():
    for row in (
        '{"query": "a \\"quoted\\" word", "positives": ["b"], "score": 0.5}',
        '["a", "b", 1]',
        '{"a": {"b": []}}',
    ):
        assert decode_fast(row.encode()) == json.loads(row)


texts = st.text(
    st.sampled_from("aZ09 \t\n\r\x0b\x0c\x1c\x1f\x85\u00a0\u2003\u3000éİßﬁﾊﾟ\u0301\u200b😀") | st.characters(),
    max_size=12,
)


@settings(deadline=None)
@given(texts)
@example(" a  b ")
@example("A B")
def test_normal_forms_and_words_are_those_of_their_definitions(text):
    assert normalise(text) == re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()
    assert count_words(text) == len(text.split())


@settings(deadline=None)
@given(st.lists(st.sampled_from(['{"a": 1}', "", "{", '"é"', "\u00a0", "[1]\r"]), max_size=12), st.booleans())
def test_a_file_read_in_spans_is_the_file(tmp_path_factory, lines, last_end):
    path = tmp_path_factory.mktemp("spans") / "a.jsonl"
    content = "\ufeff" + "\n".join(lines) + ("\n" if last_end else "")
    path.write_bytes(content.encode())
    whole = list(read_items(path))
    pieces, start, number = [], 0, 1
    for line in path.read_bytes().splitlines(keepends=True):
        pieces += read_items(path, Span(start, start + len(line), number, len(content)))
        start, number = start + len(line), number + 1
    assert pieces == whole
    assert [item.line for item in whole] == list(range(1, len(whole) + 1))
    assert all(isinstance(item, Blank) == (not line.strip()) for item, line in zip(whole[1:], lines[1:]))
    assert [item.value for item in whole if isinstance(item, Item)].count({"a": 1}) == lines.count('{"a": 1}')


words = st.text(st.sampled_from("ab é😀"), max_size=5)
records = st.builds(
    Record,
    words,
    st.lists(words, max_size=3),
    st.lists(words, max_size=2),
    st.none() | st.floats(0, 1),
    st.none() | st.lists(st.floats(allow_nan=False), max_size=3),
    words,
    words,
    st.lists(words, max_size=2),
    st.dictionaries(words, st.none() | st.integers() | words, max_size=2),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(records, min_size=1, max_size=12), st.data())
def test_columns_are_those_that_arrow_makes_of_rows(some, data):
    """Also after rows were taken out and batches put together, as between spool and shard."""

    def of_rows(records):
        rows = [{name: getattr(record, name) for name in COLUMNS} for record in records]
        for row in rows:
            row["metadata"] = json.dumps(row["metadata"], ensure_ascii=False, sort_keys=True)
        return pa.RecordBatch.from_pylist(rows, schema=arrow_schema())

    made = to_batch(some, arrow_schema())
    made.validate(full=True)
    assert made.serialize() == of_rows(some).serialize()
    kept = data.draw(st.lists(st.sampled_from(range(len(some))), unique=True).map(sorted))
    taken = made.take(pa.array(kept, pa.int64()))
    (joined,) = pa.Table.from_batches([made, taken, made.slice(1)]).combine_chunks().to_batches()
    assert joined.serialize() == of_rows([*some, *(some[i] for i in kept), *some[1:]]).serialize()


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_percentiles_are_places_among_the_sorted_lengths(sizes):
    one, other = Lengths(), Lengths()
    for i, size in enumerate(sizes):
        (one if i % 2 else other).add(Record("x" * size, ["p"]))
    one.merge(other)
    found = one.summary()["query"]["characters"]
    for share in (50, 90, 99):
        assert found[f"p{share}"] == sorted(sizes)[-(-len(sizes) * share // 100) - 1]
    assert found["max"] == max(sizes)
    assert sum(found["histogram"].values()) == len(sizes)
    assert all(sum(size <= int(bound) for size in sizes) >= count for bound, count in found["histogram"].items())


@pytest.mark.parametrize("text", ["", "a\tb", "a  b"])
def test_lengths_of_many_texts_are_those_of_each(text):
    one, other = Lengths(), Lengths()
    one.add(Record(text, ["p q", "r"], ["n"]))
    import numpy as np

    for field, some in (("query", [text]), ("positive", ["p q", "r"]), ("negative", ["n"])):
        other.add_all(field, np.array([len(t) for t in some]), np.array([len(t.split()) for t in some]))
    assert other.summary() == one.summary()
