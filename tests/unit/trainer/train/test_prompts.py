"""Prompts of the model, of sources and of rows: the tokens are those that sentence-transformers makes.

Shards are tokenised before the run or in it. Every text's expected prompt is written out by hand.
"""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from data_prep.common.errors import BadInput
from tests import tiny
from tests.unit.data_prep.helpers import run, write_jsonl
from trainer.config.loading import load_config, parse_config
from trainer.config.yaml_reader import override
from trainer.model.tokenizer import load_tokenizer
from trainer.preflight.check_run import check_run
from trainer.preflight.inputs import Inputs
from trainer.train import fit
from trainer.train.data import TrainData
from trainer.train.job import Seconds

# FlagEmbedding's rows, whose `prompt` is for the query; every second states none
TASKS = [
    {"query": f"w{i} w11", "pos": [f"w{i} w21"], "neg": [f"w{i} w31"] * (i % 3), "type": "x"}
    | ({"prompt": f"w5 w{i}"} if i % 2 else {"prompt": None})
    | ({"positive_prompt": "w6 "} if i % 3 else {})  # no supervision, whatever it sounds like
    for i in range(40, 52)
]
PAIRS = [{"anchor": f"w{i} w12", "positive": f"w{i} w22"} for i in range(60, 72)]
PROMPTS = {
    "model": {"query_prompt": "w1 w2 "},
    "data": {"row_query_prompt": "Instruct: {prompt}\nQuery:", "row_passage_prompt": "positive_prompt"},
    "sources": {"tasks": {"passage_prompt": "w8 "}, "pairs": {"query_prompt": "w9 w9 "}},
}
FLAGS = (
    "--query-prompt", "w1 w2 ", "--row-query-prompt", PROMPTS["data"]["row_query_prompt"],
    "--source-passage-prompt", "tasks=w8 ", "--source-query-prompt", "pairs=w9 w9 ", "--row-passage-prompt",
    "positive_prompt",
)  # fmt: skip


def prompts_of(record) -> tuple[str, str]:
    if record.source == "pairs":
        return "w9 w9 ", ""
    stated = record.metadata["prompt"]
    return f"Instruct: {stated}\nQuery:" if stated else "w1 w2 ", record.metadata.get("positive_prompt", "w8 ")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return [write_jsonl(folder / f"{name}.jsonl", rows) for name, rows in (("tasks", TASKS), ("pairs", PAIRS))]


def config_of(shards, folder, **more):
    values = {"output_dir": str(shards.parent / "out"), "train": {"batch_size": 4}, **more}
    values["model"] = {"path": str(folder)} | more.get("model", {})
    values["data"] = {"train": str(shards)} | more.get("data", {})
    return parse_config(values, "test")


def shards_of(capsys, inputs, target, *flags):
    code, _, err = run(capsys, "shard", *inputs, "--output", target, "--eval-fraction", "0", *flags)
    assert code == 0, err
    return target, err


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_tokens_are_those_of_sentence_transformers(tmp_path, inputs, family, capsys, monkeypatch):
    from sentence_transformers import SentenceTransformer

    model = tiny.model(tmp_path / "model", family, "mean")
    theirs = SentenceTransformer(str(model), device="cpu")
    more = PROMPTS | {"model": PROMPTS["model"] | {"pool_prompt": False}}
    for flags in ((), ("--tokenizer", model, *FLAGS)):
        shards, err = shards_of(capsys, inputs, tmp_path / f"shards{len(flags)}", *flags)
        config = config_of(shards, model, **more)
        given = Inputs(config)
        warnings = "\n".join(check_run(given, False))
        assert "data.row_query_prompt: 18 of 24 rows have no 'prompt': they take" in warnings
        assert "data.row_passage_prompt: 16 of 24 rows have no 'positive_prompt'" in warnings
        assert ("--row-query-prompt: 18 of 24 rows have no 'prompt'" in err) == bool(flags)
        data = TrainData(config.data, given.spec, load_tokenizer(config.model, given.spec.path), given.plan)
        if flags:
            monkeypatch.setattr("trainer.train.data.tokenize", None)  # nothing is tokenised in the run
        for step in range(given.plan.steps_per_epoch):
            batch = data.batch(step, 0, 1)
            records = data.rows.take(batch.row_ids)
            pairs = [prompts_of(record) for record in records]
            texts = [(pair[0], record.query) for pair, record in zip(pairs, records)]
            texts += [(pair[1], record.positives[0]) for pair, record in zip(pairs, records)]
            texts += [(pair[1], text) for pair, record in zip(pairs, records) for text in record.negatives]
            expected = [theirs.preprocess([text], prompt=prompt) for prompt, text in texts]
            assert batch.tokens == [one["input_ids"][0].tolist() for one in expected]
            assert batch.prompt_tokens == [one.get("prompt_length", 0) for one in expected]


def test_a_run_whose_prompts_are_not_those_of_the_tokens_is_refused(tmp_path, inputs, tiny_bert, capsys):
    made, _ = shards_of(capsys, inputs, tmp_path / "made", "--tokenizer", tiny_bert, *FLAGS)
    check_run(Inputs(config_of(made, tiny_bert, **PROMPTS)), False)
    with pytest.raises(BadInput) as error:
        check_run(Inputs(config_of(made, tiny_bert, sources={"pairs": {"query_prompt": "w7 "}})), False)
    assert len(error.value.problems) == 1
    for part in (
        "sources.pairs.query_prompt 'w9 w9 ' (the run's is 'w7 ')",
        "sources.tasks.passage_prompt 'w8 ' (the run's is '')",
        "query_prompt 'w1 w2 ' (the run's is '')",
        "row_query_prompt 'Instruct: {prompt}\\nQuery:' (the run's is None)",
        "shard again",
    ):
        assert part in error.value.problems[0]
    # the same prompts, said elsewhere: what a text begins with is what counts
    plain, _ = shards_of(capsys, inputs, tmp_path / "plain", "--tokenizer", tiny_bert, "--query-prompt", "w9 ")
    same = {"sources": {name: {"query_prompt": "w9 "} for name in ("pairs", "tasks")}}
    check_run(Inputs(config_of(plain, tiny_bert, **same)), False)
    # a folder of an earlier version holds neither hash nor prompts of sources; an edited one is noticed
    manifest = json.loads((plain / "manifest.json").read_text())
    assert len(manifest["tokenizer"]["prompts_sha256"]) == 64 and "own_prompts" not in manifest["tokenizer"]
    earlier = {key: value for key, value in manifest["tokenizer"].items() if key != "prompts_sha256"}
    (plain / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": earlier}))
    check_run(Inputs(config_of(plain, tiny_bert, **same)), False)
    edited = manifest["tokenizer"] | {"query_prompt": "x"}
    (plain / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": edited}))
    with pytest.raises(BadInput, match="prompts do not have the hash prompts_sha256.*shard again"):
        check_run(Inputs(config_of(plain, tiny_bert, model={"query_prompt": "x"})), False)


WRONG = {
    "no text": ({"row_query_prompt": "number"}, {}, "row t:1: key 'number' must be a text, a prompt, not 7"),
    "no such key": ({"row_query_prompt": "promt"}, {}, "no train row has the key 'promt'; the first ones have"),
    "two keys": ({"row_passage_prompt": "{a} {b}"}, {}, "names 2 keys of the row; name one"),
    "an open brace": ({"row_passage_prompt": "Query: {"}, {}, "names no key of the row; write the key"),
    "no room": ({}, {"query_prompt": "w1 " * 6, "query_max_len": 8}, "'w1 w1 w1 w1 w1 w1 ' has 8 tokens with the"),
    "a row's, no room": (
        {"row_query_prompt": "prompt"},
        {"query_max_len": 5},
        "data.row_query_prompt: 'w1 w2 w3' has 5",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_prompts_that_cannot_be_are_refused(tmp_path, tiny_bert, capsys, name):
    data, model, part = WRONG[name]
    rows = [{"query": f"w{i}", "pos": [f"w{i + 9}"], "prompt": "w1 w2 w3", "number": 7} for i in range(1, 9)]
    shards, _ = shards_of(capsys, [write_jsonl(tmp_path / "t.jsonl", rows)], tmp_path / "shards")
    with pytest.raises(BadInput) as error:
        check_run(Inputs(config_of(shards, tiny_bert, data=data, model=model)), False)
    assert part in str(error.value)
    if name in ("no text", "no such key", "two keys", "no room"):  # `shard --tokenizer` says the same
        flags = [text for key, value in (data | model).items() for text in (f"--{key.replace('_', '-')}", value)]
        command = ("shard", tmp_path / "t.jsonl", "--output", tmp_path / "s", "--eval-fraction", "0", "--tokenizer")
        code, _, err = run(capsys, *command, tiny_bert, *flags)
        assert code == 2 and part in err and not (tmp_path / "s").exists()


def test_prompts_of_sources_on_the_command_line(tmp_path, inputs, tiny_bert, capsys):
    command = ("shard", *inputs, "--output", tmp_path / "s", "--tokenizer", tiny_bert)
    for flags, part in (
        (["pair=x"], "--source-query-prompt pair: no row has this source, but pairs, tasks. Did you mean 'pairs'?"),
        (["pairs"], "--source-query-prompt 'pairs': must be NAME=TEXT"),
        (["pairs=a", "pairs=b"], "--source-query-prompt: names the source 'pairs' twice; keep one"),
    ):
        code, _, err = run(capsys, *command, *(text for flag in flags for text in ("--source-query-prompt", flag)))
        assert code == 2 and part in err and not (tmp_path / "s").exists()
    values: dict = {"data": {}}
    assert override(values, "data.row_query_prompt=Instruct: {prompt}") is None
    assert values["data"]["row_query_prompt"] == "Instruct: {prompt}"
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: o\nmodel: {path: m}\ndata:\n  train: s\n  row_query_prompt: {prompt}\n")
    with pytest.raises(BadInput, match="row_query_prompt.*in quotes"):
        load_config(file)


def test_a_sources_own_set_is_evaluated_with_its_prompts(tmp_path, inputs, tiny_bert, capsys, monkeypatch):
    shards, _ = shards_of(capsys, inputs, tmp_path / "shards")
    config = config_of(shards, tiny_bert, **PROMPTS)
    spec, read = Inputs(config).spec, {}
    monkeypatch.setattr(fit, "averaged", nullcontext)
    monkeypatch.setattr(fit, "evaluate_engine", lambda _, __, spec, data, *___: read.update({data: spec.rules}))
    job = SimpleNamespace(
        log=None, eval_data=None,
        eval_sets={name: SimpleNamespace(parts=[name]) for name in ("", "general", "pairs", "tasks")},
        engine=None, config=config, runtime=SimpleNamespace(world=SimpleNamespace(on_first=lambda act: act())),
        progress=SimpleNamespace(state=SimpleNamespace(step=0), seconds=Seconds()),
        model=SimpleNamespace(spec=spec, reader=None),
    )  # fmt: skip
    fit.evaluate(job)
    assert {name: (rules.query_prompt, rules.passage_prompt) for name, rules in read.items()} == {
        "": ("w1 w2 ", ""), "general": ("w1 w2 ", ""), "pairs": ("w9 w9 ", ""), "tasks": ("w1 w2 ", "w8 "),
    }  # fmt: skip
