"""Claims of a launcher's command line; a world that came up otherwise is refused."""

import pytest

from data_prep.common.errors import BadInput
from launch.command import TORCHRUN, Machine, build, choose
from trainer.config.loading import load_config, parse_config
from trainer.distributed.deepspeed_json import config_folder, read_ds_json
from trainer.distributed.launcher_claims import (
    TASKS,
    Claim,
    accelerate_claim,
    check_world,
    claims,
    fewer_nodes,
    most_nodes,
)

ZERO2 = str(config_folder("accelerate_configs") / "zero2.yaml")
DDP = str(config_folder("accelerate_configs") / "ddp.yaml")
OFFLOAD = str(config_folder("accelerate_configs") / "zero3_offload.yaml")
MPS = str(config_folder("accelerate_configs") / "mps.yaml")
TAIL = ["-m", "trainer", "--config", "r.yaml", "--processes", "9"]

COMMANDS = [
    (["/v/bin/python", "/v/bin/accelerate", "launch", "--cpu", "--num_processes", "2", *TAIL], (2, None)),
    (["python", "-m", "accelerate.commands.launch", "--num_processes=3", "--multi_gpu", *TAIL], (3, "ddp")),
    (["accelerate", "launch", "--config_file", ZERO2, "--num_processes", "4", *TAIL], (4, "zero2")),
    (["accelerate", "launch", "--config_file", DDP, "--num_processes", "2", *TAIL], (2, "ddp")),
    (["accelerate", "launch", "--cpu", "--num_machines", "2", *TAIL], (2, None)),
    (["accelerate-launch", "--num_processes", "2", *TAIL], (2, None)),
    (["accelerate", "launch", "--config_file", OFFLOAD, "--num_processes", "2", *TAIL], (2, "zero3_offload")),
    (["accelerate", "launch", "--config_file", MPS, "--num_processes", "1", *TAIL], (1, "mps")),
]


@pytest.mark.parametrize(("command", "expected"), COMMANDS)
def test_an_accelerate_command_says_what_it_was_asked_for(command, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # no default config of this user
    claim = accelerate_claim(command)
    assert (claim.processes, claim.engine) == expected


@pytest.mark.parametrize("command", [["python", "-m", "trainer"], ["bash", "-c", "accelerate"], ["torchrun", "launch"]])
def test_other_commands_claim_nothing(command):
    assert accelerate_claim(command) is None


def test_a_users_yaml_with_counts_is_read(tmp_path):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text("distributed_type: MULTI_CPU\nnum_processes: 4\n")
    claim = accelerate_claim(["accelerate", "launch", "--config_file", str(yaml), *TAIL])
    assert (claim.processes, claim.engine) == (4, "ddp")


def test_ranks_that_each_train_alone_are_refused():
    with pytest.raises(BadInput) as caught:
        check_world(1, "cpu", [Claim("WORLD_SIZE in the environment", 2)], "r.yaml")
    assert "python -m launch run --config r.yaml --engine ddp --processes 2" in str(caught.value)


@pytest.mark.parametrize("by", TASKS)
def test_tasks_that_know_nothing_of_each_other_are_refused(by):
    planned = claims(None, None, {TASKS[by]: "4"})
    with pytest.raises(BadInput, match=f"{by} asked for 4 process.*--engine ddp --processes 4\nA process is alone"):
        check_world(1, "cpu", planned, "r.yaml")


def test_one_task_or_a_launcher_in_each_is_no_claim():
    assert claims(None, None, {"SLURM_STEP_NUM_TASKS": "1"}) == []
    found = claims(None, None, {"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "8"})
    assert [claim.processes for claim in found] == [8]


ELASTIC = [
    (["/v/bin/python", "-m", "torch.distributed.run", "--nnodes", "1:2", *TAIL], 2),
    (["/v/bin/python", "/v/bin/torchrun", "--nnodes=2:16", "--nproc-per-node=4", *TAIL], 16),
    (["torchrun", "--nnodes", "2", *TAIL], 0),
    (["torchrun", *TAIL], 0),
    (["accelerate", "launch", "--nnodes", "1:2", *TAIL], 0),
]


@pytest.mark.parametrize(("command", "most"), ELASTIC)
def test_an_elastic_torchrun_says_how_many_nodes_it_may_have(command, most):
    assert most_nodes(command, {}) == most


def test_an_elastic_world_that_shrank_is_told(monkeypatch):
    monkeypatch.setattr("trainer.distributed.launcher_claims._ancestor_commands", lambda: [["bash"], ELASTIC[1][0]])
    (line,) = fewer_nodes(8, {"LOCAL_WORLD_SIZE": "4"})
    assert "8 of 64 processes" in line and "--nnodes 16 waits" in line and "--processes 64 behind" in line
    assert fewer_nodes(64, {"LOCAL_WORLD_SIZE": "4"}) == []


def test_a_dropped_engine_is_refused():
    with pytest.raises(BadInput, match="Accelerate drops DeepSpeed"):
        check_world(2, "ddp", [Claim("the command", 2, "zero2")], "r.yaml")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "remove it from the YAML"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "raise train.batch_size"),
    ],
)
def test_what_the_run_file_owns_is_refused_in_the_launchers_yaml(monkeypatch, tmp_path, variable, value, words):
    from trainer.engine.start import start

    config = parse_config({"output_dir": str(tmp_path), "model": {"path": "m"}, "data": {"train": "d"}}, "r.yaml")
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadInput, match=words):
        start(config, "r.yaml")


def test_the_planned_world_passes():
    check_world(2, "zero3", [Claim("flags", 2, "zero3"), Claim("env", 2), Claim("x", None, None)], "r.yaml")
    check_world(1, "single_gpu", [Claim("flags", 1, "ddp")], "r.yaml")  # data parallelism of one, asked for


@pytest.mark.parametrize(("planned", "actual"), [("single_gpu", "cpu"), ("mps", "cpu"), ("cpu", "single_gpu")])
def test_another_device_than_the_planned_one_is_refused(planned, actual):
    with pytest.raises(BadInput, match=f"asked for engine {planned}, the engine is {actual}"):
        check_world(1, actual, [Claim("flags", 1, planned)], "r.yaml")


def test_an_engine_that_is_none_of_ours_is_refused(tmp_path):
    yaml = tmp_path / "fsdp.yaml"
    yaml.write_text("distributed_type: FSDP\n")
    claim = accelerate_claim(["accelerate", "launch", "--config_file", str(yaml), "--num_processes", "2", *TAIL])
    with pytest.raises(BadInput, match="asked for engine fsdp, the engine is ddp"):
        check_world(2, "ddp", [claim], "r.yaml")


CPU, GPUS, MAC = Machine(0, False, 8), Machine(4, False, 32), Machine(0, True, 8)


@pytest.mark.parametrize(
    ("engine", "processes", "machine", "device", "expected"),
    [
        ("auto", None, CPU, "auto", ("cpu", 1)),
        ("auto", 2, CPU, "auto", ("ddp", 2)),
        ("auto", None, GPUS, "auto", ("ddp", 4)),
        ("auto", None, GPUS, "cpu", ("cpu", 1)),
        ("auto", 1, GPUS, "auto", ("single_gpu", 1)),
        ("auto", None, MAC, "auto", ("mps", 1)),
        ("zero2", None, CPU, "auto", ("zero2", 2)),
        ("zero3", None, GPUS, "auto", ("zero3", 4)),
        ("ddp", 3, CPU, "auto", ("ddp", 3)),
        ("ddp", None, Machine(1, False, 8), "auto", ("ddp", 1)),
        ("ddp", None, Machine(0, False, 1), "auto", ("ddp", 2)),
    ],
)
def test_engine_and_processes_that_are_left_open(engine, processes, machine, device, expected):
    assert choose(engine, processes, machine, device) == expected


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_named_device_that_is_missing_is_refused(device):
    with pytest.raises(BadInput, match=f"train.device: {device}"):
        choose("auto", None, CPU, device)


def test_the_advice_can_be_followed():
    with pytest.raises(BadInput) as caught:
        check_world(2, "ddp", [Claim("flags", None, "cpu"), Claim("env", 2)], "r.yaml")
    assert "--engine ddp --processes 2" in str(caught.value)


def test_two_statements_about_the_device_are_refused():
    with pytest.raises(BadInput, match="say one of them"):
        choose("cpu", None, GPUS, "cuda")


@pytest.mark.parametrize(
    ("engine", "processes", "machine", "words"),
    [
        ("ddp", 5, GPUS, "4 GPU"),
        ("cpu", 2, CPU, "one process"),
        ("mps", None, CPU, "no Apple GPU"),
        ("single_gpu", None, CPU, "no CUDA device"),
        ("fsdp", None, CPU, "none of auto"),
        ("ddp", 0, CPU, "at least 1"),
    ],
)
def test_never_fewer_ranks_or_another_engine_than_asked(engine, processes, machine, words):
    with pytest.raises(BadInput, match=words):
        choose(engine, processes, machine, "auto")


def test_the_command_states_each_fact_once_and_cpu_ranks_share_the_cores():
    command = build("r.yaml", ["optim.lr=1e-4"], "ddp", 2, CPU, "cpu", True, 29500)
    assert command.environ == {"OMP_NUM_THREADS": "4", "ACCELERATE_USE_CPU": "true"} | TORCHRUN
    assert command.argv.count("--num_processes") == 1
    assert command.argv[-3:] == ["--resume", "optim.lr=1e-4", "train.device=cpu"]
    assert "ACCELERATE_USE_CPU" not in build("r.yaml", [], "zero2", 2, CPU, "cpu", False, 29500).environ
    assert build("r.yaml", [], "ddp", 4, GPUS, "cuda", False, 29500).environ == TORCHRUN


FOREIGN = [
    ({"gradient_accumulation_steps": 4}, "batch_size"),
    ({"train_batch_size": 64}, "train_batch_size"),
    ({"bf16": {"enabled": True}}, "precision"),
    ({"optimizer": {"type": "Adam"}}, "optim"),
    ({"gradient_clipping": 0.5}, "gradient_clipping"),
    ({"zero_optimization": {"stage": 0}}, "stage"),
    ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}, "stage 2 or 3"),
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload_param.device"),
]


@pytest.mark.parametrize(("change", "words"), FOREIGN)
def test_a_deepspeed_json_that_states_a_fact_of_the_run_file_is_refused(change, words):
    from trainer.engine.zero_engine import _foreign_facts

    problems = _foreign_facts({"zero_optimization": {"stage": 2}} | change)
    assert len(problems) == 1 and words in problems[0]


def test_the_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_ds_json("ds_configs/zero3.json")["zero_optimization"]["stage"] == 3
    (tmp_path / "mine.json").write_text('\ufeff{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    assert read_ds_json("mine.json")["zero_optimization"]["stage"] == 1
    with pytest.raises(BadInput, match="zero1.json"):
        read_ds_json("ds_configs/zero9.json")


def test_one_line_where_there_is_no_compiler(monkeypatch):
    import torch

    from trainer.engine.zero_engine import plugin

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match=r"C\+\+ compiler"):
        plugin("zero2.json", 1.0, torch.device("cpu"))


def test_launch_run_says_so_before_it_starts_a_rank(monkeypatch, tmp_path, tiny_bert, tiny_shards, capsys):
    from launch.__main__ import main
    from tests.end_to_end.runs import write_run

    monkeypatch.setenv("CXX", "no-such-compiler")
    run_file = write_run(tmp_path, tiny_bert, tiny_shards)
    argv = ["run", "--config", str(run_file), "--engine", "zero2", "--processes", "2", "train.device=cpu", "--dry-run"]
    assert main(argv) == 2
    assert "C++ compiler" in capsys.readouterr().err


def test_yaml_numbers_like_1e_4_are_numbers(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("output_dir: o\nmodel: {path: m}\ndata: {train: t}\noptim: {lr: 1e-4}\n")
    assert load_config(path).optim.lr == 1e-4
    assert load_config(path, ["optim.lr=5E-6"]).optim.lr == 5e-6
