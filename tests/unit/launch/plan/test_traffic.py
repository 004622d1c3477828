"""Seconds of what a step sends and copies, by closed forms."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.plan.cost import (
    Buckets,
    Chunks,
    Sizes,
    Traffic,
    communication_seconds,
    copy_seconds,
    of_weights,
    product_seconds,
)
from launch.plan.hardware import GPUS, Link, link_of, of_cpu, of_gpu
from trainer.diagnosis.profile import Line, Product
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
    sizes = Sizes(1000, 4000, 4000, 1000, 0, 100, 3, 5, 0, 0)
    buckets = Buckets(500, 400, 250)
    one, three = Chunks(90, 90, 100, 90.0), Chunks(270, 90, 100, 90.0)
    assert (one.passes, three.passes) == (2, 8)  # two of three chunks are embedded twice
    summed = of_weights(1, 4, sizes, one, False, buckets)
    assert (summed.reduced, summed.gathered, summed.own, summed.gathers) == (6000, 3000, 2, 2)
    once = of_weights(3, 4, sizes, one, False, buckets)  # a quarter stays for the backward pass
    assert (once.gathered, once.scattered, once.gathers) == (3000 * 1.75, 3000, math.ceil(1.75 * 3) + 5)
    again = of_weights(3, 4, sizes, three, False, buckets)
    assert (again.gathered, again.gathers) == (3000 * 8, 8 * 3 + 5)
    recomputed = of_weights(3, 4, sizes, three, True, buckets)  # a tenth is frozen: again in three backward passes
    assert recomputed.gathered == pytest.approx(3000 * 8.3)


def test_copies_take_new_pages_on_a_cpu_and_bandwidth_on_a_gpu():
    sizes, buckets = Sizes(10**6, 4 * 10**6, 4 * 10**6, 10**6, 10**6, 0, 3, 5, 0, 0), Buckets(500, 400, 10**9)
    one, three = Chunks(90, 90, 100, 90.0), Chunks(270, 90, 100, 90.0)
    assert copy_seconds(0, sizes, one, False, buckets, of_cpu(2, 2).rates) == 0
    cpu = replace(of_cpu(2, 2).rates, memory=4e10, host_memory=5e9)
    assert copy_seconds(1, sizes, one, False, buckets, cpu) == pytest.approx(3 * 3 * 4e6 / 5e9)
    assert copy_seconds(3, sizes, one, False, buckets, cpu) == pytest.approx(3 * (3 + 2) * 4e6 / 5e9)  # gathered once
    # tensor by tensor: a quarter lies in large tensors, the rest in memory that was freed before
    parts = 3 * (3 * 4e6 + 2 * 8 * 1e6) / 5e9 + 2 * 2 * 8 * 3e6 / 4e10
    assert copy_seconds(3, sizes, three, False, buckets, cpu) == pytest.approx(parts)
    gpu = of_gpu(GPUS["H100"], "cuda", 8).rates
    assert copy_seconds(3, sizes, three, False, buckets, gpu) == pytest.approx(2 * (3 + 2 * 8) * 4e6 / (0.8 * 3.35e12))


def test_a_cpu_lays_out_the_weights_of_every_product_and_a_gpu_hides_them():
    product = Product(1, 1e6, Line(4e6, 400))
    cpu = replace(of_cpu(2, 2).rates, memory=4e10, host_memory=5e9)
    assert product_seconds(product, 100, cpu, 1e11) == pytest.approx(100 * 1e6 / 1e11 + 4e6 / 5e9)
    assert product_seconds(product, 100, cpu, 1e15) == pytest.approx(100 * 400 / 4e10 + 4e6 / 5e9)
    gpu = replace(cpu, at_once=True)
    assert product_seconds(product, 100, gpu, 1e11) == pytest.approx(100 * 1e6 / 1e11)


@given(st.integers(1, 5000), st.floats(1.0, 4096.0), st.integers(1, 50))
def test_kept_chunks_are_as_many_passes(count, filled, more):
    chunks = Chunks((count + more) * filled, count * filled, 4096, filled)
    assert (chunks.kept_passes, chunks.more_passes) == (count, more)
    assert chunks.passes == 2 * count + 3 * more
