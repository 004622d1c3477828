"""Stores filled with a small collection, and a second model."""

import pytest

from data_prep.stores.base import StoreConfig
from tests import tiny
from tests.postgres import postgres_server
from tests.servers import QdrantProtocol
from tests.unit.trainer.reindexing.helpers import emptied, fill, served

KINDS = (
    "chroma",
    "qdrant server",
    "pgvector",
)  # Qdrant's: the server's protocol is answered by the engine of local mode


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """Other weights than tiny_bert's: as a model after training."""
    import torch

    folder = tiny.model(tmp_path_factory.mktemp("models") / "other")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    weights = {name: tensor + 0.3 * torch.randn_like(tensor) for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def postgres():
    with postgres_server() as url:
        yield url


@pytest.fixture(params=KINDS)
def source(request, tmp_path):
    """A collection of 40 chunks with vectors of some model that is gone."""
    if request.param == "pgvector":
        url = emptied(request.getfixturevalue("postgres"))
        config = StoreConfig("pgvector", "docs", url=url, text_field="body")
        fill(config)
        yield config
        return
    if request.param == "chroma":
        config = StoreConfig("chroma", "docs", path=tmp_path / "store")
        fill(config)
        yield config
        return
    with served(QdrantProtocol()) as config:
        yield config
