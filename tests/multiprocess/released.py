"""An engine that is released holds no weights, gradients, moments or average any more, whatever engine it is."""

import gc
import warnings

import torch


def run_cell(group, cell: dict) -> dict:
    """Bytes of tensors that this rank holds: the model alone, and what a job adds before and after its release."""
    outside = held()
    with group.job("infonce", "4 chunks", "optim.ema=0.9", sgd=False) as job:
        weights = sum(part.nbytes for part in job.engine.weights().values())
        group.gradient(job, group.batch(job, 0))
        job.engine.apply(1e-3)
        training = held() - outside
        job.release()
        after = held() - outside
    return {"weights": int(group.world.from_first(weights)), "training": training, "after": after}


def held() -> int:
    """Counts the bytes of all tensors that are alive, each storage once."""
    gc.collect()
    with warnings.catch_warnings():  # the collector also finds what libraries no longer recommend
        warnings.simplefilter("ignore")
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())
