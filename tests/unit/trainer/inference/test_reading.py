"""Two models are read alike where they are compared; where that cannot be, the difference is named."""

import json
import shutil

import pytest

from data_prep.common.errors import BadInput
from tests import tiny
from trainer.config.sections import ModelConfig
from trainer.evaluate import main as evaluate
from trainer.inference.reading import as_trained, describe, facts_of, read_alike
from trainer.inference.text_encoder import TextEncoder
from trainer.model_folder.spec import read_spec
from trainer.search import main as search

RUN = {"query_max_len": 6, "passage_max_len": 8, "query_prompt": "w1 ", "passage_prompt": None}


def change(folder, name: str, **values) -> None:
    path = folder / name
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | values))


def trained(folder, base, prompts=("w1 ", ""), **model):
    """A folder as a run leaves it, with the very weights of its base."""
    shutil.copytree(base, folder)
    change(folder, "sentence_bert_config.json", max_seq_length=8)
    change(folder, "config_sentence_transformers.json", prompts=dict(zip(("query", "document"), prompts)))
    change(folder, "training_config.json", model={"path": str(base)} | RUN | model, data={"train": "t"})
    return folder


@pytest.fixture
def base(tmp_path):
    return tiny.model(tmp_path / "base")


@pytest.fixture
def data(tmp_path):
    """Documents whose words behind the eighth token decide."""
    folder = tmp_path / "set"
    folder.mkdir()
    rows = tiny.rows(24, negatives=False)
    texts = [" ".join([*tiny.WORDS[i : i + 6], row["positives"][0]]) for i, row in enumerate(rows)]
    docs = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    queries = [{"id": f"q{i}", "text": row["query"]} for i, row in enumerate(rows)]
    for name, lines in (("corpus", docs), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "qrels.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(24)))
    return folder


def specs(model, other, **asked):
    pair = read_alike(ModelConfig(path=str(model), **asked), ModelConfig(path=str(other), **asked))
    return [read_spec(config, config.path) for config in pair]


def test_a_run_and_its_base_are_read_as_the_run_read_them(tmp_path, base):
    model, other = specs(trained(tmp_path / "final", base), base)
    assert facts_of(model) == facts_of(other)
    assert facts_of(model) == {
        "query_prompt": "w1 ", "passage_prompt": "", "query_max_len": 6, "passage_max_len": 8, "pooling": "mean",
        "normalize": True,
    }  # fmt: skip
    assert describe({"tuned": model, "base": other}) == [
        "both read with queries of at most 6 tokens, prompt 'w1 '; documents of at most 8 tokens, no prompt; mean "
        "pooling, cosine"
    ]


@pytest.mark.parametrize("how", ["its own pooling", "its own prompts", "no pooling"])
def test_what_the_base_states_gives_way_to_how_the_run_read_it(tmp_path, base, how):
    final = trained(tmp_path / "final", base)
    if how == "its own prompts":
        change(base, "config_sentence_transformers.json", prompts={"query": "w9 ", "document": "w8 "})
    elif how == "its own pooling":
        change(base, "1_Pooling/config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    else:
        (base / "modules.json").unlink()
    model, other = specs(final, base)
    assert facts_of(model) == facts_of(other)


def test_the_trained_one_decides_in_whatever_order_they_are_named(tmp_path, base):
    final = trained(tmp_path / "final", base)
    assert [facts_of(spec) for spec in specs(base, final)] == [facts_of(spec) for spec in specs(final, base)]
    again = trained(tmp_path / "again", final, query_max_len=4)  # trained on, from final/
    assert {facts_of(spec)["query_max_len"] for spec in specs(again, base)} == {4}
    adapted = tmp_path / "adapter"
    tiny.adapter(adapted, base)
    for name in ("modules.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling", "2_Normalize"):
        copy = shutil.copytree if (base / name).is_dir() else shutil.copyfile
        copy(base / name, adapted / name)
    change(adapted, "sentence_bert_config.json", max_seq_length=7)
    assert {facts_of(spec)["passage_max_len"] for spec in specs(adapted, base)} == {7}, "its base is its beginning"


def test_what_is_asked_for_goes_before_all(tmp_path, base):
    final = trained(tmp_path / "final", base)
    for spec in specs(final, base, query_max_len=12, passage_max_len=12, query_prompt="", pooling="cls"):
        assert (spec.rules.query_max_len, spec.rules.query_prompt, spec.pooling) == (12, "", "cls")


def test_strangers_share_lengths_and_keep_what_they_state(tmp_path, base):
    final, other = trained(tmp_path / "final", base), tiny.model(tmp_path / "other", pooling="cls")
    model, stranger = specs(final, other)
    assert stranger.rules == model.rules and stranger.pooling == "cls", "it states no prompt, but a pooling"
    lines = describe({"tuned": model, "base": stranger})
    assert lines[-1] == "read unlike: pooling" and "cls pooling" in lines[1] and "mean pooling" in lines[0]
    change(other, "config_sentence_transformers.json", prompts={"query": "w5 "})
    assert specs(final, other)[1].rules.query_prompt == "w5 "
    assert describe({"a": model, "b": specs(final, other)[1]})[-1] == "read unlike: query_prompt, pooling"
    long = trained(tmp_path / "long", base, passage_max_len=60)
    change(other, "config.json", max_position_embeddings=20)
    assert specs(long, other)[1].rules.passage_max_len == 20, "it has no more positions"


def test_the_runs_own_lengths_count_without_a_comparison(tmp_path, base):
    final = trained(tmp_path / "final", base)
    config = as_trained(ModelConfig(path=str(final)))
    assert (config.query_max_len, config.passage_max_len) == (6, 8)
    assert as_trained(ModelConfig(path=str(base))) == ModelConfig(path=str(base))


@pytest.mark.parametrize("text", ["{", "[1]", '{"model": {"path": "m", "of_later": 1}, "data": {}}'])
def test_a_record_of_the_run_that_cannot_be_read_is_said(tmp_path, base, capsys, text):
    final = trained(tmp_path / "final", base)
    (final / "training_config.json").write_text(text)
    assert as_trained(ModelConfig(path=str(final))).query_max_len is None
    assert "the run's own lengths are not known: " in capsys.readouterr().err


def test_a_training_config_of_other_tools_is_no_record(tmp_path, base, capsys):
    change(base, "training_config.json", model="bert", learning_rate=1)
    assert as_trained(ModelConfig(path=str(base))).query_max_len is None and not capsys.readouterr().err


def test_the_same_weights_differ_in_nothing_where_both_are_read_alike(tmp_path, base, data, capsys):
    """The issue's fault: a table of -0.022 for a run that gained 0.0375, its base read at another length."""
    final, out = trained(tmp_path / "final", base), tmp_path / "out.json"
    call = ["--model", str(final), "--baseline", str(base), "--data", str(data), "--device", "cpu", "--json", str(out)]
    assert evaluate(call) == 0
    result, shown = json.loads(out.read_text()), capsys.readouterr().out
    assert all(row["difference"] == 0 for row in result["comparison"].values())
    assert result["read"] == result["baseline_read"]
    assert "both read with queries of at most 6 tokens, prompt 'w1 '; documents of at most 8 tokens" in shown
    assert evaluate([*call, "--as-stated"]) == 0
    result, shown = json.loads(out.read_text()), capsys.readouterr().out
    assert any(row["difference"] != 0 for row in result["comparison"].values()), "the set tells the lengths apart"
    assert "base read with queries of at most 32 tokens, no prompt" in shown
    assert "read unlike: query_prompt, query_max_len, passage_max_len" in shown
    assert evaluate([*call, "--max-len", "20", "--query-prompt", ""]) == 0
    assert "both read with queries of at most 20 tokens, no prompt" in capsys.readouterr().out


def test_a_search_beside_the_base_finds_the_same_with_the_same_weights(tmp_path, base, data, capsys):
    final = trained(tmp_path / "final", base)
    call = ["--model", str(final), "--compare", str(base), "--data", str(data), "--device", "cpu", "w3 w4 w5"]
    assert search(call) == 0
    shown = capsys.readouterr().out
    assert "both read with queries of at most 6 tokens, prompt 'w1 '" in shown
    assert search([*call, "--as-stated"]) == 0
    assert "read unlike: query_prompt, query_max_len, passage_max_len" in capsys.readouterr().out


def test_a_final_model_that_is_the_one_before_training_is_named_where_two_are_compared(tmp_path, base, data, capsys):
    final = trained(tmp_path / "final", base)
    line = f"{final} is the model before training (the run's verdict on the tuned one: worse)"
    call = ["--data", str(data), "--device", "cpu"]
    for command, other, texts in ((evaluate, "--baseline", []), (search, "--compare", ["w3 w4 w5"])):
        for kind, sides in (("trained", (final, base)), ("base", (final, base)), ("base", (base, final))):
            change(final, "verdict.json", verdict="worse", final={"model": kind, "step": 0, "epoch": 0})
            assert command([*call, "--model", str(sides[0]), other, str(sides[1]), *texts]) == 0
            assert capsys.readouterr().out.count(line) == (kind == "base")


def test_a_flag_about_the_other_model_is_told_that_there_is_none(base, data, capsys):
    call = ["--model", str(base), "--data", str(data), "--device", "cpu"]
    for command, other, texts in ((evaluate, "--baseline", []), (search, "--compare", ["w3 w4 w5"])):
        line = f"--as-stated changes nothing: there is no {other}"
        assert command([*call, "--as-stated", *texts]) == 0
        assert line in capsys.readouterr().err
        assert command([*call, "--as-stated", other, str(base), *texts]) == 0
        assert line not in capsys.readouterr().err


def with_a_new_token(folder) -> None:
    """A token added to the tokenizer, for which the embeddings were not resized."""
    values = json.loads((folder / "tokenizer.json").read_text())
    known = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    values["added_tokens"].append({"id": 404, "content": "[NEW]"} | known)
    (folder / "tokenizer.json").write_text(json.dumps(values))


@pytest.mark.parametrize("command", ["evaluate", "evaluate --baseline", "search", "search --compare"])
def test_a_token_without_an_embedding_is_one_line_before_any_work(tmp_path, base, data, capsys, command):
    broken = tiny.model(tmp_path / "broken")
    with_a_new_token(broken)
    name, *flag = command.split()
    models = ["--model", str(base if flag else broken), *flag, *([str(broken)] if flag else [])]
    call = [*models, "--data", str(data), "--device", "cpu", *(["[NEW] w1"] if name == "search" else [])]
    assert {"evaluate": evaluate, "search": search}[name](call) == 2
    shown = capsys.readouterr()
    told = [line for line in shown.err.splitlines() if "without an embedding" in line]
    assert len(told) == 1 and "'[NEW]'" in told[0] and str(broken) in told[0] and "Traceback" not in shown.err


def test_a_tokenizer_named_apart_and_an_adapters_are_checked_too(tmp_path, base):
    other = tiny.model(tmp_path / "other")
    with_a_new_token(other)
    with pytest.raises(BadInput, match="model.tokenizer: the tokenizer in .*other has 1 token"):
        TextEncoder(ModelConfig(path=str(base), tokenizer=str(other)), "cpu")
    adapted = tmp_path / "adapter"
    tiny.adapter(adapted, base)
    for name in ("modules.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling", "2_Normalize"):
        copy = shutil.copytree if (base / name).is_dir() else shutil.copyfile
        copy(base / name, adapted / name)
    assert TextEncoder(ModelConfig(path=str(adapted)), "cpu").spec.is_adapter
    with_a_new_token(adapted)
    with pytest.raises(BadInput, match="model.path: the tokenizer in .*adapter has 1 token"):
        TextEncoder(ModelConfig(path=str(adapted)), "cpu")
