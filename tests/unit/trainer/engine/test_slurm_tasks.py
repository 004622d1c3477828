"""Tasks of a plain srun become ranks; other tasks that do not know each other are refused."""

import pytest

from data_prep.common.errors import BadInput
from trainer.engine.slurm_tasks import adopt_tasks, first_host, tasks_per_node

STEP = {
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08,11]", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_JOB_ID": "123",
    "SLURM_STEP_ID": "1",
}  # fmt: skip


def test_a_task_gets_the_variables_of_a_rank():
    environ = dict(STEP)
    adopt_tasks(environ)
    given = {name: environ[name] for name in environ.keys() - STEP.keys()}
    assert given.pop("MASTER_PORT").isdecimal()
    assert given == {
        "RANK": "4", "WORLD_SIZE": "5", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "gpu07",
    }  # fmt: skip
    other = dict(STEP, SLURM_PROCID="1", SLURM_LOCALID="1", SLURM_NODEID="0")
    adopt_tasks(other)
    assert (other["LOCAL_WORLD_SIZE"], other["MASTER_PORT"]) == ("2", environ["MASTER_PORT"])


@pytest.mark.parametrize(
    "environ",
    [{}, dict(STEP, SLURM_STEP_NUM_TASKS="1"), dict(STEP, RANK="0", WORLD_SIZE="2")],
    ids=["no", "one", "torchrun"],
)
def test_others_stay_as_they_are(environ):
    before = dict(environ)
    adopt_tasks(environ)
    assert environ == before


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes that do not know each other: each"),
        ({**STEP, "SLURM_NODEID": ""}, "srun started 5 processes .* and SLURM_NODEID are not set"),
    ],
)
def test_tasks_without_a_meeting_point_are_refused(environ, words):
    with pytest.raises(BadInput, match=words):
        adopt_tasks(environ)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[01-04,07],login", "n01"), ("a-b,c", "a-b"), ("r[1-2]n[3,5]", "r1n3"), ("n[5]-ib", "n5-ib")],
)
def test_the_first_host(nodes, first):
    assert first_host(nodes) == first


def test_tasks_of_each_node():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
