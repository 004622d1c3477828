"""Ways to fine-tune x model families x engines: trains, resumes to the same bytes, exports, loads elsewhere the same.

CI takes cells of tiny models that hold every pair of two of the three; tests/soak/modes.py takes all, and MiniLM, more
families and options.
"""

from itertools import combinations, product

import pytest

from tests.multiprocess.groups import run_group
from tests.multiprocess.modes import (
    DENSE,
    GROUPS,
    MODES,
    TINY,
    differences,
    problems,
    refused,
    some_cells,
    write_modes,
)

CELLS = some_cells()


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modes")
    write_modes(folder, (*TINY, DENSE))
    return folder


@pytest.fixture(scope="module")
def found():
    """Results of the groups that ran so far."""
    return {}


@pytest.mark.parametrize(("engine", "world"), GROUPS, ids=[f"{e}-{w}" for e, w in GROUPS])
def test_every_mode_trains_resumes_and_exports(setting, found, engine, world):
    cells = CELLS[engine, world]
    results = run_group(setting, engine, world, cells, setting / f"{engine}-{world}.jsonl")
    assert [result["cell"]["run"] for result in results] == [cell["run"] for cell in cells]
    found[engine, world] = results
    wrong = [problem for result in results for problem in problems(result)]
    assert not wrong, "\n".join(wrong)


def test_the_cells_hold_every_pair_and_agree_across_engines(found):
    if len(found) < len(GROUPS):
        pytest.skip("not every group ran")
    results = [result for group in found.values() for result in group]
    ran = {(r["cell"]["mode"], r["cell"]["family"], (r["engine"], r["world"])) for r in results}
    ran = {cell for cell in ran if cell[1] != DENSE}
    factors = (tuple(MODES), TINY, GROUPS)
    for one, other in combinations(range(3), 2):
        pairs = {(cell[one], cell[other]) for cell in product(*factors) if not refused(cell[0], cell[2][0])}
        assert {(cell[one], cell[other]) for cell in ran} == pairs
    assert not differences(results)
