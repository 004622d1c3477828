"""InfoNCE against a whole collection, on one, two and three ranks, is that of plain autograd in one process."""

import json

import pytest
import torch

from tests import forked
from tests.multiprocess import query_lora
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
def group(request, tmp_path_factory, tiny_bert):
    """Loss and gradient of every rank, by plant and type; LoRA's by plant and batch."""
    folder = tmp_path_factory.mktemp("collection")
    arguments = json.dumps([str(folder), str(tiny_bert)])
    done = forked.run_ranks(request.param, "tests.multiprocess.collection:main", arguments, timeout=120)
    assert done.returncode == 0, done.both[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def error(found, expected) -> float:
    """The greater relative error of loss and gradient."""
    return max(float((one.double() - other).norm() / other.norm()) for one, other in zip(found, expected))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_loss_and_gradient_are_those_of_one_process(group, expected, dtype, limit):
    for of_rank in group:
        assert error(of_rank["nothing", dtype], expected) < limit
        same = (torch.equal(one, other) for one, other in zip(of_rank["nothing", dtype], group[0]["nothing", dtype]))
        assert all(same), "every rank has the same bits, so that every rank trains the same map"


@pytest.mark.parametrize("plant", PLANTS[1:])
def test_a_planted_factor_is_seen(group, expected, plant):
    if len(group) == 1 and plant == "each share alone":
        pytest.skip("one rank holds all shares")
    assert error(group[0][plant, torch.float64], expected) > 0.01


@pytest.fixture(scope="module")
def lora(tiny_bert):
    return query_lora.plain_gradients(tiny_bert)


@pytest.mark.parametrize("batch", query_lora.BATCHES)
def test_gradients_of_lora_on_the_query_encoder_are_those_of_one_process(group, lora, batch):
    for of_rank in group:
        assert error(of_rank["lora"]["nothing", batch], lora[batch]) < 1e-5


@pytest.mark.parametrize("plant", query_lora.PLANTS[1:])
def test_a_planted_factor_is_seen_in_the_gradients_of_lora(group, lora, plant):
    if len(group) == 1 and plant in ("each share alone", "gradients stay on their rank"):
        pytest.skip("one rank has all shares and all queries")
    assert error(group[0]["lora"][plant, "all but two"], lora["all but two"]) > 0.01
