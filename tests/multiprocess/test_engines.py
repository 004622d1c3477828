"""The promise: one process, two and three ranks, ddp and ZeRO 1, 2, 3 train the same batches to the same end.

Every engine with every number of ranks is one process group that runs all its cells; CI takes the cells that hold every
pair of values of two factors, tests/soak/exactness.py takes all. The table that the cells make is written as Markdown
beside the other files of the test run, and its path is printed.
"""

from itertools import combinations, product

import pytest

from tests.multiprocess.cells import CASES, FACTORS, some_cells, table_cell
from tests.multiprocess.groups import run_group
from tests.multiprocess.report import GRADIENT, LOSS, TEMPERATURE, problems, summary, table
from tests.multiprocess.setting import write_setting
from trainer.distributed.engines import OFFLOADED

CELLS = some_cells()
BUCKET = 8000  # numbers: the model has some 32,000, and 12,928 in its largest weight
EXTRA = {  # further kinds of cells, see worker.Group
    "dropout": (("cpu", 1), ("ddp", 2), ("zero2", 2), ("zero3", 2)),
    "overlapped": (("ddp", 2), ("ddp", 3)),
    "duplicates": (("cpu", 1), ("ddp", 2), ("zero2", 2)),
    "rules": (("ddp", 3), ("zero2", 2)),
    "sources": (("cpu", 1), ("zero1", 2), ("ddp", 3)),
    "mined": (("cpu", 1), ("ddp", 2), ("ddp", 3)),
    "retrieval": (("cpu", 1), ("ddp", 2), ("ddp", 3), ("zero1", 2), ("zero2", 2), ("zero3", 2)),
}
for group in EXTRA["dropout"]:  # first: in a process that had no engine before, as a run's has none
    CELLS[group].insert(0, {"kind": "released", "run": "sources"})
for kind, groups in EXTRA.items():
    for group in groups:
        CELLS[group].append({"kind": kind, "run": "sources"})
CELLS["zero3", 2].append({"kind": "rules", "run": "sources", "rules": ["guide"]})  # a model that is not partitioned
for engine, world in CELLS:
    if world > 1:
        losses = ["infonce+kl"] if world == 2 else ["user"]
        CELLS[engine, world].append({"kind": "loads", "run": "sources", "losses": losses})
for engine in OFFLOADED:  # outside the table: where the state lies is all that differs from their stage
    CELLS[engine, 2] = [table_cell("infonce", "4 chunks", planted=True) | {"kind": "offloaded"}]
for engine, world, chunks in (("zero3", 2, "4 chunks"), ("zero3", 3, "4 kept"), ("zero3_offload", 2, "4 kept")):
    CELLS[engine, world].append(table_cell("infonce", chunks, planted=True) | {"kind": "reduced", "bucket": BUCKET})
for world, chunks in ((2, "4 chunks"), (3, "4 kept")):
    CELLS["zero3", world].append({"kind": "rounded", "run": "infonce", "chunks": chunks})


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """The folder that workers read, and the dense reference."""
    folder = tmp_path_factory.mktemp("exactness")
    return folder, write_setting(folder)


@pytest.fixture(scope="module")
def found():
    """Results of the groups that ran so far: what different groups are held against each other with."""
    return {}


@pytest.mark.parametrize(("engine", "world"), CELLS, ids=[f"{e}-{w}" for e, w in CELLS])
def test_a_group_trains_as_one_dense_process(setting, found, engine, world):
    folder, reference = setting
    results = run_group(folder, engine, world, CELLS[engine, world], folder / f"{engine}-{world}.jsonl")
    assert len(results) == len(CELLS[engine, world])
    found[engine, world] = results
    wrong = [problem for result in results for problem in problems(result, reference)]
    assert not wrong, "\n".join(wrong)


def test_the_table_holds_every_pair_and_is_written(setting, found, capsys):
    folder, reference = setting
    if len(found) < len(CELLS):
        pytest.skip("not every group ran")
    rows = [result for results in found.values() for result in results if result["cell"]["kind"] == "table"]
    path = folder / "exactness.md"
    path.write_text(summary(rows, reference) + "\n" + table(rows, reference) + "\n")
    with capsys.disabled():
        print(f"\n{summary(rows, reference)} The table: {path}")
    ran = [(r["world"], r["engine"].replace("cpu", "ddp"), r["cell"]["chunks"], r["cell"]["run"]) for r in rows]
    for one, other in combinations(range(len(FACTORS)), 2):
        assert {(cell[one], cell[other]) for cell in ran} == set(product(FACTORS[one], FACTORS[other]))
    assert {r["cell"]["run"] for r in rows if r["cell"]["adamw"]} == set(CASES)
    assert (GRADIENT, LOSS, TEMPERATURE) == (1e-5, 1e-4, 1e-4), "the limits of the promise"


def test_several_sources_make_the_same_batches_and_losses_with_one_two_and_three_ranks(found):
    if not all(group in found for group in EXTRA["sources"]):
        pytest.skip("not every group ran")
    one, *others = (r for group in EXTRA["sources"] for r in found[group] if r["cell"]["kind"] == "sources")
    for other in others:
        assert other["batches"] == one["batches"]
        assert other["losses"] == pytest.approx(one["losses"], abs=LOSS)
        assert other["temperature"] == pytest.approx(one["temperature"], rel=TEMPERATURE)
    assert {source for source, _ in one["batches"]} == {"pairs", "graded"}


def test_every_group_finds_the_same_documents_in_the_same_order(found):
    if not all(group in found for group in EXTRA["retrieval"]):
        pytest.skip("not every group ran")
    one, *others = (r["found"] for g in EXTRA["retrieval"] for r in found[g] if r["cell"]["kind"] == "retrieval")
    for other in others:
        assert {query: [document for document, _ in hits] for query, hits in other.items()} == {
            query: [document for document, _ in hits] for query, hits in one.items()
        }
        for query, hits in one.items():
            assert [score for _, score in other[query]] == pytest.approx([score for _, score in hits], abs=1e-6)


def test_one_two_and_three_ranks_mine_the_same_negatives(found):
    if not all(group in found for group in EXTRA["mined"]):
        pytest.skip("not every group ran")
    one, *others = (r["mined"] for g in EXTRA["mined"] for r in found[g] if r["cell"]["kind"] == "mined")
    assert all(other == one for other in others)
