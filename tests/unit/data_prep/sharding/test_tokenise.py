"""Pre-tokenised shards: the ids that a run would make, read from memory-mapped arrays; refused where they are not."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from data_prep.records import Record
from data_prep.sharding.build import shard
from data_prep.sharding.tokenise import CL100K, Encoder, TokenOptions, find, load, spaces_between_words
from data_prep.shards.folder import open_shards
from data_prep.shards.tokens import FILES, tokenizer_hash
from data_prep.texts.tokenizer_rules import TextRules
from tests import tiny
from tests.unit.data_prep.helpers import changed_files, run, write_records
from tests.unit.data_prep.sharding.test_build import contents
from trainer.config.loading import parse_config
from trainer.config.sections import LossConfig, ModelConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.loss.exchange import DocumentKeys
from trainer.loss.objective import Objective
from trainer.model.build import load_embedder
from trainer.model.tokenizer import load_tokenizer, prompt_notes, prompt_tokens, tokenize
from trainer.model_folder.spec import read_spec
from trainer.preflight.check_run import check_run
from trainer.preflight.inputs import Inputs
from trainer.train.data import TrainData
from trainer.train.step import compute_gradients


def byte_level(folder, pattern=None, prefix=False):
    """A byte-level tokenizer, whose words begin with their space; pattern: what it splits by, None for GPT-2's."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if pattern:
        made.normalizer = normalizers.NFC()
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    spaces = ["w1\n \nw2  w3   w4 \n\n w5\t\tw6"] * 50  # runs of white space are tokens of their own
    made.train_from_iterator([" ".join(tiny.WORDS), *spaces], trainer)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, minilm, tiny_bert):
    """name -> (folder, what becomes of the spaces between words)."""
    left = tmp_path_factory.mktemp("left")
    shutil.copytree(tiny_bert, left, dirs_exist_ok=True)
    config = json.loads((left / "tokenizer_config.json").read_text()) | {"truncation_side": "left"}
    (left / "tokenizer_config.json").write_text(json.dumps(config))
    spaced = tmp_path_factory.mktemp("spaced")
    shutil.copytree(tiny_bert, spaced, dirs_exist_ok=True)
    content = json.loads((spaced / "tokenizer.json").read_text())
    added = {"id": len(tiny.WORDS) + 4, "content": "w1 w2", "normalized": True, "special": False}
    content["added_tokens"].append(added | {"single_word": False, "lstrip": False, "rstrip": False})
    (spaced / "tokenizer.json").write_text(json.dumps(content))
    return {
        "BERT": (minilm, "drop"),
        "words": (str(tiny_bert), "drop"),
        "cut left": (str(left), "drop"),
        "a token with a space": (str(spaced), None),
        "GPT-2": (str(byte_level(tmp_path_factory.mktemp("bytes"))), "lead"),
        "Qwen": (str(byte_level(tmp_path_factory.mktemp("qwen"), CL100K % "")), "lead"),
        "Llama": (str(byte_level(tmp_path_factory.mktemp("llama"), CL100K % "{1,3}")), "lead"),
        "another pattern": (str(byte_level(tmp_path_factory.mktemp("other"), r"\w+\s?|[^\w]+")), None),
        "a space put first": (str(byte_level(tmp_path_factory.mktemp("prefix"), prefix=True)), None),
    }


NAMES = ("BERT", "words", "cut left", "a token with a space", "GPT-2", "Qwen", "Llama", "another pattern")
words = st.sampled_from(
    [*tiny.WORDS[:6], "w1 w2", "Hello", "naïve", "[SEP]", "##a", "日本", "мир", "x.y,z!", "e\u0301", "\u0301"]
)
gaps = st.sampled_from(
    [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\u200b", "\x0b", "\x1c", "\x85", "\u3000", "\u00ad", ""]
)
texts = st.lists(st.tuples(gaps, words | st.text(max_size=4)), max_size=6).map(
    lambda some: "".join(g + w for g, w in some)
)


@pytest.fixture(scope="module")
def encoders(tokenizers):
    found = {}
    for name, (folder, spaces) in tokenizers.items():
        loaded = load(find(TokenOptions(folder)))
        assert spaces_between_words(json.loads(loaded.state)) == spaces, name
        found[name] = Encoder(loaded), load_tokenizer(ModelConfig(path=folder), folder)
    return found


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some=st.lists(texts, min_size=1, max_size=5))
@example(
    some=[
        "w1 w2 w1\nw2",
        "a\x1cb",
        " ",
        "w1  w2",
        "[SEP]w1 [SEP] w1",
        "w1 ",
        " w1",
        "",
        "w1\n \nw2   w3",
        "it's 12 w1 's 345",
    ]
)
def test_remembered_words_are_the_tokens_of_the_text(encoders, name, some):
    encoder, tokenizer = encoders[name]
    made = [np.frombuffer(ids, encoder.dtype).tolist() for ids in encoder.encode(some)]
    assert made == tokenizer(some, add_special_tokens=False)["input_ids"]


def records_of(seed: int, count: int = 40) -> list[Record]:
    made = [Record(**row) for row in tiny.rows(count, seed)]
    for i, record in enumerate(made):
        record.positives += [f"w{i} w{i + 1}"] * (i % 3 == 0)
        record.doc_ids = []
    return made


@pytest.mark.parametrize("name", NAMES)
def test_arrays_hold_what_the_trainer_makes_at_their_length_and_below(tmp_path, tokenizers, encoders, name):
    folder, _ = tokenizers[name]
    rows = [*records_of(1), Record("naïve\nquery [SEP]", ["日本 x.y", "w1 w2 " * 30], ["\u200bw3"])]
    options = TokenOptions(folder, "query: ", "w5 ", 9, 14)
    made = shard([write_records(tmp_path / "a.jsonl", rows)], tmp_path / "s", eval_fraction=0, tokens=options)
    arrays, tokenizer = open_shards(tmp_path / "s").train_tokens(), encoders[name][1]
    first = arrays.first_texts(list(range(len(rows))))
    for shorter in (0, 3):
        for start, row in zip(first, rows):
            own = row.positives + row.negatives
            expected = tokenize([row.query], "query: ", 9 - shorter, tokenizer)
            assert arrays.ids(start + np.arange(1), 9 - shorter) == expected
            assert arrays.ids(start + 1 + np.arange(len(own)), 14 - shorter) == tokenize(
                own, "w5 ", 14 - shorter, tokenizer
            )
    about = made["tokenizer"]
    assert about["texts"] == sum(1 + len(row.positives) + len(row.negatives) for row in rows)
    assert about["cut_queries"] == sum(tokenize([row.query], "query: ", 9, tokenizer)[1] for row in rows)
    assert about["cut_passages"] == sum(
        tokenize(row.positives + row.negatives, "w5 ", 14, tokenizer)[1] for row in rows
    )
    assert (tmp_path / "s" / "train.tokens").stat().st_size == about["tokens"] * about["id_bytes"]


def test_a_space_behind_a_prompt_that_is_not_pooled_is_told(encoders, tiny_bert):
    rules = TextRules("w1: ", "w1:", 32, 32)
    spec = dataclasses.replace(read_spec(ModelConfig(path=str(tiny_bert)), tiny_bert), rules=rules, pool_prompt=False)
    for name, joined in (("GPT-2", True), ("Qwen", True), ("BERT", False)):
        tokenizer = encoders[name][1]
        assert prompt_tokens("w1: ", tokenizer) - prompt_tokens("w1:", tokenizer) == joined
        notes = prompt_notes(tokenizer, spec)
        assert len(notes) == joined and all("'w1: ' ends in a space that joins" in note for note in notes)


@pytest.fixture
def both(tmp_path, tiny_bert):
    """The same rows as shards without and with tokens."""
    path = write_records(tmp_path / "a.jsonl", records_of(2, 60))
    plain, made = tmp_path / "plain", tmp_path / "tokens"
    shard([path], plain, eval_fraction=0.2)
    shard([path], made, eval_fraction=0.2, tokens=TokenOptions(str(tiny_bert)))
    return plain, made


def test_tasks_of_any_size_give_the_same_files(both, tmp_path, monkeypatch, tiny_bert):
    monkeypatch.setattr("data_prep.sharding.tokenise.TASK_ROWS", 7)
    shard([tmp_path / "a.jsonl"], tmp_path / "small", eval_fraction=0.2, tokens=TokenOptions(str(tiny_bert)))
    assert contents(tmp_path / "small") == contents(both[1])


def test_tokens_stand_beside_the_same_rows(both):
    plain, made = map(contents, both)
    assert {str(name) for name in set(made) - set(plain)} == set(FILES)
    assert [name for name in plain if plain[name] != made[name]] == [
        name for name in plain if name.name == "manifest.json"
    ]
    assert open_shards(both[0]).fingerprint == open_shards(both[1]).fingerprint
    assert changed_files(open_shards(both[1])) == []


def config_of(shards, folder, **changes):
    values = {
        "model": {"path": str(folder)},
        "data": {"train": str(shards)},
        "train": {"batch_size": 8, "max_steps": 12},
    }
    for section, own in changes.items():
        values[section] |= own
    return parse_config(values | {"output_dir": str(shards.parent / "run")}, "test")


@pytest.mark.parametrize(
    "changes", [{}, {"model": {"query_max_len": 4, "passage_max_len": 9}}, {"data": {"max_hard_negatives": 1}}]
)
def test_batches_and_losses_are_those_of_the_untokenised_path(both, tiny_bert, changes, monkeypatch):
    batches, losses = [], []
    for shards in both:
        config = config_of(shards, tiny_bert, **changes)
        embedder, tokenizer, spec, _ = load_embedder(config.model)
        engine = TorchEngine(embedder, config.optim, World(), torch.device("cpu"), None)
        data = TrainData(config.data, spec, tokenizer, Inputs(config).plan)
        if data.tokens:
            monkeypatch.setattr("trainer.train.data.tokenize", None)  # nothing is tokenised in the run
        batches.append([batch for rank in range(2) for _, batch in data.batches(0, 12, rank, 2)])
        whole = [batch for _, batch in data.batches(0, 3, 0, 1)]
        losses.append([compute_gradients(engine, batch, Objective(LossConfig(), True), 10**6).loss for batch in whole])
    assert len(batches[0]) == 24
    for one, other in zip(*batches):
        for name, value in vars(one).items():
            assert _equal(value, getattr(other, name)), name
    assert any(batch.truncated for batch in batches[0]) == ("model" in changes)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def _equal(one, other) -> bool:
    if isinstance(one, DocumentKeys):
        return all(map(_equal, one, other))
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    return one == other


def refusal(shards, folder, **changes) -> str:
    with pytest.raises(BadInput) as error:
        check_run(Inputs(config_of(shards, folder, **changes)), resume=False)
    assert len(error.value.problems) == 1
    return error.value.problems[0]


def test_a_run_file_that_says_otherwise_is_refused_in_one_line(both, tiny_bert, tmp_path):
    made = both[1]
    check_run(Inputs(config_of(made, tiny_bert, model={"query_max_len": 5})), resume=False)
    line = refusal(made, tiny_bert, model={"query_prompt": "find: ", "passage_max_len": 40})
    assert (
        "holds tokens made with query_prompt '' (the run's is 'find: '), passage_max_len 32 (the run's is longer: 40)"
        in line
    )
    assert line.startswith("data.train: ")
    assert "shard again" in line
    other = tmp_path / "other"
    shutil.copytree(tiny_bert, other)
    content = json.loads((other / "tokenizer.json").read_text())
    edited = content | {"truncation": {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}}
    (other / "tokenizer.json").write_text(json.dumps(edited))
    check_run(Inputs(config_of(made, other)), resume=False)  # how it was used last is no difference
    content["model"]["vocab"] |= {"w0": 5, "w1": 4}
    (other / "tokenizer.json").write_text(json.dumps(content))
    assert f"the tokenizer of {tiny_bert} (the run's is another one, that of {other})" in refusal(made, other)
    (other / "tokenizer.json").rename(other / "vocab.txt")
    assert "has no tokenizer.json" in refusal(made, other, model={"query_prompt": ""})


def test_tokens_that_the_tokenizer_no_longer_makes_are_noticed(both, tiny_bert):
    """The manifest cannot know: a library may read the same tokenizer.json in another way."""
    config = config_of(both[1], tiny_bert)
    tokens = both[1] / "train.tokens"
    ids = np.fromfile(tokens, "<u2")
    ids[1] += 1
    ids.tofile(tokens)
    with pytest.raises(BadInput, match="are not what the tokenizer of .* makes of its texts today; shard again"):
        TrainData(
            config.data,
            read_spec(config.model, tiny_bert),
            load_tokenizer(config.model, str(tiny_bert)),
            Inputs(config).plan,
        )


@pytest.mark.parametrize(
    "flags, parts",
    [
        ("--query-prompt q", ["--query-prompt: nothing is tokenised without --tokenizer"]),
        ("--tokenizer {model} --query-max-len 3", ["--query-max-len 3: must be 4 or more"]),
        ("--tokenizer {model} --passage-max-len 65", ["--passage-max-len: 65 tokens, but the model has 64 positions"]),
        ("--tokenizer ./nowhere", ["--tokenizer nowhere: is not a folder"]),
        ("--tokenizer .", ["has no tokenizer.json"]),
        ("--workers 0", ["--workers 0: must be 1 or more"]),
    ],
)
def test_bad_options_are_refused(tmp_path, tiny_bert, capsys, monkeypatch, flags, parts):
    monkeypatch.chdir(tmp_path)
    path = write_records(tmp_path / "a.jsonl", records_of(1))
    code, _, err = run(capsys, "shard", path, "--output", "s", *flags.format(model=tiny_bert).split())
    assert code == 2
    assert all(part in err for part in parts), err
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_the_command_says_what_was_tokenised(tmp_path, tiny_bert, capsys):
    path = write_records(tmp_path / "a.jsonl", records_of(1))
    command = ["shard", path, "--output", tmp_path / "s", "--tokenizer", tiny_bert, "--passage-max-len", "10"]
    code, out, _ = run(capsys, *command, "--eval-fraction", "0")
    assert code == 0
    about = open_shards(tmp_path / "s").manifest["tokenizer"]
    assert about["sha256"] == tokenizer_hash(tiny_bert)
    counts = f"{about['texts']:,} texts, {about['tokens']:,} tokens"
    assert f"{counts}; cut: 0 queries at 32, {about['cut_passages']:,} passages at 10" in out
