"""Every share is measured once, a killed blend goes on, and the written folder embeds as the chosen share did."""

import json
import re

import numpy as np
import pytest

from data_prep.common.errors import BadInput, Failed
from data_prep.reading.retrieval_sets import load_set
from tests.unit.trainer.blending.conftest import write_set
from trainer.blend import main
from trainer.blending import blend as module
from trainer.blending.blend import blend
from trainer.blending.rules import Rules
from trainer.config.sections import ModelConfig
from trainer.evaluation.compare import means
from trainer.evaluation.measure import evaluate_folder
from trainer.inference.probe import read_probe
from trainer.inference.text_encoder import TextEncoder
from trainer.run_dir.layout import damage, measured_file
from trainer.run_dir.verdict import BLEND

RULES = Rules([0.5], most_lost=1.0)


class Stopped(BaseException):
    """Stands in for a kill."""


@pytest.fixture
def measurements(monkeypatch):
    """The (share, set) of every measurement; measurements.stop_at: the number of the one that never ends."""

    class Calls(list):
        stop_at = None

    calls, real = Calls(), module.evaluate_engine

    def evaluate(engine, tokenizer, spec, data):
        if calls.stop_at == len(calls):
            raise Stopped
        calls.append(data.name)
        return real(engine, tokenizer, spec, data)

    monkeypatch.setattr(module, "evaluate_engine", evaluate)
    return calls


@pytest.fixture
def call(tiny_bert, between_folders, sets):
    def blended(output, kind="whole", rules=RULES, general=True, **more):
        models = [ModelConfig(path=str(path)) for path in (tiny_bert, between_folders[kind])]
        second = load_set(sets["general"]) if general else None
        return blend(*models, load_set(sets["domain"]), second, output, rules, "cpu", **more)

    return blended


@pytest.mark.parametrize("kind", ["whole", "dora"])
def test_the_written_folder_is_whole_and_embeds_as_the_chosen_share(
    tmp_path, call, kind, tiny_bert, between_folders, sets
):
    out, data = tmp_path / "out", load_set(sets["domain"])
    result = call(out, kind, Rules([0.4], most_lost=1.0))
    assert damage(out) is None and json.loads((out / BLEND).read_text()) == result
    encoder, probe = TextEncoder(ModelConfig(path=str(out)), "cpu"), read_probe(out)
    found = encoder.passages(probe.texts[:8])
    assert np.allclose(found, probe.passages[:8], atol=1e-5)
    shares = {row["share"]: row for row in result["shares"]}
    assert [*shares] == [0.0, 0.4, 1.0]
    for share, folder in ((0.0, tiny_bert), (1.0, between_folders[kind]), (result["chosen"], out)):
        per_query = evaluate_folder(ModelConfig(path=str(folder)), data, "cpu")
        assert means(per_query) == pytest.approx(shares[share]["domain"]["all"], abs=0.02), share
    card = (out / "README.md").read_text()
    assert f"| share of the tuned model | {result['chosen']} |" in card and "THIS_FOLDER_OR_ID" in card
    assert str(tmp_path) not in card and ("adapter" in card) == (kind == "dora")


def test_every_share_and_set_is_measured_once_and_a_killed_blend_goes_on(tmp_path, call, measurements, monkeypatch):
    whole = call(tmp_path / "whole")
    assert len(measurements) == 6, "3 shares on 2 sets"
    for stop in (0, 1, 3, 5):
        out = tmp_path / f"stopped-{stop}"
        measurements.clear()
        measurements.stop_at = stop
        with pytest.raises(Stopped):
            call(out)
        assert len(measurements) == stop and not out.exists()
        measurements.stop_at = None
        assert call(out) == whole and len(measurements) == 6, "none twice"
    measurements.clear()
    out = tmp_path / "unwritten"
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_embedder", lambda *_: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            call(out)
    assert not out.exists()
    assert call(out) == whole and len(measurements) == 6
    with monkeypatch.context() as patch:  # killed behind the rename: it is only told again
        patch.setattr(module, "between", None)
        assert call(out) == whole and len(measurements) == 6
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "whole", out)]
    assert weights[0] == weights[1]


def test_other_shares_and_bounds_go_on_from_what_is_measured_other_models_do_not(tmp_path, call, measurements, capsys):
    out = tmp_path / "out"
    call(out, general=False)
    assert len(measurements) == 3 and measured_file(out).is_file()
    with pytest.raises(BadInput, match="is of another call, or was changed since; name a new one"):
        call(out)
    out.rename(tmp_path / "kept")
    call(out, rules=Rules([0.5, 0.25], most_lost=0.9))
    assert len(measurements) == 3 + 1 + 4, "0.25 on the domain, and four shares on the general set"
    out.rename(tmp_path / "kept too")
    capsys.readouterr()
    call(out, "lora", general=False)
    assert len(measurements) == 8 + 3 and "was measured on other models" in capsys.readouterr().err
    result = json.loads((out / BLEND).read_text())
    (out / BLEND).write_text(json.dumps(result | {"chosen": 0.123}))
    with pytest.raises(BadInput, match="was changed since"):
        call(out, "lora", general=False)


def test_shares_above_a_refused_one_are_not_measured(tmp_path, call, measurements, capsys):
    result = call(tmp_path / "out", rules=Rules([0.5, 0.7, 0.9], most_lost=0.0))
    assert [(row["share"], bool(row["refused"])) for row in result["shares"]] == [
        (0.0, False),
        (0.5, True),
        (1.0, True),
    ]
    assert len(measurements) == 6 and result["chosen"] == 0.0
    said = capsys.readouterr().err
    assert "share 0.9: not measured, because a smaller one is refused" in said
    assert re.search(r"general: \d+ queries choose, fewer than 400: a share must hold the bound of 0 with", said)


def test_a_file_that_is_no_record_of_ours_is_not_replaced(tmp_path, call):
    measured_file(tmp_path / "out").write_text('{"mine": 1}')
    with pytest.raises(BadInput, match="is no record of trainer.blend"):
        call(tmp_path / "out")
    assert measured_file(tmp_path / "out").read_text() == '{"mine": 1}'


def test_a_folder_that_embeds_otherwise_is_not_finished(tmp_path, call):
    def disprove(folder, probe, trust):
        assert (folder / "modules.json").is_file() and (folder / "tokenizer.json").is_file() and not trust
        raise Failed("other embeddings")

    with pytest.raises(Failed, match="other embeddings"):
        call(tmp_path / "out", prove=disprove)
    assert [path.name for path in tmp_path.iterdir()] == ["out.measured.json"]


def test_the_command_says_what_it_cannot_know_and_refuses_what_does_not_fit(
    tmp_path, tiny_bert, between_folders, capsys, forked_loads
):
    few = write_set(tmp_path / "few", 12)
    argv = [str(tiny_bert), str(between_folders["lora"]), "--data", str(few), "--output", str(tmp_path / "out")]
    argv += ["--device", "cpu", "--shares", "0.5"]
    assert main([*argv, "--shares", "1.5", "-1", "--most-lost", "2"]) == 2
    assert capsys.readouterr().err.count("\n  - ") == 3
    assert main([*argv, "--json", str(tmp_path / "out.txt")]) == 2
    assert "must end in .json" in capsys.readouterr().err
    (few / "state.json").write_text("{}")
    for count, more in enumerate(([], ["--general", str(few)]), 1):
        assert main([*argv, *more, "--json", str(few / "state.json")]) == 2
        said = f"--json {few / 'state.json'}: would replace a file of the input {few}; choose another name"
        assert capsys.readouterr().err.count(said) == count
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    assert main([*argv[:4], "--output", str(tmp_path / "full")]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert main([*argv[:4], "--output", str(tmp_path / "full" / "file" / "out")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main(argv) == 0
    shown = capsys.readouterr()
    assert "no --general SET" in shown.err and re.search(r"few: only \d+ queries choose and \d+ report", shown.err)
    assert re.search(r"chosen: share (0|0\.5|1)\b", shown.out) and "queries that report: nDCG@10" in shown.out
    assert shown.err.splitlines()[-1] == (
        f"Next: python -m trainer.search QUERY --model {tmp_path / 'out'} --compare {tiny_bert} --data {few}"
    )
