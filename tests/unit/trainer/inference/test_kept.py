"""Vectors that a rank keeps: many lie in a file without a name, and are the same numbers."""

import errno
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.common.errors import Failed
from trainer.config.sections import ModelConfig
from trainer.inference import encode as encoding
from trainer.inference import kept
from trainer.inference.encode import first_numbers, without_numbers
from trainer.inference.team import Team
from trainer.inference.text_encoder import TextEncoder


@pytest.fixture
def mapped(tmp_path, monkeypatch) -> Path:
    """Maps all vectors; returns the folder of their files."""
    monkeypatch.setattr(kept, "IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_many_vectors_lie_in_a_file_without_a_name(mapped):
    vectors = kept.keep(1000, 8)
    vectors.copy_(torch.arange(8000.0).view(1000, 8))
    assert torch.equal(vectors.sum(dim=0), torch.arange(8000.0).view(1000, 8).sum(dim=0))
    assert list(mapped.iterdir()) == []
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert f"{mapped}/embedfleet-vectors-" in maps.read_text()
        del vectors
        assert f"{mapped}/embedfleet-vectors-" not in maps.read_text()


def test_few_vectors_are_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert kept.keep(kept.IN_MEMORY // 4 // 2**20, 2**20).shape == (256, 2**20)


def test_a_full_disk_is_found_before_anything_is_embedded(mapped, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept.os, "posix_fallocate", full, raising=False)
    with pytest.raises(Failed, match=f"{mapped}: no space for 3.0 GiB of vectors; set TMPDIR"):
        kept.keep(3 * 2**20, 256)
    assert list(mapped.iterdir()) == []


def test_mapped_vectors_are_the_same_numbers(tiny_bert, tmp_path, monkeypatch):
    texts = [f"w{i % 40} w{i % 7}" for i in range(300)]
    encoder = TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu")
    monkeypatch.setattr(kept, "AT_ONCE", 40 * encoder.size)
    monkeypatch.setattr(encoding, "AT_ONCE", 40 * encoder.size)
    (plain, of_dim), made = _both(encoder, texts), []
    monkeypatch.setattr(kept, "IN_MEMORY", 0)
    keep = kept.keep
    for module in ("encode", "team"):
        monkeypatch.setattr(f"trainer.inference.{module}.keep", lambda *of: made.append(of) or keep(*of))
    assert all(map(np.array_equal, _both(encoder, texts), (plain, of_dim)))
    team = Team(encoder)
    team.hold(lambda first, last: plain[first:last], len(plain))
    assert torch.equal(team._share.vectors, torch.from_numpy(plain))
    assert made == [(300, encoder.size), (300, encoder.size), (300, 5), (300, encoder.size)]


def _both(encoder: TextEncoder, texts: list[str]) -> list[np.ndarray]:
    """Embeddings of all numbers, and of the first five."""
    whole, encoder.dim = encoder.passages(texts), 5
    first, encoder.dim = encoder.passages(texts), None
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    return [whole, first]


def test_parts_leave_out_no_row(monkeypatch):
    monkeypatch.setattr(kept, "AT_ONCE", 12)
    vectors = torch.randn(10, 5)
    vectors[3, 4], vectors[9, 0] = torch.inf, torch.nan
    assert without_numbers(vectors) == 2
    assert torch.equal(first_numbers(vectors, 3, unit=False)[:9], vectors[:9, :3])
    assert [len(part) for part in kept.parts(torch.empty(0, 5))] == [0]
