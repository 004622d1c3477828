"""Bad input: every case ends with exit code 2 and one clear message; what was valid before is untouched."""

import json
import os
from pathlib import Path

import pytest

from data_prep.stores.base import Chunk
from data_prep.stores.open import write_chunks
from tests.unit.data_prep.helpers import PAIR, documents, read_jsonl, run, write_jsonl, write_records

GOOD = json.dumps(PAIR)
# (case, file name, content, the parts that the message must have)
ROWS = [
    ("missing positive", "a.jsonl", '{"anchor": "a"}', ["a.jsonl:1:", "key 'positive' is missing", "accepted rows"]),
    ("misspelt key", "a.jsonl", '{"anchr": "a", "positive": "b"}', ["a.jsonl:1:", "Did you mean 'anchr'?"]),
    ("one key", "a.jsonl", '{"text": "a"}', ["a.jsonl:1:", "the row has one key, 'text'; a pair needs"]),
    (
        "other keys",
        "a.jsonl",
        '{"title": "a", "body": "b"}',
        ["rename two, such as --columns query=title,positive=body"],
    ),
    ("no keys", "a.jsonl", "{}", ["a.jsonl:1:", "the row is empty"]),
    ("line number", "a.jsonl", GOOD + '\n\n{"anchor": "a", "positive": ""}', ["a.jsonl:3:", "key 'positive' is empty"]),
    ("blank text", "a.jsonl", '{"anchor": " \\t", "positive": "b"}', ["key 'anchor' is empty"]),
    ("invisible text", "a.jsonl", '{"anchor": "\\u200b", "positive": "b"}', ["key 'anchor' is empty"]),
    ("number as text", "a.jsonl", '{"anchor": 5, "positive": "b"}', ["key 'anchor' must be a text, not a number (5)"]),
    ("list as text", "a.jsonl", '{"anchor": ["a"], "positive": "b"}', ["'anchor' must be a text, not a list"]),
    ("null text", "a.jsonl", '{"anchor": null, "positive": "b"}', ["key 'anchor' is null"]),
    ("text as list", "a.jsonl", '{"query": "a", "pos": "b"}', ["key 'pos' must be a list of texts, not a text"]),
    ("empty list", "a.jsonl", '{"query": "a", "pos": []}', ["key 'pos' is empty: it needs at least one text"]),
    ("empty in list", "a.jsonl", '{"query": "a", "pos": ["b", ""]}', ["key 'pos[1]' is empty"]),
    ("wrong in list", "a.jsonl", '{"query": "a", "pos": ["b"], "neg": [1]}', ["key 'neg[0]' must be a text"]),
    ("lost negative", "a.jsonl", '{"anchor": "a", "positive": "b", "negs": "c"}', ["key 'negs'", "rename it"]),
    ("score above 1", "a.jsonl", '["a", "b", 3]', ["a.jsonl:1:", "key 'score' is 3, outside 0..1"]),
    ("score below 0", "a.jsonl", '{"query": "a", "item": "b", "score": -0.5}', ["key 'score' is -0.5, outside 0..1"]),
    ("score as text", "a.jsonl", '["a", "b", "0.5"]', ["key 'score' must be a number, not a text"]),
    ("score as bool", "a.jsonl", '["a", "b", true]', ["key 'score' must be a number, not true/false"]),
    ("score missing", "a.jsonl", '["a", "b", null]', ["key 'score' is null"]),
    ("score NaN", "a.jsonl", '["a", "b", NaN]', ["NaN is not JSON"]),
    ("short array", "a.jsonl", '["a", "b"]', ["must be [query, item, score]; this one has 2 values"]),
    ("bare text", "a.jsonl", '"a"', ["a row must be an object or [query, item, score], not a text"]),
    ("invalid JSON", "a.jsonl", GOOD + "\n{'anchor': 'a'}", ["a.jsonl:2:", "invalid JSON", "column 2"]),
    ("cut JSON", "a.jsonl", GOOD + "\n" + GOOD[:20], ["a.jsonl:2:", "invalid JSON"]),
    ("key twice", "a.jsonl", '{"anchor": "a", "anchor": "b", "positive": "c"}', ["key 'anchor' stands twice"]),
    ("nested too deep", "a.jsonl", "[" * 100_000, ["a.jsonl:1:", "nested too deep"]),
    ("half emoji", "a.jsonl", '{"anchor": "a\\ud83d", "positive": "b"}', ["half of a surrogate pair"]),
    ("no UTF-8", "a.jsonl", GOOD.encode() + b'\n{"anchor": "\xff"}', ["a.jsonl:2:", "not valid UTF-8: byte 0xff"]),
    ("UTF-16", "a.jsonl", GOOD.encode("utf-16"), ["is UTF-16; save it as UTF-8"]),
    ("gzip", "a.jsonl", b"\x1f\x8b\x08\x00", ["is gzip-compressed"]),
    ("empty file", "a.jsonl", "", ["a.jsonl: the file is empty"]),
    ("blank file", "a.jsonl", "\n\n", ["a.jsonl: has no rows"]),
    ("unknown type", "a.txt", GOOD, ["unknown file type '.txt'", ".jsonl"]),
    ("two shapes", "a.jsonl", '{"anchor": "a", "positive": "b", "term": "c", "definition": "d"}', ["fit two shapes"]),
    ("choice needed", "a.jsonl", '{"chunk_id": "1", "question": "a", "answer": "b", "context": "c"}', ["--positive"]),
    ("chunk id", "a.jsonl", '{"chunk_id": [], "question": "a", "answer": "b"}', ["key 'chunk_id' must be a text"]),
    ("metadata", "a.jsonl", '{"anchor": "a", "positive": "b", "metadata": 5}', ["'metadata' must be an object"]),
    ("metadata clash", "a.jsonl", json.dumps(PAIR | {"lang": "en", "metadata": {"lang": "de"}}), ["key 'lang'"]),
    (
        "teacher length",
        "a.jsonl",
        '{"query": "a", "positives": ["b"], "teacher_scores": [1, 2]}',
        ["teacher_scores has 2"],
    ),
    ("teacher type", "a.jsonl", '{"query": "a", "positives": ["b"], "teacher_scores": ["x"]}', ["teacher_scores[0]"]),
    ("doc ids", "a.jsonl", '{"query": "a", "positives": ["b"], "doc_ids": ["1", "2"]}', ["doc_ids has 2 values for 1"]),
    ("JSON no array", "a.json", GOOD, ["a.json:1:", "one array of rows"]),
    ("JSON cut", "a.json", f"[{GOOD},\n{GOOD}", ["a.json:2:", "expected ',' or ']'"]),
    ("JSON broken", "a.json", f"[{GOOD},\n{{]", ["a.json:2:", "invalid JSON"]),
    ("JSON tail", "a.json", f"[{GOOD}] x", ["text after the end of the array"]),
    ("JSON element", "a.json", f'[{GOOD},\n\n["a", "b", 7]]', ["a.json:3:", "outside 0..1"]),
    ("empty array", "a.json", "[]", ["a.json: has no rows"]),
    ("CSV header", "a.csv", "foo,bar\n1,2\n", ["a.csv:2:", "keys 'foo', 'bar' fit no accepted row"]),
    ("CSV header only", "a.csv", "term,definition\n", ["a.csv: has no rows"]),
    ("CSV cells", "a.csv", "term,definition\na,b,c\n", ["a.csv:2:", "3 cells where the header names 2"]),
    ("CSV empty cell", "a.csv", "term,definition\na,\n", ["a.csv:2:", "key 'definition' is empty"]),
    ("CSV open quote", "a.csv", 'term,definition\na,b\nc,"d\n', ["a.csv:3:", "close the quote"]),
    ("CSV semicolon", "a.csv", "term;definition\na;b\n", ["separated by ';'"]),
    ("CSV twice", "a.csv", "term,term\na,b\n", ["names column 'term' twice"]),
    ("CSV nameless", "a.csv", "term,,definition\na,b,c\n", ["column 2 of the header has no name"]),
    ("CSV no UTF-8", "a.csv", b"term,definition\na,b\nc,\xe4\n", ["a.csv:3:", "not valid UTF-8: byte 0xe4"]),
    ("CSV score", "a.csv", "query,item,score\na,b,high\n", ["a.csv:2:", "key 'score' must be a number"]),
    ("CSV NaN", "a.csv", "query,item,score\na,b,nan\n", ["a.csv:2:", "finite"]),
    ("CSV log", "a.csv", "query,item,position,count\na,b,1,2\n", ["a.csv:2:", "search log", "data_prep logs"]),
    ("CSV doubled quote", "a.csv", 'term,definition\na,"b"c\n', ["a.csv:2:", "double a quote inside a text"]),
    ("CSV UTF-8 header", "a.csv", b"term,d\xe9finition\na,b\n", ["a.csv:1:", "not valid UTF-8: byte 0xe9"]),
    ("CSV score range", "a.csv", "query,item,score\na,b,80\n", ["a.csv:2:", "outside 0..1", "largest grade"]),
    ("CSV metadata", "a.csv", "anchor,positive,metadata\na,b,{x\n", ["a.csv:2:", "key 'metadata' is no JSON object"]),
    ("TSV with commas", "a.tsv", "term,definition\na,b\n", ["a.tsv:1:", "separated by ','"]),
    ("TSV cells", "a.tsv", "query\titem\tscore\na\tb\n", ["a.tsv:2:", "2 cells where the header names 3"]),
    ("JSON twice", "a.json", '[{"anchor": "a", "positive": "b", "anchor": "c"}]', ["a.json:1:", "stands twice"]),
    ("JSON UTF-8", "a.json", b'[["a", "b\xff", 1]]', ["a.json", "not valid UTF-8: byte 0xff"]),
    ("long array", "a.jsonl", '["a", "b", 1, 2]', ["this one has 4 values"]),
    ("infinite score", "a.jsonl", '["a", "b", 1e999]', ["key 'score' is inf; it must be a finite number"]),
    ("boolean id", "a.jsonl", json.dumps(PAIR | {"id": True}), ["key 'id' must be a text, not true/false"]),
    ("empty doc id", "a.jsonl", '{"query": "a", "positives": ["b"], "doc_ids": [""]}', ["key 'doc_ids[0]' is empty"]),
    ("source", "a.jsonl", '{"query": "a", "positives": ["b"], "source": 1}', ["key 'source' must be a text"]),
    ("teacher list", "a.jsonl", '{"query": "a", "positives": ["b"], "teacher_scores": 1}', ["a list of numbers"]),
    ("null in list", "a.jsonl", '{"query": "a", "pos": [null]}', ["key 'pos[0]' must be a text, not null"]),
    (
        "negative type",
        "a.jsonl",
        '{"query": "a", "positive": "b", "negative": {"c": 1}}',
        ["'negative' must be a text"],
    ),
    ("Parquet", "a.parquet", "no parquet at all", ["is not a readable Parquet file"]),
]


def refused(capsys, parts, *arguments) -> str:
    code, out, err = run(capsys, *arguments)
    assert code == 2, err
    assert err.startswith("error: ") or "\nerror: " in err
    assert "Traceback" not in out + err
    for part in parts:
        assert part in err
    return err


@pytest.mark.parametrize("name, content, parts", [case[1:] for case in ROWS], ids=[case[0] for case in ROWS])
def test_a_malformed_input_is_refused_and_an_earlier_output_stays(tmp_path, capsys, name, content, parts):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    output = tmp_path / "out.jsonl"
    output.write_text("valid before")
    refused(capsys, parts, "compose", path, "--output", output)
    assert output.read_text() == "valid before"
    refused(capsys, parts, "shard", path, "--output", tmp_path / "shards", "--eval-fraction", "0")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([name, "out.jsonl"])


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ("compose nope.jsonl --output o.jsonl", ["nope.jsonl: no such file"]),
        ("compose godo.jsonl --output o.jsonl", ["Did you mean 'good.jsonl'?"]),
        ("compose nope.jsonl absent.csv --output o.jsonl", ["2 problems", "nope.jsonl", "absent.csv"]),
        ("compose good.jsonl good.jsonl --output o.jsonl", ["given twice"]),
        ("compose folder --output o.jsonl", ["folder that `datasets` did not write"]),
        ("compose good.jsonl --output good.jsonl", ["is also an input"]),
        ("compose x.rejected.jsonl --output x.jsonl --skip-bad", ["would replace the input"]),
        ("compose good.jsonl --output folder", ["must end in .jsonl", "is a folder"]),
        ("compose good.jsonl --output good.jsonl/o.jsonl", ["good.jsonl is a file, not a folder"]),
        ("compose good.jsonl/a.jsonl --output o.jsonl", ["a.jsonl: no such file"]),
        ("compose good.jsonl --output o.txt", ["must end in .jsonl"]),
        ("compose good.jsonl --output o.jsonl --hard-k -1", ["--hard-k -1"]),
        ("compose bad.jsonl --output o.jsonl --skip-bad", ["no valid row"]),
        ("compose taught.jsonl --output o.jsonl --hard-k 1", ["teacher_scores"]),
        ("compose good.jsonl --output o.jsonl --balance modul", ["by --balance", "Did you mean 'module'?"]),
        ("compose bad.jsonl --output o.jsonl --balance module", ["bad.jsonl:1:", "bad.jsonl:2:"]),
        ("compose good.jsonl --output o.jsonl --per-value 2", ["belongs to --balance FIELD"]),
        ("compose good.jsonl --output o.jsonl --balance module --per-value 0", ["--per-value 0"]),
        ("augment good.jsonl --output o.csv --variants 0", ["2 problems", "must end in .jsonl", "--variants 0"]),
        ("augment bad.jsonl good.jsonl --output o.jsonl", ["bad.jsonl:1:", "bad.jsonl:2:"]),
        ("augment good.jsonl --output good.jsonl", ["is also an input"]),
        ("augment good.jsonl --synonyms words.jsonl --output words.jsonl", ["is also an input"]),
        ("augment good.jsonl --output o.jsonl --typo-rate 2 --case-rate -1", ["--typo-rate 2", "--case-rate -1"]),
        ("augment good.jsonl --output o.jsonl --typo-rate nan", ["--typo-rate nan: must be in 0..1"]),
        ("augment good.jsonl --output o.jsonl --typo-rate 0", ["every rate is 0"]),
        ("augment good.jsonl --output o.jsonl --typos swop,drop=0", ["Did you mean 'swap'?", "more than 0"]),
        ("augment good.jsonl --output o.jsonl --typos drop=much", ["'much' is no number"]),
        ("augment good.jsonl --output o.jsonl --score-scale 1.5", ["--score-scale 1.5"]),
        ("augment good.jsonl --output o.jsonl --misspellings no --synonyms bad.jsonl", ["no: cannot", "bad.jsonl:1:"]),
        ("augment good.jsonl --output o.jsonl --typo-rate 0 --misspellings m.tsv", ["--typo-rate is 0"]),
        ("augment good.jsonl --output o.jsonl --synonym-rate 0 --synonyms s.txt", ["--synonym-rate is 0"]),
        ("augment parent.jsonl --output o.jsonl", ["record parent:1: its metadata has 'parent'", "rename"]),
        ("augment short.jsonl --output o.jsonl", ["no variant from 1 rows"]),
        ("logs good.jsonl --output o.jsonl", ["good.jsonl:1: key 'item' is missing", "'position'", "'count'"]),
        ("logs log.csv log.csv --output o.jsonl", ["given twice"]),
        ("logs log.csv --output o.jsonl --items good.jsonl", ["good.jsonl:1:", "key 'text' is missing"]),
        (
            "logs badlog.csv nolog.csv --output o.jsonl",
            [
                "badlog.csv:2: key 'position' is 0, below 1; positions count from 1; key 'count' must be a whole",
                "badlog.csv:3: key 'count' is -2, below 0",
                "badlog.csv:4: key 'item' is empty",
                "nolog.csv: no such file",
            ],
        ),
        ("logs mixed.jsonl --output o.jsonl", ["mixed.jsonl:2: key 'impressions' stands here, but not in the first"]),
        (
            "logs log.csv --output o.jsonl --min-clicks 9",
            ["log.csv: no record can be made", "left out: 1 queries with fewer than 9 clicks"],
        ),
        ("logs log.csv --output o.jsonl --eta -1 --positive-score 2", ["2 problems", "--eta -1", "--positive-score 2"]),
        ("logs log.csv --output o.jsonl --min-clicks 0 --min-examined nan", ["--min-clicks 0", "--min-examined nan"]),
        ("logs log.csv --output log.csv", ["must end in .jsonl", "is also an input"]),
        ("shard good.jsonl --output s --num-shards 0", ["--num-shards 0"]),
        ("shard good.jsonl --output s --num-shards 1000 --eval-fraction 0", ["more than the 30 rows"]),
        ("shard good.jsonl --output s --eval-fraction 1", ["--eval-fraction 1"]),
        ("shard good.jsonl --output s --eval-fraction nan", ["--eval-fraction nan"]),
        ("shard good.jsonl --output s --eval-fraction 1e-9", ["no row is left for the eval split"]),
        ("shard one.jsonl --output s --eval-fraction 0.999999", ["no row is left for the eval split"]),
        ("shard good.jsonl --output s --split-by modul", ["metadata field 'modul'", "Did you mean 'module'?"]),
        ("shard good.jsonl --output good.jsonl", ["is a file, not a folder"]),
        ("shard good.jsonl --output folder", ["holds other files"]),
        ("shard good.jsonl --output .", ["holds the input"]),
        ("inspect nope", ["nope: no such file or folder"]),
        ("inspect folder", ["folder that `datasets` did not write"]),
        ("inspect empty.jsonl", ["the file is empty"]),
        (
            "generate --path store --collection docs --output o.jsonl",
            ["--model: name the language model to ask", "--offline"],
        ),
        ("generate --offline --path nope --collection docs --output o.jsonl", ["--path nope: no such folder"]),
        ("generate --offline --path stroe --collection docs --output o.jsonl", ["Did you mean 'store'?"]),
        ("generate --offline --path folder --collection docs --output o.jsonl", ["is no Chroma folder", "other.txt"]),
        ("generate --offline --path good.jsonl --collection docs --output o.jsonl", ["good.jsonl: is a file"]),
        ("generate --offline --path broken --collection docs --output o.jsonl", ["chroma.sqlite3 is damaged"]),
        (
            "generate --offline --path store --collection dosc --output o.jsonl",
            ["docs (2 chunks)", "Did you mean 'docs'"],
        ),
        (
            "generate --offline --path store --collection docs --output o.jsonl --where {",
            ['is not JSON; write it like \'{"kind"'],
        ),
        ("generate --offline --path store --collection docs --output o.jsonl --where []", ["must be a JSON object"]),
        (
            'generate --offline --path store --collection docs --output o.jsonl --where {"a":{"$x":1}}',
            ["does not accept"],
        ),
        ('generate --offline --path store --collection docs --output o.jsonl --where {"a":"b"}', ["no chunk fits"]),
        ("generate --offline --path store --collection docs --output o.jsonl --hide nam", ["Did you mean 'name'?"]),
        ("generate --offline --path store --collection docs --output o.jsonl --limit 0", ["--limit 0"]),
        (
            "generate --offline --path store --collection docs --output o.jsonl --min-words 900",
            ["no pair from 2 chunks"],
        ),
        ("generate --offline --path store --collection docs --output o.csv", ["must end in .jsonl"]),
        ("sample --path new --collection ab", ["3 to 512 letters"]),
        ("sample --path good.jsonl --collection docs", ["is a file"]),
        ("sample --path new --collection docs --limit 0", ["--limit 0"]),
        ("sample --path store --collection docs --limit 3", ["one with other content (2 chunks)"]),
    ],
)
def test_a_bad_command_is_refused(workplace, capsys, arguments, parts):
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and "store" not in path.parts}
    refused(capsys, parts, *arguments.split(" "))
    after = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and "store" not in path.parts}
    assert {path: after[path] for path in before} == before
    assert not {"o.jsonl", "s"} & {path.parts[0] for path in after}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("folder", "broken"):
        (folder / name).mkdir()
    (folder / "folder" / "other.txt").write_text("x")
    (folder / "broken" / "chroma.sqlite3").write_text("no database" * 100)
    write_records(folder / "good.jsonl", documents(10, module=True))
    write_records(folder / "one.jsonl", documents(1))
    write_jsonl(folder / "bad.jsonl", ["{}", "{"])
    (folder / "empty.jsonl").write_text("")
    write_jsonl(folder / "x.rejected.jsonl", [PAIR])
    write_jsonl(folder / "taught.jsonl", [{"query": "a b", "positives": ["b"], "teacher_scores": [0.5]}] * 2)
    (folder / "m.tsv").write_text("anwser\tanswer\n")
    (folder / "s.txt").write_text("topic, theme\n")
    write_jsonl(folder / "parent.jsonl", [PAIR | {"parent": "mould"}])
    write_jsonl(folder / "short.jsonl", [{"anchor": "v1.13", "positive": "b"}])
    (folder / "log.csv").write_text("query,item,position,count\na,b,1,2\n")
    (folder / "badlog.csv").write_text("query,item,position,count\na,b,0,many\na,c,1,-2\na,,1,1\n")
    shown = {"query": "a", "item": "b", "position": 1, "count": 1}
    write_jsonl(folder / "mixed.jsonl", [shown, shown | {"impressions": 5}])
    text = "Opens the window.\n\nIt turns the handle, pulls the frame and lets the air of the garden in."
    chunks = [Chunk(str(i), f"{text} {i}", {"name": "window"}) for i in range(2)]
    write_chunks(folder / "store", "docs", chunks, "digest")
    return folder


@pytest.fixture
def workplace(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    return inputs


def test_all_problems_of_all_inputs_are_listed_up_to_a_limit(tmp_path, capsys):
    first = write_jsonl(tmp_path / "a.jsonl", [PAIR, "{", '{"anchor": "", "positive": 1}'])
    second = write_jsonl(tmp_path / "b.jsonl", ["[]", *({"x" * (i + 1): 1} for i in range(100))])
    err = refused(capsys, [], "compose", first, second, tmp_path / "c.csv", "--output", tmp_path / "o.jsonl")
    assert "a.jsonl:2: invalid JSON" in err
    assert "a.jsonl:3: key 'anchor' is empty; key 'positive' must be a text" in err
    assert "… and 54 more" in err  # 2 + 101 + the missing file, of which 50 are shown
    assert err.count("b.jsonl:") == 48


def test_skip_bad_keeps_every_valid_row_and_every_rejected_line(tmp_path, capsys):
    lines = [PAIR, "{oops", {"anchor": "ä", "positive": ""}, {"term": "mould", "definition": "a fungus"}]
    path = write_jsonl(tmp_path / "a.jsonl", lines)
    with open(path, "ab") as handle:
        handle.write(b"\xff\n")
    code, _, err = run(capsys, "compose", path, "--output", tmp_path / "o.jsonl", "--skip-bad")
    assert code == 0
    assert "3 bad rows skipped" in err
    assert [row["query"] for row in read_jsonl(tmp_path / "o.jsonl")] == [PAIR["anchor"], "mould"]
    rejected = read_jsonl(tmp_path / "o.rejected.jsonl")
    assert [(row["file"], row["line"]) for row in rejected] == [(str(path), 2), (str(path), 3), (str(path), 5)]
    assert rejected[0]["raw"] == "{oops"
    assert "invalid JSON" in rejected[0]["reason"]
    assert json.loads(rejected[1]["raw"]) == lines[2]
    assert rejected[2]["raw"].encode("utf-8", "surrogateescape") == b"\xff"


def test_skip_bad_does_not_skip_a_file_that_cannot_be_read(tmp_path, capsys):
    good = write_jsonl(tmp_path / "a.jsonl", [PAIR])
    parts = ["b.jsonl: no such file"]
    refused(capsys, parts, "compose", good, tmp_path / "b.jsonl", "--output", tmp_path / "o.jsonl", "--skip-bad")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, capsys):
    good = write_jsonl(tmp_path / "a.jsonl", [PAIR])
    (tmp_path / ".o.jsonl.unfinished").symlink_to("/dev/full")
    code, _, err = run(capsys, "compose", good, "--output", tmp_path / "o.jsonl")
    assert code == 1
    assert err == "error: No space left on device\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_ctrl_c_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.composing.compose.read_records", interrupted)
    good = write_jsonl(tmp_path / "a.jsonl", [PAIR])
    code, _, err = run(capsys, "compose", good, "--output", tmp_path / "o.jsonl")
    assert (code, err) == (130, "stopped by Ctrl-C\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_info.json", "null"),
        ("dataset_info.json", "[" * 3000),
        ("dataset_info.json", '{"features": {"a": 1}}'),
        ("state.json", '{"_data_files": null}'),
        ("state.json", "[]"),
        ("data-00000-of-00001.arrow", ""),
    ],
)
def test_a_datasets_folder_with_any_damaged_file_is_refused_in_words(tmp_path, capsys, name, content):
    import datasets

    datasets.Dataset.from_list([PAIR]).save_to_disk(str(tmp_path / "rows"))
    (tmp_path / "rows" / name).write_text(content)
    code, _, err = run(capsys, "compose", tmp_path / "rows", "--output", tmp_path / "out.jsonl")
    assert code == 2 and "`datasets` cannot load this folder: " in err


def test_json_nested_too_deep_is_a_bad_line_of_a_retrieval_set(tmp_path, capsys):
    for name in ("corpus", "queries"):
        (tmp_path / f"{name}.jsonl").write_text("[" * 3000 + "\n")
    rows = write_jsonl(tmp_path / "rows.jsonl", [PAIR])
    code, _, err = run(capsys, "shard", rows, "--output", tmp_path / "out", "--exclude", tmp_path)
    assert code == 2 and err.count("not JSON (nested too deep)") == 2
