"""final/ after a blend."""

from types import SimpleNamespace

import pytest

from trainer.distributed.collectives import World
from trainer.run_dir.verdict import BASE, BLEND, BLENDED, TRAINED, VERDICT
from trainer.train.checkpointing import Checkpoints
from trainer.train.job import Seconds


@pytest.mark.parametrize(
    ("model", "files"), [(BASE, {VERDICT}), (BLENDED, {BLEND, VERDICT}), (TRAINED, {BLEND, VERDICT})]
)
def test_the_model_before_training_is_not_described_as_a_share(tmp_path, model, files):
    """A blend that is worse beyond noise gives way to it, so the share that was chosen is not that of final/."""
    written = {}
    writer = SimpleNamespace(run_dir=tmp_path, write_on_first=lambda name, make, facts: written.update({name: facts}))
    progress = SimpleNamespace(state=SimpleNamespace(step=8), seconds=Seconds())
    checkpoints = Checkpoints(writer, SimpleNamespace(world=World()), {}, None, progress)
    verdict = {"final": {"model": model, "step": 8}, "best": {"step": 8}}
    makers = dict.fromkeys((BASE, BLENDED), None)
    checkpoints.save_blended(verdict, {BLEND: {"chosen": 0.4}}, tmp_path, makers, keep_last=False)
    assert written.keys() == {"final"} and written["final"].keys() == files
