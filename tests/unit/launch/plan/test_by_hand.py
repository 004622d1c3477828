"""Choices worked out by hand (docs/evidence/plan_accuracy.md has the table). The arithmetic calls nothing of it.

512 rows in a batch, each a query of 32 tokens and a passage of 200; cards as their makers describe them, of which the
planner counts on 0.6 of the products, 0.8 of the memory's bandwidth and 0.7 of the link.
"""

from dataclasses import replace

import pytest

from launch.plan.choice import changes, choose, scaling, shortage, too_many
from launch.plan.estimate import Ranks, candidates, look
from launch.plan.hardware import GPUS, Link, of_gpu
from tests import plan_models
from trainer.config.loading import load_config

GB = 1e9
TOKENS = 512 * (32 + 200)
USABLE = 0.9
H100, RTX4090 = 0.6 * 989e12, 0.6 * 165.2e12  # operations per second
NVLINK, PCIE = 0.7 * 450e9, 0.7 * 31e9  # bytes per second
PROCESS, BUCKET = 0.81 * GB, 2 * GB  # CUDA's context; DeepSpeed's bucket


class Decoder:
    """Numbers in the parts of a Qwen3."""

    def __init__(self, name: str):
        d, layers, heads, groups, inner, words = plan_models.DECODERS[name]
        q, kv = heads * 128, groups * 128
        self.matrices = layers * (2 * d * q + 2 * d * kv + 3 * d * inner)
        self.table = words * d
        self.norms = layers * (2 * d + 2 * 128) + d
        self.every = self.matrices + self.table + self.norms
        # r = 16 on all seven: (inputs + outputs) of each
        self.adapters = 16 * layers * (2 * (d + q) + 2 * (d + kv) + 3 * (d + inner))
        self.half_base = 2 * (self.matrices + self.table) + 4 * self.norms
        # bytes that ZeRO-3 gathers of fp32 weights: bf16 products need no more of the matrices
        self.gathered = 2 * self.matrices + 4 * (self.table + self.norms)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Plans a model in a mode on a card; a model is traced once for all hardware."""
    home, outlooks = tmp_path_factory.mktemp("by-hand"), {}

    def plan(name: str, mode: str, gpu: str, nodes: int, per_node: int, between: float | None = None):
        hardware = of_gpu(GPUS[gpu], "cuda", per_node)
        if between:
            hardware = replace(hardware, between=Link(between, 20e-6))
        ranks = Ranks(nodes, per_node, "cuda", hardware.memory)
        if (name, mode) not in outlooks:
            special = 1 if name in plan_models.DECODERS else 2
            data = home / f"shards-{special}"
            if not data.exists():
                plan_models.shards(data, 1024, special)
            model = home / name
            if not model.exists():
                plan_models.folder(model, name)
            file = plan_models.run_file(home / f"{name}-{mode}.json", model, data, finetune=mode)
            outlooks[name, mode] = look(load_config(file), ranks)
        outlook = outlooks[name, mode].on(ranks)
        estimates = candidates(outlook, hardware)
        return Plan(outlook, hardware, estimates, choose(estimates))

    return plan


class Plan:
    def __init__(self, outlook, hardware, estimates, choice):
        self.outlook, self.hardware, self.choice = outlook, hardware, choice
        self.by_name = {str(one.candidate).removesuffix(" + 4 bits"): one for one in estimates}
        self.chosen = choice.estimate
        self.name = self.chosen and str(self.chosen.candidate).removesuffix(" + 4 bits")

    def warnings(self) -> list[str]:
        table = scaling(self.outlook, self.hardware, self.chosen, None)
        return too_many(table, self.outlook.ranks, self.chosen)


def near(expected: float, rel: float = 0.05):
    return pytest.approx(expected, rel=rel)


def test_8b_lora_on_two_nodes_sends_adapters_and_not_the_base(planned):
    plan, model = planned("8B", "lora", "H100", 2, 8), Decoder("8B")
    assert plan.name == "ddp"
    assert plan.outlook.tokens == TOKENS / 16
    state = model.half_base + 4 * model.adapters + 8 * model.adapters  # and weights and moments of the adapters
    assert plan.chosen.need.state == near(state, 0.001)
    embeddings = 15 * 32 * 4096 * 4 + 2 * 15 / 16 * 512 * 4096 * 4  # gathered, and their gradient summed
    messages = 8 * (2 * 3 * 5e-6 + 2 * 1 * 20e-6)  # five collectives and three buckets; trees over 8 ranks and 2 nodes
    sent = 2 * 15 / 16 * 4 * model.adapters + embeddings
    assert plan.chosen.sent == near(sent, 0.01)
    assert plan.chosen.seconds.communication == near(sent / 25e9 + messages)
    # zero3 gathers the base forward and backward: alone more than the whole step of ddp
    gathered = 2 * 15 / 16 * model.half_base / 25e9
    assert gathered > 1.1 > plan.chosen.seconds.total
    assert plan.by_name["zero3"].seconds.communication == near(gathered, 0.1)
    # forward 2 operations for a weight and token, backward 2 for the gradient of its input
    least = 4 * model.matrices * TOKENS / 16 / H100
    assert least < plan.chosen.seconds.compute < 3 * least


@pytest.mark.parametrize("mode", ["lora", "qlora"])
def test_8b_with_adapters_on_one_24_gb_card_needs_no_offloading(planned, mode):
    plan, model = planned("8B", mode, "RTX4090", 1, 1), Decoder("8B")
    assert plan.name == "single_gpu"
    four_bits = model.matrices * (0.5 + 1 / 64 + 4 / 64 / 256) + 2 * model.table + 4 * model.norms
    base = model.half_base if mode == "lora" else four_bits
    state = base + 12 * model.adapters
    assert plan.chosen.need.state == near(state, 0.005)
    assert state + PROCESS < USABLE * 24 * GB
    # offloading the weights brings them over PCIe in every pass: three for a chunk that is embedded twice
    offloaded = plan.by_name["zero3_offload"]
    chunks = TOKENS / offloaded.budget
    assert offloaded.seconds.transfers == near(3 * chunks * (base + 4 * model.adapters) / PCIE)
    assert offloaded.seconds.total > 1.3 * plan.chosen.seconds.total
    # a second forward pass of most tokens costs less than that of all and recomputation of all
    assert plan.chosen.seconds.twice < plan.by_name["single_gpu + recompute"].seconds.recompute * 1.15
    least = 2 * model.matrices * TOKENS / RTX4090
    assert plan.chosen.seconds.twice > least


def test_8b_lora_on_one_80_gb_card(planned):
    plan, model = planned("8B", "lora", "H100", 1, 1), Decoder("8B")
    assert plan.name == "single_gpu"
    assert plan.chosen.need.state == near(model.half_base + 12 * model.adapters, 0.001)
    assert plan.chosen.sent == plan.chosen.seconds.communication == 0
    assert plan.chosen.seconds.compute > 4 * model.matrices * TOKENS / H100


def test_8b_in_full_on_8_cards_recomputes_under_zero3(planned):
    plan, model = planned("8B", "full", "H100", 1, 8), Decoder("8B")
    whole = 4 * model.every
    assert plan.name == "zero3 + recompute"
    # zero1: weights and gradient whole, two moments and a copy of an eighth
    assert whole + whole + 3 * whole / 8 + PROCESS + BUCKET > USABLE * 80 * GB
    assert not plan.by_name["zero1 + recompute"].fits
    # zero3: an eighth of weights, moments, copy and gradient; the local gradient but for what is in the bucket
    state = 5 * whole / 8
    assert plan.chosen.need.state == near(state, 0.005)
    least = state + whole - BUCKET + BUCKET + PROCESS
    assert least < plan.chosen.need.total < USABLE * 80 * GB
    # one chunk: gathered forward and backward, gradient reduced, around a ring of 8
    assert plan.chosen.seconds.communication == near(7 / 8 * (whole + 2 * model.gathered) / NVLINK, 0.1)
    # without recomputation a chunk keeps a bf16 copy of every matrix: what is left holds few tokens, in many passes
    without = plan.by_name["zero3"]
    assert without.need.activations > 2 * model.matrices
    passes = 4 * TOKENS / 8 / without.budget  # forward twice and backward, and the rest
    assert without.seconds.communication > 0.7 * passes * 7 / 8 * model.gathered / NVLINK > plan.chosen.seconds.total
    # offloading updates on the host: 40 bytes for a weight, and 25 GB/s for a rank
    update = 40 * model.every / 8 / (200e9 / 8)
    assert plan.by_name["zero2_offload + recompute"].seconds.update == near(update)
    assert update > plan.chosen.seconds.communication


@pytest.mark.parametrize("between", [25e9, 3e9])
def test_8b_in_full_on_two_nodes_sends_least_under_zero3_and_is_slower_than_one_node(planned, between):
    plan, model = planned("8B", "full", "H100", 2, 8, between), Decoder("8B")
    whole = 4 * model.every
    assert plan.name == "zero3 + recompute"
    # weights forward and backward, and the gradient; of one chunk the last billion numbers stay for the backward pass
    sent = 15 / 16 * (whole + (2 - 1e9 / model.every) * model.gathered)
    assert plan.chosen.seconds.communication == near(sent / between, 0.02)
    # zero1 fits, but it sums the whole gradient on every rank (twice around the ring) and gathers the weights
    assert whole + whole + 3 * whole / 16 + PROCESS + BUCKET < USABLE * 80 * GB
    more = 3 * 15 / 16 * whole
    assert plan.by_name["zero1 + recompute"].seconds.communication == near(more / between, 0.02)
    assert more > 1.4 * sent
    # one node has twice the work of a rank, and hardly any traffic
    one = planned("8B", "full", "H100", 1, 8).chosen.seconds
    assert one.total < plan.chosen.seconds.total
    (warning,) = plan.warnings()
    assert warning.startswith("warning: more ranks make it slower: 8 rank(s) (1 x 8, zero3 + recompute) take 2.56 s")


def test_8b_in_full_on_one_24_gb_card_says_what_is_short_and_what_would_fit(planned):
    plan, model = planned("8B", "full", "RTX4090", 1, 1), Decoder("8B")
    assert plan.chosen is None and plan.choice.reason.startswith(
        "nothing fits: zero3_offload + recompute comes nearest"
    )
    # the gradient is whole, that of the table is made beside it for every chunk, 1.05 billion numbers are gathered
    need = 4 * model.every + 4 * model.table + 4 * 1.05e9 + PROCESS
    assert shortage(plan.by_name.values(), plan.outlook.ranks.memory) == near(need - USABLE * 24 * GB, 0.1)
    would = list(changes(plan.outlook, plan.hardware, "auto"))
    assert would[0].startswith("model.finetune=lora") and would[1].startswith("model.finetune=qlora")


def test_bge_m3_in_full_on_four_cards_without_nvlink(planned):
    plan = planned("BGE-M3", "full", "RTX4090", 1, 4)
    d, layers, _, inner, words, positions = plan_models.ENCODERS["BGE-M3"]
    block = 4 * d * d + 2 * d * inner + 9 * d + inner  # with biases and two norms
    every = (words + positions + 2 + 2) * d + layers * block
    assert every == near(568e6, 0.01)
    assert plan.name == "ddp"
    assert plan.chosen.need.state == near(12 * every, 0.005)  # weights and moments
    traffic = 2 * 3 / 4 * 4 * every / PCIE
    assert plan.chosen.seconds.communication == near(traffic)
    assert plan.by_name["zero1"].seconds.communication == near(1.5 * traffic)  # and the updated weights
    # zero1 updates a quarter, 40 bytes for a weight, but copies gradients: 24 bytes
    saved = (40 * 3 / 4 - 24) * every / (0.8 * 1008e9)
    assert plan.chosen.seconds.update - plan.by_name["zero1"].seconds.update == near(saved)
    assert saved < traffic / 2  # no reason to take DeepSpeed
    least = 6 * layers * (4 * d * d + 2 * d * inner) * TOKENS / 4 / RTX4090
    assert least < plan.chosen.seconds.compute < 3 * least


def test_a_small_decoder_in_full_on_one_24_gb_card(planned):
    plan, model = planned("0.6B", "full", "RTX4090", 1, 1), Decoder("0.6B")
    assert plan.name == "single_gpu"
    assert plan.chosen.need.state == near(12 * model.every, 0.001)
    assert plan.chosen.need.gradients == 4 * model.every
    assert plan.chosen.need.activations > 2 * model.matrices  # bf16 copies, and what each token keeps
    # offloading frees 12 bytes of 16 for each weight, but the update then runs at the host's 200 GB/s
    update = 40 * model.every / 200e9
    assert plan.by_name["zero2_offload"].seconds.update == near(update)
    assert plan.by_name["zero2_offload"].seconds.transfers == near(2 * 4 * model.every / PCIE)


def test_8b_qlora_on_two_cards_without_nvlink(planned):
    plan, model = planned("8B", "qlora", "RTX4090", 1, 2), Decoder("8B")
    assert plan.name == "ddp"
    sent = 2 * 1 / 2 * 4 * model.adapters
    embeddings = 256 * 4096 * 4 + 2 * 1 / 2 * 512 * 4096 * 4
    assert plan.chosen.sent == near(sent + embeddings, 0.01)
    assert plan.chosen.seconds.communication == near((sent + embeddings) / PCIE, 0.1)
    # zero3 would gather four bits of the base in every pass, and its cards have room for as many tokens
    chunks = TOKENS / 2 / plan.by_name["zero3"].budget
    gathers = 3 * chunks * 1 / 2 * (0.52 * model.matrices + 2 * model.table) / PCIE
    assert plan.by_name["zero3"].seconds.communication == near(gathers, 0.15)
    assert gathers > 0.2 * plan.chosen.seconds.total


def test_14b_lora_on_8_cards_lies_whole_on_each(planned):
    plan, model = planned("14B", "lora", "H100", 1, 8), Decoder("14B")
    assert plan.name == "ddp"
    assert plan.chosen.need.state == near(model.half_base + 12 * model.adapters, 0.001)
    sent = 2 * 7 / 8 * 4 * model.adapters + 7 * 64 * 5120 * 4 + 2 * 7 / 8 * 512 * 5120 * 4
    assert plan.chosen.sent == near(sent, 0.01)
    chunks = TOKENS / 8 / plan.by_name["zero3"].budget
    assert chunks == near(3, 0.1)  # and so 1 + 2 x 2 forward and 3 backward passes
    assert plan.by_name["zero3"].seconds.communication == near(8 * 7 / 8 * model.half_base / NVLINK, 0.2)


def test_a_small_model_on_64_cards_is_slower_than_on_8(planned):
    plan = planned("MiniLM", "full", "H100", 8, 8)
    d, layers, _, inner, words, positions = plan_models.ENCODERS["MiniLM"]
    every = (words + positions + 2 + 2) * d + layers * (4 * d * d + 2 * d * inner + 9 * d + inner)
    assert every == near(22.6e6, 0.01)
    assert plan.name == "ddp"
    between_nodes, within = 2 * 63 / 64 * 4 * every / 25e9, 2 * 7 / 8 * 4 * every / NVLINK
    assert plan.chosen.seconds.communication > between_nodes > 0.007
    # eight cards have eight times the work, a few milliseconds of it
    eight = planned("MiniLM", "full", "H100", 1, 8).chosen.seconds
    assert eight.communication == near(within, 0.6) and eight.compute > 6 * 10.6e6 * TOKENS / 8 / H100
    assert eight.total < between_nodes
    (warning,) = plan.warnings()
    assert "more ranks make it slower: 8 rank(s) (1 x 8, " in warning and "64 take" in warning
