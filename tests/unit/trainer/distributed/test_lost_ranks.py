"""A rank that waited in vain says so even where nobody answers any more."""

import threading

from torch.distributed import DistBackendError

from trainer.distributed import collectives
from trainer.distributed.collectives import World


class Silent:
    """A store behind a cut link: a question to it takes as long as TCP tries."""

    def __init__(self):
        self.asked, self.answered = threading.Event(), threading.Event()

    def check(self, keys: list[str]) -> None:
        self.asked.set()
        self.answered.wait()
        raise RuntimeError("Connection was likely closed")


def test_a_store_that_never_answers_does_not_keep_a_rank_from_failing(monkeypatch):
    store = Silent()
    monkeypatch.setattr(collectives, "_store", lambda: store)
    monkeypatch.setattr(collectives, "STORE_SECONDS", 0.2)
    lost = World(1, 2).lost(DistBackendError("[x] Timed out waiting 30000ms. More"))
    assert store.asked.wait(60) and not store.answered.is_set()
    store.answered.set()
    assert "rank 1 lost the others" in str(lost) and "out of reach" in str(lost)
