"""InfoNCE against a whole collection, on one, two and three ranks, is that of plain autograd in one process."""

import json

import pytest
import torch

from tests import forked
from tests.multiprocess.collection import PLANTS, plain, setting

WORLDS = (1, 2, 3)


@pytest.fixture(scope="module")
def expected():
    queries, documents, related = setting()
    queries.requires_grad_()
    loss = plain(queries, documents, related)
    loss.backward()
    return loss.detach(), queries.grad


@pytest.fixture(scope="module", params=WORLDS)
def group(request, tmp_path_factory):
    """Loss and gradient of every rank, by plant and type."""
    folder = tmp_path_factory.mktemp("collection")
    done = forked.run_ranks(request.param, "tests.multiprocess.collection:main", json.dumps([str(folder)]), timeout=120)
    assert done.returncode == 0, done.both[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def error(of_rank: dict, plant: str, dtype: torch.dtype, expected) -> float:
    """The greater relative error of loss and gradient."""
    pairs = zip(of_rank[plant, dtype], expected)
    return max(float((one.double() - other).norm() / other.norm()) for one, other in pairs)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_loss_and_gradient_are_those_of_one_process(group, expected, dtype, limit):
    for of_rank in group:
        assert error(of_rank, "nothing", dtype, expected) < limit
        same = (torch.equal(one, other) for one, other in zip(of_rank["nothing", dtype], group[0]["nothing", dtype]))
        assert all(same), "every rank has the same bits, so that every rank trains the same map"


@pytest.mark.parametrize("plant", PLANTS[1:])
def test_a_planted_factor_is_seen(group, expected, plant):
    if len(group) == 1 and plant == "each share alone":
        pytest.skip("one rank holds all shares")
    assert error(group[0], plant, torch.float64, expected) > 0.01
