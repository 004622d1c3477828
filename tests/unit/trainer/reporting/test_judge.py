"""The verdict of a run from the values of its queries: closed forms, and rules that hold for any values."""

import json
import math
from functools import partial
from statistics import NormalDist, fmean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation.compare import paired_bootstrap
from trainer.reporting import judge as judging
from trainer.reporting.judge import POWER, Blend, Case, Model, compare_queries, judge
from trainer.run_dir.queries import FOLDER, Halves, write_values
from trainer.run_dir.verdict import describe, doubt

QUERIES = [f"q{i}" for i in range(40)]
HALVES = Halves(tuple(QUERIES[:20]), tuple(QUERIES[20:]))
ALL = Halves(tuple(QUERIES), tuple(QUERIES))
rng = np.random.default_rng(5)
BASE = dict(zip(QUERIES, rng.uniform(0.3, 0.7, 40).tolist()))


def moved(by: float, noise: float = 0.02, only=QUERIES) -> dict[str, float]:
    """BASE with values of the queries `only` that are higher by `by` in the mean of any two neighbours."""
    steps = (by - noise, by + noise)
    return {q: value + (steps[i % 2] if q in only else 0.0) for i, (q, value) in enumerate(BASE.items())}


@pytest.fixture(scope="module", autouse=True)
def fewer_samples():
    """The rules hold for any interval."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "paired_bootstrap", partial(paired_bootstrap, samples=300))
        yield


@pytest.fixture
def judged(tmp_path):
    """Judges a run whose best model was measured after step 10, and its last after step 20."""

    def of(best, last=None, halves=HALVES, metric="nDCG@10", general=None, base=BASE, **more):
        source = "faq" if metric.startswith("faq/") else ""
        write_values(tmp_path, 0, {source: base} | ({"general": general[0]} if general else {}))
        write_values(tmp_path, 10, {source: best} | ({"general": general[1]} if general else {}))
        if last:
            write_values(tmp_path, 20, {source: last})
        end = Model(20, 2, True) if last else Model(10, 1, True)
        facts = judge(tmp_path, Case(metric, "set", halves, Model(10, 1, more.pop("kept", True)), end, **more))
        json.dumps(facts)
        return facts

    return of


def test_power_is_that_of_the_normal_approximation():
    assert pytest.approx(NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8), abs=0.005) == POWER
    after = moved(0.05)
    found = compare_queries(BASE, after, QUERIES)
    differences = [after[query] - BASE[query] for query in QUERIES]
    assert found["detectable"] == pytest.approx(POWER * stdev(differences) / math.sqrt(40))
    assert found["difference"] == pytest.approx(fmean(differences)) and found["queries"] == 40
    low, high = found["interval_95"]
    width = 2 * 1.96 * stdev(differences) / math.sqrt(40)
    assert low < found["difference"] < high and high - low == pytest.approx(width, rel=0.2)


def test_a_difference_of_the_detectable_size_is_found_in_four_of_five_draws():
    shown, noise, draws = 0, 0.2, 100
    random = np.random.default_rng(3)
    size = POWER * noise / math.sqrt(60)
    for _ in range(draws):
        after = {f"q{i}": float(value) for i, value in enumerate(random.normal(size, noise, 60))}
        shown += compare_queries(dict.fromkeys(after, 0.0), after, [*after])["verdict"] == "better"
    assert 0.68 < shown / draws < 0.92


@pytest.mark.parametrize(("count", "verdict"), [(5, "no difference"), (6, "better")])
def test_five_queries_are_no_sign(count, verdict):
    after = dict.fromkeys(QUERIES[:count], 0.9)
    found = compare_queries(dict.fromkeys(after, 0.1), after, [*after])
    assert found["verdict"] == verdict and (found["detectable"] is None) == (count == 5)


def test_better_no_difference_and_worse(judged):
    better = judged(moved(0.05))
    assert better["verdict"] == "better" and better["final"] == {"model": "trained", "step": 10, "epoch": 1}
    assert "last" not in better and better["best"]["queries"] == 20 == better["choosing_queries"]
    same = judged(moved(0.001, 0.1))
    assert same["verdict"] == "no difference" and same["final"]["model"] == "trained"
    lower = judged(moved(-0.001, 0.1))
    assert lower["verdict"] == "no difference" and lower["final"] == {"model": "base", "step": 0, "epoch": 0}
    worse = judged(moved(-0.05), last=moved(-0.2))
    assert worse["verdict"] == worse["last"]["verdict"] == "worse" and worse["final"]["model"] == "base"
    assert worse["last"]["step"] == 20 and worse["last"]["difference"] == pytest.approx(-0.2)


def test_the_queries_that_chose_do_not_report(judged):
    """And those that report do not choose, but for a loss beyond noise."""
    lucky = judged(moved(0.1, 0.001, only=HALVES.choosing))
    assert lucky["verdict"] == "no difference" and lucky["best"]["difference"] == 0 and not lucky["same_queries"]
    unlucky = judged(moved(0.1, 0.001, only=HALVES.choosing) | {q: BASE[q] - 0.02 for q in HALVES.reporting})
    assert unlucky["verdict"] == "worse" and unlucky["final"]["model"] == "base"
    contrary = judged(moved(-0.1, 0.001, only=HALVES.choosing) | {q: BASE[q] + 0.05 for q in HALVES.reporting})
    assert contrary["final"]["model"] == "base" and contrary["verdict"] == "no difference"


def test_an_equal_model_is_the_tuned_one(judged):
    facts = judged(BASE, halves=ALL)
    assert facts["verdict"] == "no difference" and facts["final"]["model"] == "trained" and facts["same_queries"]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=40, max_size=40), st.booleans())
def test_final_is_never_below_the_base_beyond_the_interval(tmp_path_factory, pairs, same):
    run = tmp_path_factory.mktemp("run")
    base, best = ({query: pair[side] for query, pair in zip(QUERIES, pairs)} for side in (0, 1))
    write_values(run, 0, {"": base}), write_values(run, 10, {"": best})
    halves = ALL if same else HALVES
    facts = judge(run, Case("nDCG@10", "set", halves, Model(10, 1, True), Model(10, 1, True)))
    if facts["final"]["model"] == "trained":
        for queries in (QUERIES, halves.reporting):
            assert compare_queries(base, best, queries)["verdict"] != "worse"
        assert math.fsum(best[q] for q in halves.choosing) >= math.fsum(base[q] for q in halves.choosing)
    else:
        assert facts["verdict"] != "better"


def test_by_the_train_loss_no_query_chose_and_all_report(judged):
    facts = judged(moved(-0.001, 0.1), metric="train_loss")
    assert facts["best"]["queries"] == 40 and facts["metric"] == "nDCG@10" and facts["choosing_queries"] == 0
    assert facts["final"]["model"] == "trained", "lower, but not beyond noise: the loss has chosen it"
    assert judged(moved(-0.05), metric="train_loss")["final"]["model"] == "base"


def test_a_source_and_the_general_set(judged):
    general = dict.fromkeys(QUERIES, 0.8), {query: 0.7 - i / 1e3 for i, query in enumerate(QUERIES)}
    facts = judged(moved(0.05), metric="faq/MAP", general=general)
    assert facts["metric"] == "faq/MAP" and facts["verdict"] == "better"
    assert facts["general"]["verdict"] == "worse" and facts["general"]["queries"] == 40
    assert "on data.general: 0.8000 -> 0.6805 (-0.1195, " in (line := describe(facts)[-1])
    assert line.endswith("forgotten beyond noise")


def test_what_was_not_measured_has_no_verdict(judged, tmp_path):
    facts = judged(moved(-0.3), unmeasured="data.eval is off")
    assert facts["verdict"] == "not measured" and facts["final"]["model"] == "trained"
    assert describe(facts) == ["verdict: not measured: data.eval is off; final/ is the model of epoch 1 (step 10)"]
    (tmp_path / FOLDER / "step-0.json").unlink()
    for kept, model in ((True, "trained"), (False, "base")):  # below the base, nothing was kept
        facts = judge(tmp_path, Case("nDCG@10", "set", HALVES, Model(10, 1, kept), Model(20, 2, True)))
        assert facts["verdict"] == "not measured" and "queries/" in facts["why"] and facts["final"]["model"] == model


# --- what is said ---


def test_the_first_line_says_what_matters(judged):
    facts = judged(moved(-0.05), last=moved(-0.2), halves=ALL)
    first, power, same, last = describe(facts)
    low, high = facts["best"]["interval_95"]
    base, tuned = (fmean(values.values()) for values in (BASE, moved(-0.05)))
    assert first == (
        f"verdict: worse than the model before training: nDCG@10 {base:.4f} -> {tuned:.4f} ({tuned - base:+.4f}, "
        f"95 % interval {low:+.4f} to {high:+.4f}) on 40 queries of set; final/ is the model before training"
    )
    assert power.startswith(f"40 queries show a difference of {facts['best']['detectable']:.4f} or more")
    assert "flatters" in same and last.startswith("the last model (step 20): worse than the model before training: ")


def test_values_that_did_not_change_state_no_smallest_difference(judged):
    facts = judged(BASE)
    assert facts["best"]["detectable"] == 0 and "0.0000" not in describe(facts)[1]
    assert describe(facts)[1].startswith("the metric changed by the same amount for each of the 20 queries")


@pytest.mark.parametrize("by", [-0.05, 0.0, 0.05])
def test_only_a_model_that_is_better_goes_without_a_line(judged, tmp_path, by):
    facts = judged(moved(by, 0.001))
    final = tmp_path / "run" / "final"
    final.mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    (final / "verdict.json").write_text(json.dumps(facts))
    lines = [doubt(tmp_path / "run"), doubt(final), doubt(str(final))]
    assert all((line is None) == (by > 0) for line in lines)
    assert by > 0 or lines[1] == f"{final}: {describe(facts)[0]}"


def test_what_has_no_verdict_goes_without_a_line_and_a_broken_one_is_named(tmp_path):
    assert doubt(tmp_path) is None and doubt("a/hub-id") is None
    for text in ("{", '{"verdict": "sideways"}', "[]"):
        (tmp_path / "verdict.json").write_text(text)
        assert "cannot be read" in doubt(tmp_path)


def blended(share: float, values: dict, general: dict | None = None, queries=()) -> dict:
    return {"blend": Blend(share, {"": values} | ({"general": general} if general else {}), queries)}


def test_after_a_blend_the_verdict_is_of_the_blended_model(judged):
    facts = judged(moved(0.2), **blended(0.4, moved(0.1)))
    assert facts["final"] == {"model": "blended", "share": 0.4, "step": 10, "epoch": 1}
    assert facts["best"]["difference"] == pytest.approx(0.1) and facts["best"]["queries"] == 20
    assert facts["blend"]["share"] == 0.4 and facts["blend"]["tuned"]["difference"] == pytest.approx(0.2)
    lines = describe(facts)
    assert "share 0.4 of the model of epoch 1 (step 10), the rest of the model before training" in lines[0]
    assert any("share 0.4 was chosen" in line and "share 1: better" in line for line in lines)


def test_a_blend_that_chose_an_end_is_that_end(judged):
    assert judged(moved(0.2), **blended(1.0, moved(0.2)))["final"] == {"model": "trained", "step": 10, "epoch": 1}
    facts = judged(moved(0.2), **blended(0.0, BASE))
    assert facts["final"] == {"model": "base", "step": 0, "epoch": 0} and facts["verdict"] == "no difference"


def test_a_blend_that_is_worse_beyond_noise_gives_way_to_the_model_before_training(judged):
    spoilt = moved(-0.2, only=HALVES.reporting)
    facts = judged(moved(0.2), **blended(0.4, spoilt))
    assert facts["verdict"] == "worse" and facts["final"]["model"] == "base"
    (line,) = [line for line in describe(facts) if line.startswith("the blend")]
    assert "share 0.4 did best on the queries that choose, but was not written" in line and "was chosen" not in line
    (line,) = [line for line in describe(judged(moved(0.2), **blended(0.0, BASE))) if line.startswith("the blend")]
    assert "share 0 was chosen" in line


def test_after_a_blend_only_the_queries_that_bounded_nothing_report_on_the_general_set(judged):
    general = BASE, moved(-0.2)
    facts = judged(moved(0.2), general=general, **blended(0.4, moved(0.1), moved(-0.05), QUERIES[30:]))
    assert facts["general"]["queries"] == 10 and facts["general"]["difference"] == pytest.approx(-0.05)
    assert judged(moved(0.2), general=general)["general"]["queries"] == 40
