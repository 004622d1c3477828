"""`launch plan` predicts what two ranks have: bytes of state, collectives, negatives, steps.

tests/soak/plan.py does it for more models and engines, and looks at the growth of the processes as well.
"""

import pytest

from tests.multiprocess.groups import run_group
from tests.multiprocess.planned import bert, predicted, problems, write_planned


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    write_planned(folder, bert(folder / "bert", layers=2, size=256))
    return folder


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero3"])
def test_the_plan_is_what_two_ranks_have(setting, engine):
    cells = [{"kind": "planned", "run": mode, "options": []} for mode in ("full", "lora")]
    results = run_group(setting, engine, 2, cells, setting / f"{engine}.jsonl")
    plans = [predicted(setting / f"{cell['run']}.json", (), engine, 2) for cell in cells]
    wrong = [problem for result, made in zip(results, plans, strict=True) for problem in problems(result, made)]
    assert not wrong, "\n".join(wrong)
