"""Maps of query vectors: they begin as the identity, and plain numpy computes what torch does."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from data_prep.common.errors import BadInput, Failed
from tests.launching import ROOT
from trainer.query_side.adapter import WEIGHTS, QueryAdapter
from trainer.query_side.exports import onnx_graph
from trainer.query_side.exports.onnx_graph import FILE, computed, write_onnx
from trainer.query_side.maps import LINEAR, MLP, make_map

D = 24
FORMS = [(LINEAR, None), (LINEAR, 5), (MLP, None)]


def vectors(count: int = 50) -> torch.Tensor:
    return normalize(torch.randn(count, D, generator=torch.Generator().manual_seed(3)), dim=1)


def trained(kind: str, rank: int | None):
    """A map with random parameters."""
    model, generator = make_map(kind, D, rank), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(("kind", "rank"), FORMS)
def test_an_untrained_map_is_the_identity_and_can_learn(kind, rank):
    model = make_map(kind, D, rank)
    torch.testing.assert_close(model(vectors()), vectors())
    (model(vectors()) * vectors().roll(1, 0)).sum().backward()
    assert any(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(("kind", "rank"), FORMS)
def test_the_numpy_adapter_is_the_torch_map_before_and_after_a_file(kind, rank, tmp_path):
    model = trained(kind, rank)
    expected = model(vectors()).detach().numpy()
    assert np.abs(expected - vectors().numpy()).max() > 0.05
    adapter = QueryAdapter(model.layers(), {"dim": D, "model": "M"})
    adapter.save(tmp_path)
    for one in (adapter, QueryAdapter.load(tmp_path)):
        np.testing.assert_allclose(one(vectors().numpy()), expected, atol=1e-5)
        np.testing.assert_allclose(one(7 * vectors()[3].numpy()), expected[3], atol=1e-5)
        assert one.facts == {"dim": D, "model": "M"} and not one.is_identity


@pytest.mark.parametrize(("kind", "rank"), FORMS)
def test_the_onnx_graph_computes_what_numpy_does(kind, rank, tmp_path):
    given = vectors().numpy() * np.linspace(0, 9, 50, dtype=np.float32)[:, None]  # the first is a zero vector
    for adapter in (QueryAdapter(trained(kind, rank).layers(), {"dim": D}), QueryAdapter([], {"dim": D})):
        write_onnx(adapter, tmp_path)
        np.testing.assert_allclose(computed(tmp_path / FILE, given), adapter(given), atol=1e-6)


def test_a_graph_that_computes_something_else_is_not_delivered(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "computed", lambda file, given: given[::-1])
    with pytest.raises(Failed, match="computes other vectors than numpy"):
        write_onnx(QueryAdapter([], {"dim": D}), tmp_path)


def test_the_identity_has_no_layers_and_normalises(tmp_path):
    QueryAdapter([], {"dim": D}).save(tmp_path)
    adapter = QueryAdapter.load(tmp_path)
    assert adapter.is_identity
    np.testing.assert_allclose(adapter(3 * vectors().numpy()), vectors().numpy(), atol=1e-6)
    assert not adapter(np.zeros(D)).any()


def test_what_is_no_adapter_or_no_vector_of_its_size_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is no query adapter"):
        QueryAdapter.load(tmp_path)
    QueryAdapter(trained(LINEAR, None).layers(), {"dim": D}).save(tmp_path)
    for wrong in (np.zeros(D + 1), np.zeros((2, D - 1)), np.zeros((1, 1, D)), np.float32(1)):
        with pytest.raises(ValueError, match=f"vectors of {D} numbers"):
            QueryAdapter.load(tmp_path)(wrong)
    (tmp_path / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(BadInput, match="no whole adapter"):
        QueryAdapter.load(tmp_path)


def test_an_adapter_with_layers_of_another_size_is_refused(tmp_path):
    QueryAdapter(trained(LINEAR, None).layers(), {"dim": D + 1}).save(tmp_path)
    with pytest.raises(BadInput, match=f"do not fit {D + 1} numbers"):
        QueryAdapter.load(tmp_path)


def test_the_adapter_loads_without_torch():
    code = (
        "import sys; import trainer.query_side.adapter; print([m for m in ('torch', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
