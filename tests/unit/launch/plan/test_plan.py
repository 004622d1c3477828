"""`python -m launch plan`: its figures against the models, batches and traffic of real engines in this process."""

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.__main__ import main
from launch.plan import estimate
from launch.plan.estimate import Candidate, Ranks
from launch.plan.memory import Model, Passes, _passes, frozen_bytes, need, read_bytes, shown
from launch.plan.traffic import Share, embedding_bytes
from trainer.config.loading import load_config
from trainer.config.sections import LossConfig
from trainer.distributed.engines import ENGINES
from trainer.loss.objective import Objective


@pytest.fixture(scope="module")
def run_file(tmp_path_factory, tiny_bert, tiny_shards):
    path = tmp_path_factory.mktemp("plan") / "run.json"
    values = {"output_dir": "out", "model": {"path": str(tiny_bert)}, "data": {"train": str(tiny_shards)}}
    path.write_text(json.dumps(values | {"train": {"batch_size": 16, "epochs": 3, "micro_batch_tokens": 300}}))
    return path


def planned(capsys, run_file, *flags: str) -> dict:
    assert main(["plan", "--config", str(run_file), "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_plan_names_steps_negatives_collectives_and_commands(capsys, run_file, tiny_shards):
    facts = planned(capsys, run_file, "--gpus-per-node", "2", "train.device=cpu")
    assert facts["steps"]["per_epoch"] == 6 and facts["steps"]["total"] == 18
    assert [e["candidate"] for e in facts["candidates"]] == [
        f"{engine}{more}" for engine in ("ddp", "zero1", "zero2", "zero3") for more in ("", " + recompute")
    ]
    by_name = {e["candidate"]: e for e in facts["candidates"]}
    assert by_name["ddp"]["calls"] == 2 + 3 + 1 and by_name["zero2"]["calls"] == 2 + 3
    assert facts["chosen"] == facts["candidate"] == "ddp"
    signals = "PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=600 "
    torchrun, accelerate = facts["commands"]["torchrun"], facts["commands"]["accelerate launch"]
    assert torchrun.startswith(signals + "torchrun --nproc-per-node 2 -m trainer --config")
    assert accelerate.startswith(signals + "ACCELERATE_USE_CPU=true accelerate launch --config_file")


def test_the_command_for_slurm_is_one(capsys, run_file):
    facts = planned(capsys, run_file, "--gpus-per-node", "2", "train.device=cpu")
    command = shlex.split(facts["commands"]["sbatch"].replace("TIME", "30"))
    assert command[:3] == ["python", "-m", "launch"] and "--submit" in command
    assert main([part for part in command[3:] if part != "--submit"]) == 0
    assert "--nproc-per-node 2" in capsys.readouterr().out


def test_more_ranks_than_rows_are_named_as_the_reason(capsys, run_file):
    assert main(["plan", "--config", str(run_file), "--gpus-per-node", "16", "train.device=cpu"]) == 0
    table = capsys.readouterr().out.partition("on other ranks:")[2].splitlines()
    assert table[-1].split()[:2] == ["2", "32"] and table[-1].endswith("the batch has 16 rows")
    assert not any("nothing fits" in line or "the batch has" in line for line in table[:-1])


def test_placeholders_are_explained(capsys, run_file):
    assert main(["plan", "--config", str(run_file), "--nodes", "2", "--gpu-memory", "80GB"]) == 0
    shown = capsys.readouterr().out
    assert "\nHEAD: name" in shown and "\nRANK: 0 on" in shown and "\nTIME: limit" in shown
    assert main(["plan", "--config", str(run_file), "--gpu-memory", "80GB"]) == 0
    assert "HEAD:" not in capsys.readouterr().out


def test_several_nodes_differ_in_their_topology_flags_only(capsys, run_file):
    one = planned(capsys, run_file, "--gpus-per-node", "2", "--gpu-memory", "80GB")
    two = planned(capsys, run_file, "--nodes", "2", "--gpus-per-node", "1", "--gpu-memory", "80GB")
    assert one["steps"] == two["steps"] and [e["need"] for e in one["candidates"]] == [
        e["need"] for e in two["candidates"]
    ]
    assert "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint HEAD:29500" in two["commands"]["torchrun"]
    assert "--num_machines 2 --machine_rank RANK" in two["commands"]["accelerate launch"]
    tail = one["commands"]["torchrun"].partition(" -m trainer")[2]
    assert two["commands"]["torchrun"].endswith(tail)


def test_the_largest_budget_fits_and_one_more_does_not(run_file, monkeypatch):
    monkeypatch.setattr(estimate, "HEADROOM", 1.0)
    outlook = estimate.look(load_config(run_file, ["train.device=cpu"]), Ranks(1, 2, "cpu", 2**40))
    for engine in ("ddp", "zero2", "zero3"):
        facts = outlook, outlook.variants[0], Candidate(engine, recompute=False)
        limit = estimate.needed_with(*facts, 150).total
        largest = estimate._largest(*facts, limit)
        assert 150 <= largest < 160
        assert estimate.needed_with(*facts, largest).total <= limit
        assert estimate._largest(*facts, 1000) is None


def test_what_does_not_fit_is_said_and_ends_in_an_error(capsys, run_file):
    assert main(["plan", "--config", str(run_file), "--gpus-per-node", "2", "--gpu-memory", "1MB"]) == 1
    shown = capsys.readouterr()
    assert "nothing fits" in shown.err and "choice: none" in shown.out and "short by: " in shown.out


BAD = {
    "--nodes": (["--nodes", "0"], "--nodes: must be at least 1"),
    "--gpu-memory": (["--gpu-memory", "lots"], "is no amount"),
    "no memory": (["train.device=cuda"], "say how much each GPU has"),
    "--engine": (["--engine", "ddp", "train.device=cpu"], "no engine for these ranks"),
    "--throughput": (["--throughput", "-1"], "must be above 0"),
    "--mfu": (["--mfu", "40"], "at most 1"),
    "--gpu": (["--gpu", "H1000"], "Did you mean 'H100'?"),
    "--machine": (["--machine", "nowhere.json"], "is not what `doctor --measure --output` writes"),
    "--machine --gpu": (["--machine", "m.json", "--gpu", "L4"], "not both"),
    "--bits": (["--bits", "4"], "only the base of a LoRA run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags_are_one_clear_error(capsys, run_file, case):
    flags, words = BAD[case]
    assert main(["plan", "--config", str(run_file), *flags]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and not shown.out and "Traceback" not in shown.err


def test_a_refused_engine_is_listed_with_its_reason(capsys, run_file):
    flags = ["--gpus-per-node", "2", "--gpu-memory", "80GB", "optim.name=adamw_8bit"]
    by_name = {e["engine"]: e for e in planned(capsys, run_file, *flags)["candidates"]}
    assert "flat partitions" in by_name["zero2"]["refused"] and by_name["ddp"]["fits"]
    assert set(by_name) <= set(ENGINES)


def test_in_the_first_backward_pass_activations_and_in_later_ones_gradients_weigh():
    passes = Passes(tokens=100, kept=1000, first=1500, later=1200)
    assert _passes(passes, 100, 0, 10_000) == (1000, 500)
    assert _passes(passes, 300, 0, 0) == (3000, 500)
    kept, working = _passes(passes, 300, 0, 10_000)
    assert kept + working == 10_000 + 1000 + 1200
    assert sum(_passes(passes, 100, 50, 10_000)) == 10_000 + 1200  # a chunk that is embedded again


@given(trained=st.integers(1, 10**10), frozen=st.integers(0, 10**10), ranks=st.integers(2, 512))
def test_a_higher_stage_and_more_ranks_never_make_a_rank_hold_more_state(trained, frozen, ranks):
    model = Model(trained, frozen, 4 * frozen, 0, 0, moments=8 * trained)
    passes, zero = Passes(100, 1000, 1500, 1200), estimate.DEFAULTS

    def state(engine: str, count: int) -> int:
        stage = {"stage": engine[4]} if engine != "ddp" else {}
        return need(engine, count, model, passes, 100, 0, 0, zero | stage, 0, "cpu").state

    assert state("ddp", ranks) + 24 >= state("zero1", ranks) == state("zero2", ranks)
    assert state("zero2", ranks) + 24 >= state("zero3", ranks) >= state("zero3", 2 * ranks)
    assert state("zero1", ranks) >= state("zero2_offload", ranks)


@pytest.mark.parametrize(("text", "expected"), [("80GB", 80 * 10**9), ("1.5 GiB", 1.5 * 2**30), ("1e9", 10**9)])
def test_amounts_of_memory_are_read(text, expected):
    assert read_bytes(text, "--gpu-memory") == expected


def test_bytes_of_a_frozen_matrix():
    assert frozen_bytes(64, 64 * 64, None) == 4 * 64 * 64
    assert frozen_bytes(64, 64 * 64, None, half=True) == 2 * 64 * 64
    assert frozen_bytes(64, 64 * 64, 8) == 64 * 64 + 4 * 64
    assert frozen_bytes(64, 64 * 64, 4) == pytest.approx(64 * 64 / 2, rel=0.6)  # and the scales
    assert shown(1_250_000_000) == "1.25 GB"


def test_traffic_is_what_the_collectives_count():
    shares = [Share(8, 10, 100), Share(8, 12, 90)]
    sent = embedding_bytes(Objective(LossConfig(), True), 10, 32, shares)
    assert sent == 7 * 8 + 10 * 8 + 12 * 4 * 8 + 12 * 32 * 4 + 22 * 32 * 4


def test_traffic_of_a_loss_that_needs_every_row_holds_its_queries_and_facts():
    """CoSENT: texts instead of documents, and three numbers about every document."""
    shares = [Share(8, 10, 100), Share(8, 12, 90)]
    sent = embedding_bytes(Objective(LossConfig(name="cosent"), True), 10, 32, shares)
    assert sent == 7 * 8 + 10 * 8 + 12 * (4 + 3) * 8 + 20 * 32 * 4 + 38 * 32 * 4


def test_traffic_of_a_guide_is_its_embeddings_of_what_the_loss_gathers():
    shares, guide = [Share(8, 10, 100), Share(8, 12, 90)], {"guide": {"model": "m"}}
    for loss, texts in (({}, 12), ({"directions": "gte"}, 20), ({"negatives": "device"}, 0), ({"negatives": "own"}, 0)):
        plain, guided = (Objective(LossConfig(**loss, **more), True) for more in ({}, guide))
        more = embedding_bytes(guided, 10, 32, shares, 48) - embedding_bytes(plain, 10, 32, shares)
        assert more == texts * 48 * 4
        assert guided.collectives - plain.collectives == (texts > 0)
