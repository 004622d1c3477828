"""JSON that UTF-8 cannot hold is refused where it is read, not where it is written or hashed."""

import pytest

from data_prep.__main__ import main
from data_prep.common.errors import BadInput
from data_prep.common.finite import check_whole, decode_json, decode_whole
from data_prep.reading.corpus import read_corpus
from data_prep.reading.retrieval_sets import load_set
from trainer.config.loading import load_config

HALF = r"\ud83d"  # of an emoji


@pytest.mark.parametrize(
    "text", [f'"{HALF}"', f'{{"a": ["{HALF.upper()}"]}}'.replace(r"\UD", r"\uD"), f'{{"{HALF}": 1}}', '"\udcff"']
)
def test_half_a_pair_and_other_bytes_are_refused(text):
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        decode_whole(text)


@pytest.mark.parametrize("text", [r'"\ud83d\ude00"', '"\U0001f600"', r'"\\ud83d"', '"é"'])
def test_whole_characters_are_read(text):
    decode_whole(text).encode()


@pytest.mark.parametrize("key", ["id", "text", "title", "other"])
def test_a_corpus_names_the_line(tmp_path, key):
    path = tmp_path / "corpus.jsonl"
    values = {"id": "1", "text": "t", key: HALF}
    path.write_text("{" + ", ".join(f'"{name}": "{value}"' for name, value in values.items()) + "}\n")
    with pytest.raises(BadInput, match=r"corpus\.jsonl:1: holds half of a surrogate pair"):
        list(read_corpus(path))


def test_a_retrieval_set_names_the_line(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(f'{{"_id": "d1", "text": "t"}}\n{{"_id": "{HALF}", "text": "t"}}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "t"}\n')
    (tmp_path / "qrels.tsv").write_text("q1\td1\t1\n")
    with pytest.raises(BadInput, match=r"corpus\.jsonl:2: not JSON \(holds half"):
        load_set(tmp_path)


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_a_run_file_says_so(tmp_path, name):
    path = tmp_path / name
    path.write_text(f'{{"output_dir": "{HALF}", "model": {{"path": "M"}}, "data": {{"train": "t"}}}}')
    with pytest.raises(BadInput, match="half of a surrogate pair"):
        load_config(path)


def test_keys_that_are_numbers_are_answered(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: o\nmodel: {path: M}\ndata: {train: t}\noptimizer: {64: 1, lr: 1}\n")
    with pytest.raises(BadInput, match="64: Unknown"):
        load_config(path)


def test_nested_too_deep_is_said_in_words():
    deep = 2000 * "[" + 2000 * "]"
    with pytest.raises(ValueError, match="nested too deep"):
        decode_json(deep)
    value = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(ValueError, match="nested too deep"):
        check_whole(value)


def test_an_answer_with_half_a_pair_is_still_decoded():
    """It is the one pair that is left out, where the answer is read, not the whole answer."""
    assert decode_json(f'{{"a": "{HALF}"}}') == {"a": "\ud83d"}


@pytest.mark.parametrize("file", ["log.jsonl", "items.jsonl"])
def test_a_search_log_and_its_catalogue_name_the_line(tmp_path, file, capsys):
    rows = {
        "log.jsonl": '{"query": "q", "item": "a", "position": 1, "count": 5}\n',
        "items.jsonl": '{"id": "a", "text": "t"}\n',
    }
    for name, row in rows.items():
        half = row.replace('"q"', f'"{HALF}"').replace('"t"', f'"{HALF}"') if name == file else row
        (tmp_path / name).write_text(half)
    flags = ["--output", str(tmp_path / "o.jsonl"), "--items", str(tmp_path / "items.jsonl")]
    assert main(["logs", str(tmp_path / "log.jsonl"), *flags]) == 2
    assert f"{file}:1: holds half of a surrogate pair (a cut emoji); mend the text" in capsys.readouterr().err
