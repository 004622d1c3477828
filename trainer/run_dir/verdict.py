"""The verdict of a run: is its model better than the one it began with. Its record, and its description.

OUT/verdict.json, and a copy in final/, which an export takes along. reporting/judge.py makes it. Never imports torch.
"""

from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.texts.tokenizer_rules import read_object

VERDICT = "verdict.json"
BLEND = "blend.json"  # beside it in a folder whose share was chosen: the table of all shares, see trainer/blending
BETTER, NO_DIFFERENCE, WORSE, NOT_MEASURED = "better", "no difference", "worse", "not measured"
BASE, TRAINED, BLENDED = "base", "trained", "blended"  # the model in final/
HEADS = {
    BETTER: "better than the model before training",
    NO_DIFFERENCE: "no difference from the model before training that this set can show",
    WORSE: "worse than the model before training",
    NOT_MEASURED: "not measured",
}


def read_verdict(folder: Path) -> dict:
    """Returns the verdict of a run's output_dir, its final/, or an export of it; empty if there is none."""
    return read_object(folder / VERDICT)


def doubt(model: str | Path) -> str | None:
    """Returns a line about a run, its final/ or an export, whose verdict is not "better"; None for all others."""
    folder = Path(model)
    try:
        facts = _of_model(folder)
        return None if facts.get("verdict", BETTER) == BETTER else f"{model}: {describe(facts)[0]}"
    except (BadInput, OSError, KeyError, TypeError, ValueError) as error:
        return f"{folder / VERDICT}: cannot be read ({error}), so nothing is known of its verdict"


def unchanged(*models: str | Path) -> list[str]:
    """Returns a line for every run, final/ or export among the models that holds the model before training."""
    lines = []
    for model in models:
        try:
            facts = _of_model(Path(model))
            if facts and facts["final"]["model"] == BASE:
                verdict = f"the run's verdict on the tuned one: {facts['verdict']}"
                lines.append(f"{model} is the model before training ({verdict}): its results are that model's")
        except (BadInput, OSError, KeyError, TypeError, ValueError):
            continue  # export and reindex report a verdict that cannot be read
    return lines


def _of_model(folder: Path) -> dict:
    return read_verdict(folder / "final" if (folder / "run.json").is_file() else folder)


def describe(facts: dict) -> list[str]:
    """Returns the verdict as lines. The first one says all that matters."""
    head = f"verdict: {HEADS[facts['verdict']]}"
    if facts["verdict"] == NOT_MEASURED:
        lines = [f"{head}: {facts['why']}; {in_final(facts)}"]
    else:
        best = facts["best"]
        where = f"on {best['queries']:,} queries of {facts['set']}"
        lines = [f"{head}: {facts['metric']} {_change(best)} {where}; {in_final(facts)}", power(facts)]
        if facts["same_queries"]:
            lines.append("the queries that chose the model are those that report here, which flatters it")
        if blend := facts.get("blend"):
            lines.append(_blend(blend, facts["final"]["model"] == BASE))
        if last := facts.get("last"):
            lines.append(f"the last model (step {last['step']}): {HEADS[last['verdict']]}: {_change(last)}")
    if general := facts.get("general"):
        lines.append(f"on data.general: {_change(general)}, {_forgotten(general['verdict'])}")
    return lines


def power(facts: dict) -> str:
    """Returns the smallest difference that the queries could have shown, as a line."""
    best = facts["best"]
    if best["detectable"] is None:
        return f"{best['queries']:,} queries are too few to show any difference"
    if best["detectable"] == 0:  # no spread: a set of one relevant document, or a model that did not change
        same = f"the metric changed by the same amount for each of the {best['queries']:,} queries"
        return f"{same}, which says nothing about the smallest difference that they can show"
    return (
        f"{best['queries']:,} queries show a difference of {best['detectable']:.4f} or more (in 80 % of the cases, at "
        "the 5 % level; smaller ones less often)"
    )


def in_final(facts: dict) -> str:
    """Returns what final/ holds."""
    final = facts["final"]
    if final["model"] == BASE:
        return "final/ is the model before training"
    trained = f"the model of epoch {final['epoch']} (step {final['step']})"
    if final["model"] == BLENDED:
        return f"final/ is a blend: share {final['share']:g} of {trained}, the rest of the model before training"
    return f"final/ is {trained}"


def _blend(blend: dict, keeps_base: bool) -> str:
    """Describes the share that watch.blend chose, and the trained model beside it."""
    tuned = blend["tuned"]
    ends = "0 is the model before training, 1 the trained one"
    chosen = f"share {blend['share']:g} was chosen"
    if keeps_base and blend["share"]:
        chosen = (
            f"share {blend['share']:g} did best on the queries that choose, but was not written: on those that report, "
            "or on all, it is worse than share 0 beyond noise"
        )
    return f"the blend (watch.blend): {chosen}, where {ends}; share 1: {HEADS[tuned['verdict']]}: {_change(tuned)}"


def _change(change: dict) -> str:
    low, high = change["interval_95"]
    interval = f"95 % interval {low:+.4f} to {high:+.4f}"
    return f"{change['base']:.4f} -> {change['tuned']:.4f} ({change['difference']:+.4f}, {interval})"


def _forgotten(verdict: str) -> str:
    return {WORSE: "forgotten beyond noise", BETTER: "nothing was forgotten"}.get(verdict, "no loss beyond noise")
