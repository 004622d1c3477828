"""JSON that UTF-8 cannot hold is refused where it is read, not where it is written or hashed."""

import pytest

from data_prep.common.errors import BadInput
from data_prep.common.finite import decode_json
from data_prep.reading.corpus import read_corpus
from data_prep.reading.retrieval_sets import load_set
from trainer.config.loading import load_config

HALF = r"\ud83d"  # of an emoji


@pytest.mark.parametrize(
    "text", [f'"{HALF}"', f'{{"a": ["{HALF.upper()}"]}}'.replace(r"\UD", r"\uD"), f'{{"{HALF}": 1}}', '"\udcff"']
)
def test_half_a_pair_and_other_bytes_are_refused(text):
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        decode_json(text)


@pytest.mark.parametrize("text", [r'"\ud83d\ude00"', '"\U0001f600"', r'"\\ud83d"', '"é"'])
def test_whole_characters_are_read(text):
    decode_json(text).encode()


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
