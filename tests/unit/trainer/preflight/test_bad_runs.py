"""Mistakes in run file, model folder, data set or output folder: one clear error, exit code 2, nothing lost."""

import json

import pytest

from data_prep.__main__ import main as prep_main
from launch.__main__ import main as launch_main
from tests.unit.trainer.preflight.helpers import graded_pairs, other_run, stray_output
from trainer.__main__ import main as train_main


def setting(section: str, key: str, value):
    return lambda run: run.values.setdefault(section, {}).__setitem__(key, value)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def output_is_a_file(run):
    (run.folder / "out").write_text("precious")


def below_a_file(run):
    (run.folder / "file").write_text("x")
    run.values["output_dir"] = str(run.folder / "file" / "out")


def manifest_gone(run):
    (run.copy_shards() / "manifest.json").unlink()


def shard_cut(run):
    part = next(run.copy_shards().rglob("*.arrow"))
    part.write_bytes(part.read_bytes()[:-100])


def weights_gone(run):
    (run.copy_model() / "model.safetensors").unlink()


def pickled_weights(run):
    folder = run.copy_model()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def fewer_embeddings(run):
    edit_json(run.copy_model() / "config.json", vocab_size=403)


def damaged_weights(run):
    (run.copy_model() / "model.safetensors").write_bytes(b"not a tensor")


def sharded(run, rows: list[dict]):
    source = run.folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prep_main(["shard", str(source), "--output", str(run.folder / "rows"), "--eval-fraction", "0"]) == 0
    run.values["data"]["train"] = str(run.folder / "rows")


def record(i: int, **more) -> dict:
    return {"query": f"w{i}", "positives": [f"w{i + 50}"], **more}


def partly_scored(run):
    sharded(run, [record(i, score=0.5) if i < 17 else record(i) for i in range(20)])
    run.values["loss"] = {"name": "cosent"}


def taught(run, **loss):
    """Rows with teacher scores and hard negatives."""
    sharded(run, [record(i, negatives=[f"w{i + 100}"], teacher_scores=[2.0, 1.0]) for i in range(20)])
    run.values["loss"] = {"name": "kl"} | loss


def taught_without_negatives(run):
    sharded(run, [record(i, teacher_scores=[2.0]) for i in range(20)])
    run.values["loss"] = {"name": "kl"}


def taught_with_negatives_left_out(run):
    taught(run)
    run.values["data"]["max_hard_negatives"] = 0


def own_loss(run, source="many", **loss):
    """Two sources, one with a loss of its own."""
    small_source(run, 20)
    run.values["sources"] = {source: {"loss": loss}}


def shards_of_an_older_version(run):
    folder = run.copy_shards()
    edit_json(folder / "manifest.json", schema_version=1)


def small_source(run, rows=5):
    files = []
    for name, count in (("few", rows), ("many", 40)):
        files.append(run.folder / f"{name}.jsonl")
        pairs = [{"query": f"{name} w{i}", "positives": [f"{name} w{i} w99"]} for i in range(count)]
        files[-1].write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert prep_main(["shard", *map(str, files), "--output", str(run.folder / "two"), "--eval-fraction", "0"]) == 0
    run.values["data"]["train"] = str(run.folder / "two")


def odd_pooling(run):
    edit_json(run.copy_model() / "1_Pooling" / "config.json", pooling_mode_cls_token=True)


def remote_code(run):
    edit_json(run.copy_model() / "config.json", auto_map={"AutoModel": "x.Y"}, model_type="some_bert")


CASES = {
    "unknown key": (
        setting("train", "batchsize", 8),
        "run.json:1: unknown key 'train.batchsize'. Did you mean 'batch_",
    ),
    "unknown section": (lambda r: r.values.update(optimizer={}), "unknown key 'optimizer'"),
    "missing key": (lambda r: r.values["model"].clear(), "key 'model.path' is missing"),
    "missing section": (lambda r: r.values.pop("data"), "key 'data' is missing"),
    "wrong type": (setting("train", "batch_size", "many"), "train.batch_size: must be a whole number"),
    "batch of one": (setting("train", "batch_size", 1), "train.batch_size: must be 2 or more"),
    "no epochs": (setting("train", "epochs", 0), "train.epochs"),
    "negative lr": (setting("optim", "lr", -1e-4), "optim.lr: must be greater than 0"),
    "zero temperature": (setting("loss", "temperature", 0), "loss.temperature"),
    "warm-up above one": (setting("optim", "warmup_ratio", 3), "optim.warmup_ratio"),
    "beta above one": (setting("optim", "betas", [0.9, 1.5]), "optim.betas"),
    "unknown schedule": (setting("optim", "schedule", "step"), "optim.schedule: must be 'linear'"),
    "unknown precision": (setting("train", "precision", "fp8"), "train.precision"),
    "unknown scope": (setting("loss", "negatives", "world"), "loss.negatives"),
    "dropout of one": (setting("model", "dropout", 1.0), "model.dropout"),
    "hyphen in a key": (setting("train", "batch-size", 3), "unknown key 'train.batch-size'. Did you mean 'batch_size'"),
    "truth for a number": (setting("optim", "lr", True), "optim.lr: true is no number or text"),
    "graded pairs": (graded_pairs, "carry a score, and InfoNCE would take each pair for a positive"),
    "damaged weights": (damaged_weights, "is damaged"),
    "odd modules": (lambda r: (r.copy_model() / "modules.json").write_text('["a"]'), "not a list of modules"),
    "mistyped model": (setting("model", "path", "modles/typo"), "is no folder here, and the model hub"),
    "unknown pooling": (setting("model", "pooling", "max"), "model.pooling"),
    "length beyond the model": (setting("model", "query_max_len", 9999), "model.query_max_len: 9999 tokens"),
    "no such model": (setting("model", "path", "./nowhere"), "model.path: nowhere is not a folder"),
    "model misspelt": (lambda r: r.values["model"].update(path=f"{r.copy_model()}s"), "is not a folder. Did you mean"),
    "shards misspelt": (lambda r: r.values["data"].update(train=f"{r.copy_shards()}s"), "no such folder. Did you mean"),
    "not a model": (lambda r: r.values["model"].update(path=str(r.folder)), "it has no config.json"),
    "no weights": (weights_gone, "holds no *.safetensors weights"),
    "pickled weights": (pickled_weights, "convert them to safetensors"),
    "tokens without embeddings": (
        fewer_embeddings,
        "has 1 token(s) without an embedding ('w399'): the model embeds 403",
    ),
    "no tokenizer": (lambda r: (r.copy_model() / "tokenizer.json").unlink(), "holds no tokenizer"),
    "remote code": (remote_code, "auto_map"),
    "broken model config": (lambda r: (r.copy_model() / "config.json").write_text("{"), "not readable JSON"),
    "two poolings": (odd_pooling, "not supported"),
    "no pooling stated": (
        lambda r: (r.copy_model() / "modules.json").unlink(),
        "set model.pooling to mean",
    ),
    "no such data": (setting("data", "train", "./nowhere"), "nowhere"),
    "unfinished shards": (manifest_gone, "manifest"),
    "shards of an older version": (
        shards_of_an_older_version,
        "version 1, this version reads 2; run shard again",
    ),
    "cut shard": (shard_cut, ".arrow"),
    "fewer rows than a batch": (setting("train", "batch_size", 5000), "holds 82 rows, fewer than one batch"),
    "a source smaller than a batch": (small_source, "source 'few' of"),
    "a source of one row": (lambda r: small_source(r, 1), "(train.batch_size 8); add rows or shard the data without"),
    "unknown loss": (
        setting("loss", "name", "cosnt"),
        "loss: name 'cosnt' is no loss. Did you mean 'cosent'? Known are infonce, cosine, cosent, kl, margin_mse or",
    ),
    "unknown loss in a mix": (
        setting("loss", "name", {"infonce": 1, "k": 1}),
        "name 'k' is no loss. Did you mean 'kl'",
    ),
    "a function with a dot": (setting("loss", "name", "mine.loss"), "'mine.loss' is no loss. Known are"),
    "no loss": (setting("loss", "name", {}), "loss: name '{}' is no loss"),
    "weight of zero": (setting("loss", "name", {"infonce": 0}), "loss: name: every weight must be above 0"),
    "negative weight": (setting("loss", "name", {"infonce": 1, "kl": -1}), "name: every weight must be above 0"),
    "weight that is no number": (
        setting("loss", "name", {"infonce": "x"}),
        "loss.name: must be a number",
    ),
    "matryoshka of zero": (setting("loss", "matryoshka", [0, 8]), "matryoshka: sizes and weights must be above 0"),
    "matryoshka weight of zero": (setting("loss", "matryoshka", {8: 0}), "matryoshka: sizes and weights must be above"),
    "matryoshka beyond the model": (
        setting("loss", "matryoshka", [8, 64]),
        "loss.matryoshka: 64, but the embeddings of",
    ),
    "matryoshka of a source": (
        lambda r: own_loss(r, matryoshka=[33]),
        "error: sources.many.loss.matryoshka: 33, but the embeddings",
    ),
    "unknown directions": (setting("loss", "directions", "both"), "loss.directions: must be 'query_to_doc'"),
    "directions without infonce": (
        lambda r: taught(r, directions="symmetric"),
        "error: loss.directions: symmetric is about infonce, which is no term of this loss",
    ),
    "a source without infonce": (
        lambda r: own_loss(r, name="cosent", directions="gte"),
        "sources.many.loss.directions: gte is about infonce",
    ),
    "unknown source": (
        lambda r: own_loss(r, source="mani", name="infonce"),
        "two has no such source, but few, many. Did you mean 'many'?",
    ),
    "unknown key of a source": (
        lambda r: r.values.update(sources={"train": {"los": {}}}),
        "unknown key 'sources.train.los'. Did you mean 'loss'? Known here: loss, eval",
    ),
    "unknown key of a source's loss": (lambda r: own_loss(r, nam="kl"), "unknown key 'sources.many.loss.nam'. Did you"),
    "a source's eval set": (
        lambda r: r.values.update(sources={"train": {"eval": "./nowhere"}}),
        "sources.train.eval: nowhere",
    ),
    "some rows without scores": (partly_scored, "source 'rows': 3 of 20 rows have no score, which loss cosent needs"),
    "no scores": (setting("loss", "name", "cosine"), "82 of 82 rows have no score, which loss cosine needs"),
    "no scores for one term": (setting("loss", "name", {"infonce": 1, "cosine": 1}), "82 of 82 rows have no score"),
    "no teacher": (setting("loss", "name", "kl"), "82 of 82 rows have no teacher_scores, which loss kl follows"),
    "no teacher for a margin": (setting("loss", "name", "margin_mse"), "which loss margin_mse follows"),
    "kl without hard negatives": (taught_without_negatives, "no row has hard negatives, so loss kl has nothing to"),
    "kl with hard negatives left out": (taught_with_negatives_left_out, "data.max_hard_negatives: 0 leaves loss kl of"),
    "own negatives where there are none": (
        lambda r: own_loss(r, negatives="own"),
        "source 'many': no row has hard negatives, so loss infonce with negatives: own has nothing to compare",
    ),
    "own negatives left out": (
        lambda r: r.values["data"].update(max_hard_negatives=0) or r.values.update(loss={"negatives": "own"}),
        "data.max_hard_negatives: 0 leaves loss infonce with negatives: own of source",
    ),
    "own negatives without infonce": (
        lambda r: taught(r, negatives="own"),
        "loss.negatives: own is about infonce, which is no term of this loss",
    ),
    "own negatives in several directions": (
        lambda r: r.values.update(loss={"negatives": "own", "directions": "symmetric"}),
        "loss: negatives: own compares with the row's own documents, but directions symmetric compares with",
    ),
    "a function in no module": (
        setting("loss", "name", "nowhere:f"),
        "loss.name: there is no module 'nowhere' to import",
    ),
    "a function in no package": (setting("loss", "name", "json.nowhere:f"), "there is no module 'json.nowhere'"),
    "a source's function": (lambda r: own_loss(r, name="nowhere:f"), "sources.many.loss.name: there is no module"),
    "a budget that is a word": (
        setting("train", "micro_batch_tokens", "most"),
        "train.micro_batch_tokens: must be",
    ),
    "unknown mixing": (setting("data", "mixing", "random"), "data.mixing: must be 'proportional'"),
    "mixing temperature of zero": (setting("data", "mixing_temperature", 0), "data.mixing_temperature"),
    "no such eval set": (setting("data", "eval", "./nowhere"), "nowhere: no such folder"),
    "output of another run": (other_run, "add --resume"),
    "output not empty": (stray_output, "is not empty and holds no run of ours"),
    "output is a file": (output_is_a_file, "is a file"),
    "output below a file": (below_a_file, "is a file"),
}


@pytest.mark.parametrize("command", ["trainer", "launch"])
@pytest.mark.parametrize("case", CASES)
def test_one_clear_error_and_exit_code_2(run, capsys, monkeypatch, case, command):
    monkeypatch.chdir(run.folder)
    breaking, words = CASES[case]
    breaking(run)
    before = sorted(p for p in run.folder.rglob("*"))
    path = run.write()
    if command == "trainer":
        code = train_main(["--config", path, "--dry-run"]) if "output" not in case else train_main(["--config", path])
    else:
        code = launch_main(["run", "--config", path, "--dry-run"])
    shown = capsys.readouterr().err
    assert code == 2, shown
    assert words in shown
    assert "Traceback" not in shown
    assert sorted(p for p in run.folder.rglob("*") if p.name != "run.json" or p.parent.name == "out") == before


def test_the_good_run_passes_the_same_checks(run, capsys):
    """Guards the table above: its base case is right, so each case fails for its own reason."""
    assert launch_main(["run", "--config", run.write(), "--dry-run"]) == 0
    assert train_main(["--config", run.write(), "--dry-run"]) == 0
    assert "first batch: 8 queries" in capsys.readouterr().out
