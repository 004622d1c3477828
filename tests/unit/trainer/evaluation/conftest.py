import pytest

from trainer.evaluation import compare


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """200 resamples of scored pairs in place of 2,000: each ranks all pairs again."""
    monkeypatch.setattr(compare, "PAIR_SAMPLES", 200)
