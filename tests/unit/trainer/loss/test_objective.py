"""A run file's loss in one process: every term and mix is its plain formula, users' functions, learned temperature."""

import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from data_prep.common.errors import BadInput
from trainer.config.sections import LossConfig, RunConfig
from trainer.distributed.collectives import World
from trainer.loss.batch import Batch
from trainer.loss.exchange import DocumentKeys
from trainer.loss.objective import Objective
from trainer.loss.temperature import LearnedTemperature
from trainer.loss.user_functions import LossBatch, import_functions

ROWS, SIZE, TAU = 5, 8, 0.1
NEGATIVE_ROW = [0, 0, 2, 3, 3, 3]  # rows 1 and 4 have no hard negatives
DOCUMENTS = ROWS + len(NEGATIVE_ROW)
SCORES = [0.2, 0.9, 0.2, 0.5, 0.0]
TEACHER_POSITIVE = [3.0, 1.0, 2.0, 2.5, 0.5]
TEACHER_NEGATIVE = [1.0, 2.0, -1.0, 2.0, 0.0, 3.0]
NAN = float("nan")


def make_batch(scored: bool = True, taught: bool = True, global_rows: int = ROWS) -> Batch:
    """No two texts are the same, so that nothing is masked."""
    keys = torch.arange(3 * DOCUMENTS).reshape(DOCUMENTS, 3)
    none = [NAN] * DOCUMENTS
    return Batch(
        row_ids=[10 * row for row in range(ROWS)],
        tokens=[[1]] * (ROWS + DOCUMENTS),
        row_keys=keys[:ROWS, :1].clone(),
        row_query=keys[:ROWS, 2].clone(),
        documents=DocumentKeys(*keys.unbind(dim=1), row=torch.tensor([*range(ROWS), *NEGATIVE_ROW])),
        scores=torch.tensor(SCORES if scored else none[:ROWS], dtype=torch.float64),
        teacher_positive=torch.tensor(TEACHER_POSITIVE if taught else none[:ROWS], dtype=torch.float64),
        teacher_negative=torch.tensor(TEACHER_NEGATIVE if taught else none[ROWS:], dtype=torch.float64),
        global_rows=global_rows,
        source="faq",
    )


def make_embeddings(seed: int = 0) -> torch.Tensor:
    """(texts, SIZE) of length 1: queries, positives, hard negatives."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(ROWS + DOCUMENTS, SIZE, generator=generator, dtype=torch.float64), dim=1)


def apply(objective: Objective, embeddings: torch.Tensor, batch: Batch, *guided) -> tuple[torch.Tensor, dict]:
    """One process: (gradient, what is logged)."""
    gradient, sums = objective(embeddings, batch, [[ROWS, DOCUMENTS]], World(), *guided)
    return gradient, dict(zip(objective.stat_names, sums.tolist()))


# ---- The plain formulas: (queries, positives, negatives) -> the mean loss of the batch, by loops


def of_row(row: int, values: list) -> list:
    return [value for value, owner in zip(values, NEGATIVE_ROW) if owner == row]


def infonce(q, p, n, temperature=TAU, both=False):
    total = 0.0
    for row in range(ROWS):
        logits = torch.cat([p, n]) @ q[row] / temperature
        total = total + torch.logsumexp(logits, 0) - logits[row]
        if both:
            back = q @ p[row] / temperature
            total = total + torch.logsumexp(back, 0) - back[row]
    return total / (2 * ROWS if both else ROWS)


def cosine(q, p, n):
    return sum((F.cosine_similarity(q[i], p[i], dim=0) - SCORES[i]) ** 2 for i in range(ROWS)) / ROWS


def cosent(q, p, n):
    cosines = [F.cosine_similarity(q[i], p[i], dim=0) for i in range(ROWS)]
    pairs = [(i, j) for i in range(ROWS) for j in range(ROWS) if SCORES[i] < SCORES[j]]
    return torch.log(1 + sum(torch.exp((cosines[i] - cosines[j]) / TAU) for i, j in pairs))


def margin_mse(q, p, n):
    total = 0.0
    for k, row in enumerate(NEGATIVE_ROW):
        margin = q[row] @ p[row] - q[row] @ n[k]
        total = total + (margin - (TEACHER_POSITIVE[row] - TEACHER_NEGATIVE[k])) ** 2
    return total / len(NEGATIVE_ROW)


def kl(q, p, n, teacher_temperature=2.0):
    total = 0.0
    for row in range(ROWS):
        student = torch.stack([q[row] @ p[row], *(q[row] @ x for x in of_row(row, list(n)))]) / TAU
        teacher = torch.tensor([TEACHER_POSITIVE[row], *of_row(row, TEACHER_NEGATIVE)], dtype=torch.float64)
        target = (teacher / teacher_temperature).softmax(0)
        total = total + (target * (target.log() - student.log_softmax(0))).sum()
    return total / ROWS


FORMULAS = {"infonce": infonce, "cosine": cosine, "cosent": cosent, "margin_mse": margin_mse, "kl": kl}


def check_equals(formula, loss: dict, normalised: bool = True) -> dict:
    """The objective's loss and gradient against the formula's, by autograd; what is logged."""
    embeddings = make_embeddings()
    leaf = embeddings.clone().requires_grad_()
    expected = formula(*leaf.split([ROWS, ROWS, len(NEGATIVE_ROW)]))
    (by_autograd,) = torch.autograd.grad(expected, leaf)
    gradient, logged = apply(Objective(LossConfig(**loss), normalised), embeddings, make_batch())
    assert logged["loss"] == pytest.approx(expected.item(), rel=1e-9)
    assert torch.allclose(gradient, by_autograd, rtol=1e-7, atol=1e-10)
    return logged


@pytest.mark.parametrize("name", FORMULAS)
def test_every_loss_alone_is_its_formula(name):
    check_equals(FORMULAS[name], {"name": name, "temperature": TAU, "teacher_temperature": 2.0})


MIXES = [
    {"infonce": 1.0, "kl": 0.5},
    {"infonce": 0.1, "margin_mse": 2.0},
    {"cosent": 1.0, "cosine": 3.0},
    {name: 0.3 * (i + 1) for i, name in enumerate(FORMULAS)},
]


@pytest.mark.parametrize("mix", MIXES, ids="+".join)
def test_a_mix_is_the_weighted_sum_and_every_term_is_logged_without_its_weight(mix):
    def formula(*parts):
        return sum(weight * FORMULAS[name](*parts) for name, weight in mix.items())

    logged = check_equals(formula, {"name": mix, "temperature": TAU, "teacher_temperature": 2.0})
    parts = make_embeddings().split([ROWS, ROWS, len(NEGATIVE_ROW)])
    for name in mix:
        assert logged[f"loss_{name}"] == pytest.approx(FORMULAS[name](*parts).item(), rel=1e-9)


def test_symmetric_directions():
    def formula(*parts):
        return infonce(*parts, both=True)

    check_equals(formula, {"name": "infonce", "temperature": TAU, "directions": "symmetric"})


@pytest.mark.parametrize("normalised", [True, False])
def test_matryoshka_is_the_weighted_sum_over_sizes(normalised):
    def formula(*parts):
        total = 0.0
        for size, weight in ((8, 1.0), (4, 0.5)):
            short = [part[:, :size] for part in parts]
            total = total + weight * infonce(*[F.normalize(x, dim=1) for x in short] if normalised else short)
        return total

    loss = {"temperature": TAU, "matryoshka": {4: 0.5, 8: 1.0}}
    logged = check_equals(formula, loss, normalised)
    positives = (make_embeddings()[:ROWS] * make_embeddings()[ROWS : 2 * ROWS]).sum()
    assert logged["positive_similarity"] == pytest.approx(positives.item(), rel=1e-5), "of the largest size"


def test_matryoshka_sizes_as_a_list_weigh_the_same():
    assert LossConfig(matryoshka=[16, 64, 32]).dims == [(64, 1.0), (32, 1.0), (16, 1.0)]
    assert LossConfig(matryoshka={16: 2, 64: 1}).dims == [(64, 1.0), (16, 2.0)]


# ---- Users' functions


def mean_distance(queries, positives, batch):
    return (queries - positives).square().sum(dim=1).mean()


USERS_MODULE = """
import torch

def distance(queries, positives, batch):
    return (queries - positives).square().sum(dim=1).mean()

def by_row(queries, positives, batch):
    return (queries - positives).square().sum(dim=1)

def constant(queries, positives, batch):
    return torch.tensor(1.0)

def a_number(queries, positives, batch):
    return 1.0

nothing = 5
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    """The name of a module with losses that lies on sys.path; forgotten afterwards."""
    (tmp_path / "users_losses.py").write_text(USERS_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "users_losses"
    sys.modules.pop("users_losses", None)


def plain_distance(q, p, n):
    return (q - p).square().sum() / ROWS


def test_a_users_function_by_name_alone_and_in_a_mix(users_module):
    name = f"{users_module}:distance"
    check_equals(plain_distance, {"name": name})

    def formula(*parts):
        return 0.5 * plain_distance(*parts) + 2.0 * infonce(*parts)

    logged = check_equals(formula, {"name": {name: 0.5, "infonce": 2.0}, "temperature": TAU})
    assert logged["loss_distance"] > 0 and logged["loss_infonce"] > 0


def test_a_users_function_in_python_takes_the_place_of_the_run_files_loss():
    objective = Objective(LossConfig(name="cosent"), True, loss_fn=mean_distance)
    logged = apply(objective, make_embeddings(), make_batch())[1]
    expected = plain_distance(*make_embeddings().split([ROWS, ROWS, len(NEGATIVE_ROW)]))
    assert logged["loss"] == logged["loss_mean_distance"] == pytest.approx(expected.item())


@pytest.mark.parametrize("function", ["by_row", "constant", "a_number"])
def test_a_users_function_must_return_a_scalar_of_the_embeddings(users_module, function):
    objective = Objective(LossConfig(name=f"{users_module}:{function}"), True)
    words = f"{users_module}:{function} must return a scalar tensor that depends on the embeddings"
    with pytest.raises(BadInput, match=words):
        apply(objective, make_embeddings(), make_batch())


MISSING = {
    "no_such_module_of_losses:f": "ModuleNotFoundError: No module named",
    "users_losses:no_such": "AttributeError: module 'users_losses' has no attribute 'no_such'",
    "users_losses:nothing": "users_losses:nothing is not a function",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_users_function_that_is_not_there(users_module, name):
    for act in (lambda loss: Objective(loss, True), lambda loss: import_functions([loss])):
        with pytest.raises(BadInput) as raised:
            act(LossConfig(name=name))
        assert len(raised.value.problems) == 1
        assert MISSING[name] in str(raised.value)


def seen_by_a_function(batch: Batch, **loss) -> LossBatch:
    seen = []

    def loss_fn(queries, positives, facts):
        seen.append((queries, positives, facts))
        return (queries * positives).sum()

    embeddings = make_embeddings()
    apply(Objective(LossConfig(**loss), True, loss_fn), embeddings, batch)
    ((queries, positives, facts),) = seen
    assert torch.equal(queries, embeddings[:ROWS]) and torch.equal(positives, embeddings[ROWS : 2 * ROWS])
    assert torch.equal(facts.negative_embeds, embeddings[2 * ROWS :])
    return facts


def test_what_a_function_sees_beside_the_embeddings():
    facts = seen_by_a_function(make_batch(), temperature=TAU)
    assert facts.row_ids.tolist() == [0, 10, 20, 30, 40]
    assert facts.negative_row.tolist() == NEGATIVE_ROW
    assert facts.scores.tolist() == SCORES
    assert facts.teacher_positive.tolist() == TEACHER_POSITIVE
    assert facts.teacher_negative.tolist() == TEACHER_NEGATIVE
    assert (facts.temperature, facts.source) == (TAU, "faq")


def test_scores_that_the_data_lack_are_nan():
    facts = seen_by_a_function(make_batch(scored=False, taught=False), temperature_lr=1e-2)
    for values, count in ((facts.scores, 5), (facts.teacher_positive, 5), (facts.teacher_negative, 6)):
        assert values.shape == (count,) and values.isnan().all()
    assert isinstance(facts.temperature, torch.Tensor) and facts.temperature.shape == ()


# ---- The temperature


def test_the_gradient_of_a_learned_temperature_is_the_formulas():
    temperature = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    infonce(*make_embeddings().split([ROWS, ROWS, len(NEGATIVE_ROW)]), temperature=temperature).backward()
    objective = Objective(LossConfig(temperature=TAU, temperature_lr=1e-2), True)
    logged = apply(objective, make_embeddings(), make_batch())[1]
    assert logged["temperature_grad"] == pytest.approx(temperature.grad.item(), rel=1e-9)
    fixed = apply(Objective(LossConfig(temperature=TAU), True), make_embeddings(), make_batch())[1]
    assert fixed["temperature_grad"] == 0 and fixed["loss"] == pytest.approx(logged["loss"])


def test_the_learned_temperature_is_adam_on_its_logarithm():
    learned = LearnedTemperature(0.05, lr=0.03)
    log = torch.tensor(math.log(0.05), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([log], lr=0.03)
    for step in range(20):
        factor = 1 - step / 20
        gradient = math.sin(step) + 0.3  # of the loss by the temperature
        log.grad = (gradient * log.exp()).detach()
        adam.param_groups[0]["lr"] = 0.03 * factor
        adam.step()
        if step == 10:  # a state that went through JSON goes on the same
            learned = LearnedTemperature(1.0, 0.03, json.loads(json.dumps(learned.state())))
        learned.update(gradient, factor)
        assert learned.value == pytest.approx(log.exp().item(), rel=1e-9)


def test_the_learned_temperature_stays_above_its_floor():
    learned = LearnedTemperature(0.0011, lr=1.0)
    learned.update(1.0, 1.0)
    assert learned.value == LearnedTemperature.LEAST


# ---- The scope


@pytest.mark.parametrize("name", [*FORMULAS, "function"])
def test_device_negatives_need_no_other_rank_and_count_by_their_share(name):
    """A world of two without a process group: any collective would fail. The other rank has ROWS rows as well."""
    loss_fn = mean_distance if name == "function" else None
    config = {"name": "infonce" if loss_fn else name, "temperature": TAU, "teacher_temperature": 2.0}
    objective = Objective(LossConfig(**config, negatives="device"), True, loss_fn)
    batch = make_batch(global_rows=2 * ROWS)
    gradient, sums = objective(make_embeddings(), batch, [[ROWS, DOCUMENTS]] * 2, World(rank=1, size=2))
    alone, logged = apply(Objective(LossConfig(**config), True, loss_fn), make_embeddings(), make_batch())
    assert sums[0].item() == pytest.approx(logged["loss"] / 2)
    assert torch.allclose(gradient, alone / 2)
    assert objective.collectives == 0


@pytest.mark.parametrize("loss_fn", [None, mean_distance], ids=["infonce", "function"])
def test_a_rank_without_rows_has_no_share(loss_fn):
    """A mean over no rows would be nan."""
    nothing = torch.zeros(0, dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.float64)
    keys = DocumentKeys(*[nothing] * 4)
    batch = Batch([], [], nothing.reshape(0, 1), nothing, keys, none, none, none, ROWS)
    objective = Objective(LossConfig(negatives="device", temperature_lr=1e-2), True, loss_fn)
    gradient, sums = objective(torch.zeros(0, SIZE), batch, [[ROWS, DOCUMENTS], [0, 0]], World(rank=1, size=2))
    assert gradient.shape == (0, SIZE)
    assert sums.tolist() == [0.0] * len(objective.stat_names)


def test_matryoshka_weights_survive_a_run_json():
    """JSON's keys are texts."""
    values = {"output_dir": "o", "model": {"path": "m"}, "data": {"train": "t"}, "loss": {"matryoshka": {8: 0.5}}}
    config = RunConfig.model_validate(values)
    assert RunConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_sources_that_share_a_loss_share_its_learned_temperature():
    from trainer.train.setup import make_temperatures

    shared, own = (Objective(LossConfig(temperature_lr=0.01), normalised=True) for _ in range(2))
    fixed = Objective(LossConfig(), normalised=True)
    made = make_temperatures(
        {"a": shared, "b": fixed, "c": shared, "d": own},
        {"d": {"value": 0.2, "mean": 1.0, "square": 2.0, "updates": 3}},
    )
    assert made.keys() == {"a", "c", "d"}
    assert made["a"] is made["c"] and made["a"] is not made["d"]
    assert (made["a"].value, made["d"].value, made["d"].updates) == (0.05, 0.2, 3)
