"""Every loss against its formula and against sentence-transformers'; masked candidates get exactly no gradient."""

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses as theirs
from torch.autograd import grad, gradcheck

from trainer.config.sections import SIMILARITIES
from trainer.loss.functions import cosent, cosine_mse, kl, margin_mse, shorten
from trainer.loss.info_nce import STATS, info_nce
from trainer.loss.masks import duplicate_mask, row_mask

M, N = 5, 9  # rows and documents of the ragged batch below
TARGET = torch.tensor([0, 1, 2, 3, 8])
DOC_ROW = torch.tensor([0, 1, 2, 3, 0, 0, 3, 1, 4])  # rows 0, 1 and 3 have two, one and one hard negatives
ROWS = torch.arange(M)
EXTRAS = ("query_to_query", "doc_to_query", "doc_to_doc")
JOINT = [(("query_to_doc", *extras), True) for k in range(4) for extras in combinations(EXTRAS, k)]
MODES = [*JOINT, (("query_to_doc",), False), (("query_to_doc", "doc_to_query"), False)]


def unit(rows: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(noise(rows, size, seed=seed), dim=1)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def marks(seed: int = 0, share: float = 0.2) -> torch.Tensor:
    """(M, N) bool: documents that are no negatives; the positives are among them, as with duplicate_mask."""
    drawn = torch.rand(M, N, generator=torch.Generator().manual_seed(seed)) < share
    return drawn.scatter(1, TARGET[:, None], True)


def slices(excluded: torch.Tensor, rows: torch.Tensor = ROWS):
    """The mask argument for `rows` from the (M, N) marks of all rows."""

    def mask(start, stop):
        of_docs = excluded[rows[start:stop]]
        return of_docs, row_mask(of_docs, TARGET)

    return mask


def ragged(queries, documents, temperature, directions, joint, rows=ROWS, excluded=None, **options):
    mask = None if excluded is None else slices(excluded, rows)
    options |= {"directions": directions, "joint": joint, "doc_row": DOC_ROW}
    return info_nce(queries, documents, rows, TARGET[rows], temperature, mask=mask, **options)


def dense(queries, documents, temperature, directions, joint, excluded=None, margin=None, ratio=None):
    """(loss, masked): the definition, with all similarities at once and the gradient left to autograd."""
    positives = documents[TARGET]
    sides = {"query": (queries, queries), "doc": (positives, documents)}
    places = {"query": ROWS, "doc": TARGET}
    excluded = torch.zeros(M, N, dtype=torch.bool) if excluded is None else excluded
    positive = (queries * positives).sum(dim=1, keepdim=True)
    logits, masked = [], 0
    for direction in directions:
        anchor, candidate = direction.split("_to_")
        scores = sides[anchor][0] @ sides[candidate][1].T
        out = excluded if candidate == "doc" else excluded[:, TARGET]
        if margin is not None:
            out = out | (scores > positive - margin)
        if ratio is not None:
            out = out | (scores > torch.where(positive > 0, positive * ratio, positive))
        own = F.one_hot(places[candidate], scores.shape[1]).bool()
        if anchor == candidate:
            own = (ROWS if candidate == "query" else DOC_ROW)[None] == ROWS[:, None]
        masked += int((out & ~own).sum())
        gone = (out | own) if anchor == candidate else (out & ~own)
        logits.append((scores / temperature).masked_fill(gone, -math.inf))
    groups = [torch.cat(logits, dim=1)] if joint else logits
    return sum((group.logsumexp(dim=1) - positive[:, 0] / temperature).sum() for group in groups) / len(groups), masked


@pytest.fixture(params=[1, 2, 100])
def tiles(request, monkeypatch):
    """Rows per tile, about: with every direction a row has 28 similarities."""
    monkeypatch.setattr("trainer.loss.info_nce.TILE_ELEMENTS", request.param * 28)


# ---- InfoNCE


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("directions, joint", MODES)
def test_tiles_pass_gradcheck_and_give_the_dense_gradient(tiles, directions, joint, masked):
    inputs = [
        unit(M).requires_grad_(),
        unit(N, seed=1).requires_grad_(),
        torch.tensor(0.2, dtype=torch.float64, requires_grad=True),
    ]
    options = {"excluded": marks(), "margin": 0.05, "ratio": 0.95} if masked else {}
    out = ragged(*inputs, directions, joint, **options)
    expected, count = dense(*inputs, directions, joint, **options)
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert out.stats[STATS.index("masked_negatives")] == count
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(grad(out.loss, inputs), grad(expected, inputs)))
    # along a random direction: every element was held against the dense gradient above
    assert gradcheck(lambda *x: ragged(*x, directions, joint, **options).loss, inputs, fast_mode=True)


@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.005])
def test_equals_the_formula(temperature):
    queries, documents = unit(3), unit(5, seed=1)
    target = torch.tensor([0, 1, 4])
    got = info_nce(queries, documents, torch.arange(3), target, temperature).loss.item()
    expected = 0.0
    for i, t in enumerate(target.tolist()):
        scores = [float(queries[i] @ d) / temperature for d in documents]
        top = max(scores)
        expected += top + math.log(sum(math.exp(s - top) for s in scores)) - scores[t]
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("directions, joint", MODES)
def test_a_low_temperature_stays_finite_in_single_precision(directions, joint):
    inputs = [unit(M).float().requires_grad_(), unit(N, seed=1).float().requires_grad_()]
    loss = ragged(*inputs, 0.005, directions, joint).loss
    assert all(torch.isfinite(x).all() for x in [loss, *grad(loss, inputs)])
    opposite = ragged(inputs[0], -inputs[0][DOC_ROW], 0.005, directions, joint).loss  # every positive at -1
    assert torch.isfinite(opposite)


@pytest.mark.parametrize("hard_negatives", [0, 2])
@pytest.mark.parametrize("directions, joint", MODES)
def test_equals_sentence_transformers_multiple_negatives_ranking(directions, joint, hard_negatives):
    raw = [noise(6, 8, seed=i).requires_grad_() for i in range(2 + hard_negatives)]
    mode = "joint" if joint else "per_direction"
    loss = theirs.MultipleNegativesRankingLoss(None, scale=20.0, directions=directions, partition_mode=mode)
    expected = loss.compute_loss_from_embeddings(raw, None)
    queries, *documents = [F.normalize(x, dim=1) for x in raw]
    rows = torch.arange(6)
    options = {"directions": directions, "joint": joint, "doc_row": rows.repeat(1 + hard_negatives)}
    ours = info_nce(queries, torch.cat(documents), rows, rows, 0.05, **options).loss / 6
    assert ours.item() == pytest.approx(expected.item(), abs=1e-9)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(grad(ours, raw), grad(expected, raw)))


@pytest.mark.parametrize("directions, joint", MODES)
def test_the_sums_over_disjoint_local_rows_are_those_over_all_rows(directions, joint):
    inputs = [
        unit(M).requires_grad_(),
        unit(N, seed=1).requires_grad_(),
        torch.tensor(0.1, dtype=torch.float64, requires_grad=True),
    ]
    options = {"excluded": marks(), "margin": 0.1}
    whole = ragged(*inputs, directions, joint, **options)
    parts = [
        ragged(*inputs, directions, joint, rows=torch.tensor(r, dtype=torch.int64), **options)
        for r in ([3, 1], [0, 4, 2], [])
    ]
    assert sum(part.loss for part in parts).item() == pytest.approx(whole.loss.item(), abs=1e-12)
    assert torch.allclose(sum(part.stats for part in parts), whole.stats)
    together = [sum(of_parts) for of_parts in zip(*(grad(part.loss, inputs) for part in parts))]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(together, grad(whole.loss, inputs)))


def test_local_queries_are_enough_for_query_to_doc():
    queries, documents = unit(M), unit(N, seed=1)
    rows = torch.tensor([1, 3])
    local = info_nce(queries[rows], documents, torch.arange(2), TARGET[rows], 0.1).loss
    assert local == info_nce(queries, documents, rows, TARGET[rows], 0.1).loss


def test_no_gradient_is_made_where_none_is_asked_for():
    inputs = [unit(M), unit(N, seed=1)]
    loss = ragged(*inputs, 0.1, SIMILARITIES, True).loss
    assert not loss.requires_grad
    (of_documents,) = grad(ragged(inputs[0], inputs[1].requires_grad_(), 0.1, SIMILARITIES, True).loss, inputs[1])
    assert of_documents.abs().min() > 0


@pytest.mark.parametrize(
    "directions, joint",
    [(("doc_to_query",), False), (("query_to_doc", "doc_to_doc"), False), (("query_to_doc", "x"), True)],
)
def test_directions_without_a_meaning_are_refused(directions, joint):
    with pytest.raises(ValueError, match="directions"):
        ragged(unit(M), unit(N), 0.1, directions, joint)


def test_doc_to_doc_asks_for_the_rows_of_the_documents():
    with pytest.raises(ValueError, match="doc_row"):
        info_nce(unit(M), unit(N), ROWS, TARGET, 0.1, directions=SIMILARITIES, joint=True)


# ---- what is no negative


@pytest.mark.parametrize("directions, joint", [(("query_to_doc",), False), (("query_to_doc", "doc_to_doc"), True)])
def test_a_masked_document_gets_exactly_no_gradient_and_an_unmasked_duplicate_does(directions, joint):
    queries, documents = unit(M), unit(N, seed=1).requires_grad_()
    excluded = torch.zeros(M, N, dtype=torch.bool)
    excluded[:, 5] = True
    (masked,) = grad(ragged(queries, documents, 0.1, directions, joint, excluded=excluded).loss, documents)
    (plain,) = grad(ragged(queries, documents, 0.1, directions, joint).loss, documents)
    assert masked[5].abs().max() == 0
    assert plain[5].abs().max() > 0


def test_a_masked_row_gets_no_gradient_as_a_candidate():
    queries, documents = unit(M).requires_grad_(), unit(N, seed=1)
    directions, rows = ("query_to_doc", "query_to_query", "doc_to_query"), torch.tensor([0, 1])
    excluded = torch.zeros(M, N, dtype=torch.bool)
    excluded[:, TARGET[4]] = True
    (masked,) = grad(ragged(queries, documents, 0.1, directions, True, rows, excluded).loss, queries)
    (plain,) = grad(ragged(queries, documents, 0.1, directions, True, rows).loss, queries)
    assert masked[4].abs().max() == 0
    assert plain[4].abs().max() > 0


@pytest.mark.parametrize("options", [{"excluded": torch.ones(M, N, dtype=torch.bool)}, {"margin": 3.0}])
def test_a_positive_is_never_masked(options):
    for directions in (("query_to_doc",), ("query_to_doc", "query_to_query", "doc_to_doc")):  # only the target is left
        assert ragged(unit(M), unit(N, seed=1), 0.1, directions, True, **options).loss == pytest.approx(0, abs=1e-12)
    both = ragged(unit(M), unit(N, seed=1), 0.1, ("query_to_doc", "doc_to_query"), True, **options)
    assert both.loss == pytest.approx(M * math.log(2))  # the pair stands in both directions
    assert both.stats[STATS.index("masked_negatives")] == M * (N - 1) + M * (M - 1)


def test_statistics_count_negatives_and_masked():
    queries, documents = unit(M), unit(N, seed=1)
    excluded = marks(share=0.5)
    scores = queries @ documents.T
    positive = scores.gather(1, TARGET[:, None])
    marked = excluded.scatter(1, TARGET[:, None], False)
    negative = ~excluded
    best = (scores.masked_fill(marked, -2.0).amax(dim=1) == positive[:, 0]).sum()
    expected = [positive.sum(), scores[negative].sum(), negative.sum(), marked.sum(), best]
    stats = ragged(queries, documents, 0.1, ("query_to_doc",), False, excluded=excluded).stats
    assert stats.tolist() == pytest.approx([float(x) for x in expected], abs=1e-5)


def test_margin_and_ratio_mask_the_candidates_that_score_too_close_to_the_positive():
    def line(*cosines):  # unit vectors at these cosines to (1, 0)
        return torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines], dtype=torch.float64)

    def masked(documents, **options):
        out = info_nce(line(1.0), documents, torch.tensor([0]), torch.tensor([0]), 0.1, **options)
        return int(out.stats[STATS.index("masked_negatives")]), out.loss.item()

    documents = line(0.8, 0.9, 0.77, 0.72, 0.1)  # the positive at 0.8
    assert [masked(documents, margin=m)[0] for m in (0.0, 0.05, 0.1)] == [1, 2, 3]
    assert [masked(documents, margin=m)[0] for m in (-0.05, -0.1001, -0.2)] == [1, 0, 0]  # up to so much above it
    assert masked(documents, margin=-0.2) == masked(documents)
    assert [masked(documents, ratio=r)[0] for r in (1.0, 0.95, 0.85)] == [1, 2, 3]
    assert masked(documents, margin=0.05)[1] == masked(line(0.8, 0.72, 0.1))[1]
    assert masked(documents, margin=0.0, ratio=0.95) == masked(documents, margin=0.05)  # either is enough
    negative = line(-0.5, -0.45, -0.51, -0.9)  # a share of -0.5 would be above it: compared with -0.5 itself
    assert masked(negative, ratio=0.5)[0] == 1
    assert masked(negative, margin=0.05)[0] == 2


@pytest.mark.parametrize("directions, joint", MODES)
def test_a_negative_margin_gives_the_dense_gradient_and_spares_the_rest(directions, joint):
    """Qwen3-Embedding's rule: what lies more than 0.1 above the positive is masked."""
    inputs = [unit(M).requires_grad_(), unit(N, seed=1).requires_grad_()]
    out = ragged(*inputs, 0.2, directions, joint, margin=-0.1)
    expected, count = dense(*inputs, 0.2, directions, joint, margin=-0.1)
    other, fewer = dense(*inputs, 0.2, directions, joint, margin=0.1)
    assert out.stats[STATS.index("masked_negatives")] == count < fewer
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(grad(out.loss, inputs), grad(expected, inputs)))
    assert abs(out.loss - other) > 1e-3, "the sign matters"


def test_duplicates_are_found_by_text_by_document_id_and_by_query():
    #              text  doc  query        row 0 has positives with text keys 1 and 9 and document key 50
    doc_keys = torch.tensor([[1, 50, 100], [2, 60, 200], [9, -1, -1], [7, 50, -1], [8, -1, 100], [5, -1, -1]])
    row_keys = torch.tensor([[1, 9, 50], [2, 60, -2]])
    mask = duplicate_mask(row_keys, torch.tensor([100, 200]), *doc_keys.unbind(dim=1))
    assert mask.tolist() == [[True, False, True, True, True, False], [False, True, False, False, False, False]]
    assert row_mask(mask, torch.tensor([0, 1, 3])).tolist() == [[True, False, True], [False, True, False]]


def test_duplicates_equal_the_definition_for_many_rows():
    draw = torch.Generator().manual_seed(0)
    row_keys = torch.randint(0, 40, (20, 3), generator=draw).masked_fill(torch.rand(20, 3, generator=draw) < 0.3, -2)
    row_query = torch.randint(0, 40, (20,), generator=draw)
    doc_keys = torch.randint(0, 80, (60, 3), generator=draw).masked_fill(torch.rand(60, 3, generator=draw) < 0.3, -1)
    expected = [
        [text in keys or doc_id in keys or of_query == query for text, doc_id, of_query in doc_keys.tolist()]
        for keys, query in zip(row_keys.tolist(), row_query.tolist())
    ]
    assert duplicate_mask(row_keys, row_query, *doc_keys.unbind(dim=1)).tolist() == expected


# ---- scored pairs


def test_cosine_mse_equals_sentence_transformers():
    pair = [noise(6, 8, seed=i).requires_grad_() for i in range(2)]
    scores = torch.rand(6, generator=torch.Generator().manual_seed(0))
    expected = theirs.CosineSimilarityLoss(None).compute_loss_from_embeddings(pair, scores)
    ours = cosine_mse(*pair, scores) / 6
    assert ours.item() == pytest.approx(expected.item(), abs=1e-9)
    assert gradcheck(lambda a, b: cosine_mse(a, b, scores), pair)


@pytest.mark.parametrize("scores", [[0.1, 0.9, 0.5, 0.5, 0.0, 0.5], [0.0, 1.0, 1.0, 0.0, 1.0, 0.0], [3, 1, 2, 0, 5, 4]])
def test_cosent_equals_its_formula_and_sentence_transformers(scores):
    pair, scores = [noise(6, 8, seed=i).requires_grad_() for i in range(2)], torch.tensor(scores)
    expected = theirs.CoSENTLoss(None, scale=20.0).compute_loss_from_embeddings(pair, scores)
    cosines = F.cosine_similarity(*pair)
    pairs = ((cosines[:, None] - cosines[None]) / 0.05)[scores[:, None] < scores[None]]
    ours = cosent(*pair, scores, 0.05)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-9)
    assert ours.item() == pytest.approx((1 + pairs.exp().sum()).log().item(), abs=1e-9)
    assert gradcheck(lambda a, b: cosent(a, b, scores), pair)


def test_cosent_of_equal_scores_is_zero_with_zero_gradient():
    pair = [noise(6, 8, seed=i).requires_grad_() for i in range(2)]
    loss = cosent(*pair, torch.full((6,), 0.3))
    assert loss == 0
    assert all(x.abs().max() == 0 for x in grad(loss, pair))


@pytest.mark.parametrize("temperature", [0.05, 1e-4])
def test_cosent_is_finite_where_every_pair_is_at_its_worst(temperature):
    queries = unit(4).float().repeat(2, 1).requires_grad_()
    positives = (queries * torch.tensor([1.0] * 4 + [-1.0] * 4)[:, None]).detach().requires_grad_()
    for scores in (torch.tensor([0.0] * 4 + [1.0] * 4), torch.tensor([1.0] * 4 + [0.0] * 4)):
        loss = cosent(queries, positives, scores, temperature)
        assert all(torch.isfinite(x).all() for x in [loss, *grad(loss, [queries, positives])])


# ---- a teacher's scores

TEACHER = (noise(M, seed=5), noise(4, seed=6))  # of the positives and of the hard negatives
NEGATIVE_ROW, NEGATIVE_INDEX = torch.tensor([0, 3, 0, 1]), torch.tensor([4, 6, 5, 7])
HARD = (TARGET, NEGATIVE_ROW, NEGATIVE_INDEX, *TEACHER)


def rectangle():
    """Three rows with two hard negatives each, as columns for sentence-transformers and as our ragged arguments."""
    columns = [noise(3, 8, seed=i).requires_grad_() for i in range(4)]
    scores = noise(3, 3, seed=9)
    rows = torch.arange(3)
    hard = (rows, rows.repeat(2), torch.arange(3, 9), scores[:, 0], scores[:, 1:].T.flatten())
    return columns, scores, (columns[0], torch.cat(columns[1:]), *hard)


def test_kl_equals_sentence_transformers():
    columns, scores, arguments = rectangle()
    loss = theirs.DistillKLDivLoss(None, student_temperature=0.7, teacher_temperature=1.3)
    expected = loss.compute_loss_from_embeddings(columns, scores)
    ours = kl(*arguments, 0.7, 1.3) / 3 * 0.7**2  # theirs carries the student temperature squared
    assert ours.item() == pytest.approx(expected.item(), abs=1e-9)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(grad(ours, columns), grad(expected, columns)))


def test_margin_mse_equals_sentence_transformers():
    columns, scores, arguments = rectangle()
    expected = theirs.MarginMSELoss(None).compute_loss_from_embeddings(columns, scores)
    ours = margin_mse(*arguments) / 6
    assert ours.item() == pytest.approx(expected.item(), abs=1e-9)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(grad(ours, columns), grad(expected, columns)))


def test_kl_of_ragged_rows_equals_its_formula():
    queries, documents = unit(M).requires_grad_(), unit(N, seed=1).requires_grad_()
    temperature = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    expected = 0.0
    for row in range(M):
        negatives = [k for k, of_row in enumerate(NEGATIVE_ROW.tolist()) if of_row == row]
        own = [int(TARGET[row]), *NEGATIVE_INDEX[negatives].tolist()]
        scores = torch.cat([TEACHER[0][row : row + 1], TEACHER[1][negatives]])
        teacher, student = torch.softmax(scores / 2.0, 0), torch.softmax(documents[own] @ queries[row] / temperature, 0)
        expected += (teacher * (teacher / student).log()).sum().item()
    assert kl(queries, documents, *HARD, temperature, 2.0).item() == pytest.approx(expected, abs=1e-9)
    assert gradcheck(lambda q, d, t: kl(q, d, *HARD, t, 2.0), [queries, documents, temperature])
    assert gradcheck(lambda q, d: margin_mse(q, d, *HARD), [queries, documents])


@pytest.mark.parametrize("loss", [lambda *x: kl(*x, 0.05), margin_mse])
def test_rows_without_hard_negatives_teach_nothing(loss):
    queries, documents = unit(M).requires_grad_(), unit(N, seed=1).requires_grad_()
    nothing = torch.zeros(0, dtype=torch.int64)
    out = loss(queries, documents, TARGET, nothing, nothing, TEACHER[0], TEACHER[1][:0])
    assert out == 0
    assert all(x.abs().max() == 0 for x in grad(out, [queries, documents]))


def test_kl_is_finite_at_extreme_scores():
    queries, documents = unit(M).float().requires_grad_(), unit(N, seed=1).float().requires_grad_()
    loss = kl(queries, documents, *HARD[:3], 1e4 * TEACHER[0].float(), 1e4 * TEACHER[1].float(), 0.001)
    assert all(torch.isfinite(x).all() for x in [loss, *grad(loss, [queries, documents])])


# ---- Matryoshka


class Given(torch.nn.Module):
    """A model whose embeddings are its input."""

    def forward(self, features):
        return {"sentence_embedding": features["embedding"]}

    def get_embedding_dimension(self):
        return 8


def test_weighted_losses_of_shortened_embeddings_equal_sentence_transformers_matryoshka():
    columns = [unit(6, seed=i).requires_grad_() for i in range(3)]
    inner = theirs.MultipleNegativesRankingLoss(Given(), scale=20.0)
    loss = theirs.MatryoshkaLoss(inner.model, inner, [8, 4, 2], [1.0, 0.5, 0.25])
    expected = loss([{"embedding": x} for x in columns], None)
    ours, rows = 0.0, torch.arange(6)
    for dim, weight in ((8, 1.0), (4, 0.5), (2, 0.25)):
        queries, *documents = [shorten(x, dim, normalise=True) for x in columns]
        ours += weight * info_nce(queries, torch.cat(documents), rows, rows, 0.05).loss / 6
    assert ours.item() == pytest.approx(expected.item(), abs=1e-9)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(grad(ours, columns), grad(expected, columns)))


def test_shorten_cuts_and_normalises_only_if_asked():
    embeddings = unit(3)
    assert torch.equal(shorten(embeddings, 4, normalise=False), embeddings[:, :4])
    assert torch.allclose(shorten(embeddings, 4, normalise=True).norm(dim=1), torch.ones(3, dtype=torch.float64))
