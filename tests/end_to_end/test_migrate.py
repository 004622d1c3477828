"""Every row of docs/reference/migrate.md is a run that could start; folders and hub ids that people bring."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_prep.common.errors import BadInput
from tests import tiny
from tests.end_to_end.runs import write_run
from tests.hub_files import serving
from tests.launching import environment
from trainer.config.loading import load_config
from trainer.config.other_trainers import keys, values
from trainer.preflight.check_run import check_run
from trainer.preflight.inputs import Inputs

ELSEWHERE = ("train.device=cuda", "train.device=mps")
ROWS = [  # (subject, names elsewhere, overrides of the run file) of each row of the tables that names a key
    (subject, " ".join(entry.theirs), stated)
    for subject, entries in (keys() | values()).items()
    for entry in entries
    if subject != "engine" and (stated := [f"{key}={example}" for key, _, example in (*entry.ours, *entry.beside)])
    if not {*stated}.intersection(ELSEWHERE)
]


def filled(ours: list[str], places: dict[str, str]) -> list[str]:
    """The overrides of a row with folders in the place of its letters."""
    pairs = [text.partition("=") for text in ours]
    return [f"{key}={places.get(value, value)}" for key, _, value in pairs]


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_bert, tiny_shards):
    return make_places(tmp_path_factory.mktemp("places"), tiny_bert, tiny_shards)


def make_places(folder: Path, model: Path, shards: Path) -> dict[str, str]:
    """Returns the folders that the letters of the tables stand for."""
    from data_prep.__main__ import main

    rows = tiny.rows(40)
    taught = [row | {"negatives": ["w1 w2"], "teacher_scores": [0.9, 0.1]} for row in rows]
    scored = [{"query": row["query"], "item": row["positives"][0], "score": (i % 5) / 4} for i, row in enumerate(rows)]
    for name, made in (("TAUGHT", taught), ("SCORED", scored)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        assert (
            main(["shard", str(folder / f"{name}.jsonl"), "--output", str(folder / name), "--eval-fraction", "0"]) == 0
        )
    texts = tiny.rows(6, seed=9)
    (folder / "R").mkdir()
    for name, key in (("corpus", "positives"), ("queries", "query")):
        made = [{"id": str(i), "text": row[key] if key == "query" else row[key][0]} for i, row in enumerate(texts)]
        (folder / "R" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (folder / "R" / "qrels.tsv").write_text("".join(f"{i}\t{i}\t1\n" for i in range(6)))
    tiny.model(folder / "DECODER", "qwen3", pooling="last", eos=False)
    own = {name: str(folder / name) for name in ("TAUGHT", "SCORED", "R", "OUT", "DECODER")}
    return own | {"M": str(model), "S": str(shards), "ADAPTER": str(tiny.adapter(folder / "A", model))}


@pytest.mark.parametrize(("section", "theirs", "ours"), ROWS, ids=[f"{s}-{t[:40]}" for s, t, _ in ROWS])
def test_every_row_is_a_run(section, theirs, ours, places, tmp_path):
    run_file = write_run(tmp_path, places["M"], places["S"])
    overrides = filled(ours, places)
    config = load_config(run_file, overrides)
    check_run(Inputs(config), resume=False)
    for text in overrides:
        key, _, value = text.partition("=")
        found = config
        for part in key.split("."):
            found = getattr(found, part)
        given = yaml.safe_load(value)
        given = float(given) if isinstance(found, float) else given
        assert (list(found) if isinstance(found, tuple) else found) == given, text


def test_a_training_folder_of_sentence_transformers_is_a_model(places, tmp_path):
    import torch
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

    folder = tmp_path / "checkpoint-10"
    SentenceTransformer(places["M"], device="cpu").save(str(folder))
    torch.save(SentenceTransformerTrainingArguments(str(tmp_path / "o"), use_cpu=True), folder / "training_args.bin")
    (folder / "trainer_state.json").write_text("{}")
    from trainer.model_folder.spec import read_spec

    config = load_config(write_run(tmp_path, folder, places["S"]))
    check_run(Inputs(config), resume=False)
    spec = read_spec(config.model, folder)
    assert (spec.pooling, spec.normalize, spec.rules.query_max_len) == ("mean", True, 32)
    assert any("training_args.bin" in note for note in spec.notes)


def test_ranks_of_a_node_download_a_hub_model_once(tiny_bert, tmp_path):
    code = "from trainer.model_folder.files import fetch; print(fetch('org/tiny'))"

    def rank(address, **extra):
        where = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
        env = environment(**{**where, "HF_TOKEN": "hf_right", "HF_HUB_OFFLINE": "0", **extra})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", code], env=env, text=True, **pipes)

    with serving(tiny_bert) as hub:
        _, refused = rank(hub.address, HF_TOKEN="hf_wrong").communicate(timeout=120)
        assert "no folder here, and the model hub did not provide it" in refused and "hf_wrong" not in refused
        told = [one.communicate(timeout=120) for one in [rank(hub.address) for _ in range(3)]]
        assert len({out.strip() for out, _ in told}) == 1 and told[0][0], told
        folder = Path(told[0][0].strip())
        assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
        assert {"config.json", "tokenizer.json", "1_Pooling/config.json"} < hub.served.keys()
        assert set(hub.served.values()) == {1}, hub.served
    out, error = rank(hub.address, HF_HUB_OFFLINE="1").communicate(timeout=120)
    assert out.strip() == str(folder), error


def test_a_model_that_no_cache_holds_is_an_error():
    from trainer.model_folder.files import fetch

    with pytest.raises(BadInput, match="'org/nowhere' is no folder here, and the model hub") as error:
        fetch("org/nowhere")
    assert "without a network: run `hf download org/nowhere --local-dir FOLDER` on one that has it" in str(error.value)
