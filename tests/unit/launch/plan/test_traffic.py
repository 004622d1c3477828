"""What a step sends and copies, by closed forms."""

import math
from dataclasses import replace

import pytest

from launch.plan.cost import Buckets, Sizes, Traffic, communication_seconds, copy_seconds, of_weights
from launch.plan.hardware import GPUS, Link, link_of, of_cpu, of_gpu
from trainer.diagnosis.speed import fit
from trainer.distributed.deepspeed_json import read_ds_json


def test_a_gather_goes_round_once_and_a_measured_one_has_its_own_rate():
    """An all-gather among 4: 3/4 of the bytes."""
    seconds = {size: 4 * 1e-5 + 3 / 4 * size / 2e9 for size in (4096, 10**6, 10**7, 10**8)}
    found = fit(seconds, 4, "all-gather")
    assert found["latency"] == pytest.approx(1e-5) and found["bandwidth"] == pytest.approx(2e9)
    slow = Link(4e9, 1e-5, gather=Link(1e9, 1e-3), scatter=Link(2e9, 0.0))
    hardware = replace(of_cpu(4, 4), within=slow)
    traffic = Traffic(embeddings=4e9, gathered=2e9, scattered=2e9, calls=1, own=3, gathers=2)
    tree = 2 * 2  # messages there and back among four
    expected = (1 + tree * 1e-5) + (2 + 2 * tree * 1e-3) + 1
    assert communication_seconds(traffic, hardware, 1, 4) == pytest.approx(expected)
    stated = link_of("4GB", None, "--bandwidth", slow)
    assert stated == Link(4e9, 1e-5)  # a flag is for every collective
    assert link_of(None, None, "--bandwidth", slow) is slow


def test_deepspeed_sums_whole_gradients_as_the_plan_counts():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for stage in (1, 2):
        zero = read_ds_json(f"zero{stage}.json")["zero_optimization"]
        assert DeepSpeedZeroConfig(**zero).use_multi_rank_bucket_allreduce
    sizes = Sizes(1000, 4000, 4000, 1000, 3, 5, 0, 0)
    buckets = Buckets(500, 400, 250)
    summed = of_weights(1, 4, sizes, 2, buckets)
    assert (summed.reduced, summed.gathered, summed.own, summed.gathers) == (6000, 3000, 2, 2)
    once = of_weights(3, 4, sizes, 2, buckets)  # a quarter stays for the backward pass
    assert (once.gathered, once.scattered, once.gathers) == (3000 * 1.75, 3000, math.ceil(1.75 * 3) + 5)
    again = of_weights(3, 4, sizes, 5, buckets)
    assert (again.gathered, again.gathers) == (3000 * 5, 5 * 3 + 5)


def test_copies_take_new_pages_on_a_cpu_and_bandwidth_on_a_gpu():
    sizes, buckets = Sizes(10**6, 4 * 10**6, 4 * 10**6, 10**6, 3, 5, 0, 0), Buckets(500, 400, 10**9)
    assert copy_seconds(0, sizes, 2, buckets, of_cpu(2, 2).rates) == 0
    cpu = replace(of_cpu(2, 2).rates, memory=4e10, host_memory=5e9)
    assert copy_seconds(1, sizes, 2, buckets, cpu) == pytest.approx(3 * 3 * 4e6 / 5e9)
    assert copy_seconds(3, sizes, 2, buckets, cpu) == pytest.approx(3 * (3 + 2) * 4e6 / 5e9)  # gathered once
    gpu = of_gpu(GPUS["H100"], "cuda", 8).rates
    assert copy_seconds(3, sizes, 6, buckets, gpu) == pytest.approx(2 * (3 + 2 * 6) * 4e6 / (0.8 * 3.35e12))
