"""A guide masks what it finds too similar: the dense definition, sentence-transformers' GIST losses, exact zeros."""

import math

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses as theirs
from torch.autograd import grad, gradcheck

from tests import tiny
from tests.unit.trainer.loss.test_info_nce import DOC_ROW, MODES, ROWS, TARGET, M, N, marks, noise, ragged, unit
from tests.unit.trainer.loss.test_info_nce import tiles as tiles
from tests.unit.trainer.loss.test_objective import DOCUMENTS, NEGATIVE_ROW, TAU, apply, make_batch, make_embeddings
from trainer.config.sections import LossConfig
from trainer.loss.guide import GuideVectors
from trainer.loss.info_nce import STATS, info_nce
from trainer.loss.objective import Objective

SIZE = 6  # of the guide's embeddings
RULES = [
    {"margin": 0.0},
    {"margin": 0.1},
    {"margin": -0.1},
    {"relative_margin": 0.2},
    {"margin": 0.3, "relative_margin": 0.1},
]


def guide_of(**rule) -> GuideVectors:
    return GuideVectors(unit(M, SIZE, seed=2), unit(N, SIZE, seed=3), **rule)


def limit_of(positive, margin=0.0, relative_margin=None):
    limits = [positive - margin]
    limits += [] if relative_margin is None else [positive - relative_margin * abs(positive)]
    return min(limits)


def dense(queries, documents, temperature, directions, joint, guide, rule, excluded):
    """(loss, masked): row by row, the gradient left to autograd."""
    groups = [directions] if joint else [(one,) for one in directions]
    total, masked = 0.0, 0
    for group in groups:
        for i in range(M):
            rivals = []
            limit = limit_of(float(guide.queries[i] @ guide.documents[TARGET[i]]), **rule)
            for direction in group:
                anchor, candidate = direction.split("_to_")
                place = i if anchor == "query" else int(TARGET[i])
                one, other = (queries, guide.queries) if anchor == "query" else (documents, guide.documents)
                table, guided = (queries, guide.queries) if candidate == "query" else (documents, guide.documents)
                owner = ROWS if candidate == "query" else DOC_ROW
                own = i if candidate == "query" else int(TARGET[i])
                for j in range(len(table)):
                    if anchor == candidate and owner[j] == i:
                        continue
                    is_pair = anchor != candidate and j == own
                    marked = excluded[i, j] if candidate == "doc" else excluded[i, TARGET[j]]
                    if not is_pair and (marked or other[place] @ guided[j] > limit):
                        masked += 1
                        continue
                    rivals.append(one[place] @ table[j] / temperature)
            positive = queries[i] @ documents[TARGET[i]] / temperature
            total = total + torch.logsumexp(torch.stack(rivals), 0) - positive
    return total / len(groups), masked


@pytest.mark.parametrize("rule", RULES[::2], ids=str)
@pytest.mark.parametrize("directions, joint", MODES)
def test_every_direction_is_the_dense_definition(tiles, directions, joint, rule):
    inputs = [unit(M).requires_grad_(), unit(N, seed=1).requires_grad_()]
    guide, excluded = guide_of(**rule), marks(share=0.1)
    out = ragged(*inputs, 0.2, directions, joint, excluded=excluded, guide=guide)
    expected, masked = dense(*inputs, 0.2, directions, joint, guide, rule, excluded)
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-11)
    assert out.stats[STATS.index("masked_negatives")] == masked > 0
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(grad(out.loss, inputs), grad(expected, inputs)))
    plain = ragged(*inputs, 0.2, directions, joint, excluded=excluded)
    assert abs(plain.loss - out.loss) > 1e-3, "the guide matters"


def test_it_passes_gradcheck_beside_the_other_masks():
    inputs = [unit(M).requires_grad_(), unit(N, seed=1).requires_grad_()]
    options = {"excluded": marks(), "margin": 0.1, "ratio": 0.9, "guide": guide_of(margin=0.05)}
    assert gradcheck(lambda *x: ragged(*x, 0.2, *MODES[7], **options).loss, inputs, fast_mode=True)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_masked_candidates_get_exactly_no_gradient(rule):
    queries, documents, guide = unit(M), unit(N, seed=1).requires_grad_(), guide_of(**rule)
    (found,) = grad(
        ragged(queries, documents, 0.1, ("query_to_doc",), False, torch.tensor([1]), guide=guide).loss, documents
    )
    cosines = guide.documents @ guide.queries[1]
    gone = cosines > limit_of(float(cosines[TARGET[1]]), **rule)
    gone[TARGET[1]] = False
    assert gone.any() and found[gone].abs().max() == 0
    assert (found[~gone].abs().amax(dim=1) > 0).all()


# ---- sentence-transformers


class Given(torch.nn.Module):
    """A model whose embeddings are its input."""

    max_seq_length = 8

    def __init__(self, key: str, tokenizer):
        super().__init__()
        self.key, self.tokenizer = key, tokenizer

    def __getitem__(self, _):
        return self

    def forward(self, features):
        return {"sentence_embedding": features[self.key]}


GIST = [  # (directions, contrast_anchors, contrast_positives, hard negatives of a row)
    (("query_to_doc",), False, False, 0),
    (("query_to_doc",), False, False, 1),
    (("query_to_doc", "query_to_query"), True, False, 1),
    (("query_to_doc", "query_to_query", "doc_to_doc"), True, True, 0),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    "strategy, margin", [("absolute", 0.0), ("absolute", 0.1), ("absolute", -0.1), ("relative", 0.1)]
)
@pytest.mark.parametrize("directions, anchors, positives, hard", GIST)
def test_equals_sentence_transformers_gist(tokenizer, directions, anchors, positives, hard, strategy, margin):
    raw = [noise(7, 8, seed=i).requires_grad_() for i in range(2 + hard)]
    guided = [noise(7, SIZE, seed=10 + i) + 0.3 * noise(7, SIZE, seed=10) for i in range(2 + hard)]
    model, guide = Given("embedding", tokenizer), Given("guide", tokenizer)
    options = {"temperature": 0.05, "margin_strategy": strategy, "margin": margin}
    options |= {"contrast_anchors": anchors, "contrast_positives": positives}
    plain = theirs.GISTEmbedLoss(model, guide, **options)
    features = [{"embedding": x, "guide": g} for x, g in zip(raw, guided)]
    expected = {"GIST": plain(features, None)}
    cached = theirs.CachedGISTEmbedLoss(model, guide, mini_batch_size=3, **options)
    split = [[list(x.split(3)) for x in xs] for xs in (raw, guided)]
    expected["cached"] = cached.calculate_loss(*split)

    queries, *documents = [F.normalize(x, dim=1) for x in raw]
    guide_queries, *guide_documents = [F.normalize(x, dim=1) for x in guided]
    rule = {"margin" if strategy == "absolute" else "relative_margin": margin}
    rows, vectors = torch.arange(7), GuideVectors(guide_queries, torch.cat(guide_documents), **rule)
    options = {"directions": directions, "joint": True, "doc_row": rows.repeat(1 + hard), "guide": vectors}
    out = info_nce(queries, torch.cat(documents), rows, rows, 0.05, **options)
    assert out.stats[STATS.index("masked_negatives")] > 0
    for name, loss in expected.items():
        assert out.loss.item() / 7 == pytest.approx(loss.item(), abs=1e-6), name
        pairs = zip(grad(out.loss / 7, raw, retain_graph=True), grad(loss, raw))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs), name


# ---- the objective


def planted(rows: int, texts: int) -> torch.Tensor:
    return unit(rows + texts, SIZE, seed=5)


def guided_objective(vectors: torch.Tensor, **loss) -> Objective:
    """Its guide knows the vector of the text with token n: the n-th."""
    config = LossConfig(temperature=TAU, guide={"model": "m", **loss.pop("guide", {})}, **loss)
    return Objective(config, True, guide=lambda tokens: vectors[[text[0] for text in tokens]])


@pytest.mark.parametrize("negatives", ["batch", "device", "own"])
@pytest.mark.parametrize("rule", RULES[:4], ids=str)
def test_the_objective_masks_by_the_guides_embeddings_of_the_batch(negatives, rule):
    rows, batch = 5, make_batch()
    batch.guide_tokens = [[i] for i in range(rows + DOCUMENTS)]
    vectors = planted(rows, DOCUMENTS)
    objective = guided_objective(vectors, negatives=negatives, guide=rule)
    leaf = make_embeddings().requires_grad_()
    queries, documents = leaf[:rows], leaf[rows:]
    owner, expected, masked = [*range(rows), *NEGATIVE_ROW], 0.0, 0
    for i in range(rows):
        cosines = vectors[rows:] @ vectors[i]
        allowed = [j for j in range(DOCUMENTS) if negatives != "own" or owner[j] == i]
        left = [j for j in allowed if j == i or cosines[j] <= limit_of(float(cosines[i]), **rule)]
        masked += len(allowed) - len(left)
        logits = documents[left] @ queries[i] / TAU
        expected = expected + (logits.logsumexp(0) - documents[i] @ queries[i] / TAU) / rows
    guide_vectors = objective.guide_vectors(batch)
    gradient, logged = apply(objective, leaf.detach(), batch, guide_vectors)
    (by_autograd,) = grad(expected, leaf)
    assert logged["loss"] == pytest.approx(expected.item(), rel=1e-9)
    assert torch.allclose(gradient, by_autograd, atol=1e-10)
    assert logged["masked_negatives"] == masked > 0
    assert objective.collectives == {"batch": 4, "device": 0, "own": 0}[negatives]


def test_of_a_mix_only_infonce_has_the_guide():
    batch, vectors = make_batch(), planted(5, DOCUMENTS)
    batch.guide_tokens = [[i] for i in range(5 + DOCUMENTS)]
    mixed = guided_objective(vectors, name={"infonce": 2.0, "cosent": 3.0})
    assert mixed.collectives == 5
    alone = guided_objective(vectors)
    both = [apply(one, make_embeddings(), batch, one.guide_vectors(batch))[0] for one in (mixed, alone)]
    cosent = apply(Objective(LossConfig(name="cosent", temperature=TAU), True), make_embeddings(), batch)[0]
    assert torch.allclose(both[0], 2 * both[1] + 3 * cosent, atol=1e-9)
    unguided = Objective(LossConfig(name="cosent", guide={"model": "m"}), True)
    assert unguided.guide_vectors(batch) is None and unguided.collectives == 4
    assert math.isfinite(both[0].sum())
