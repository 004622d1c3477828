"""The HTML page about a run."""

import json
import shlex
from html import escape
from pathlib import Path

from data_prep.common import svg
from data_prep.common.console import one_line
from data_prep.common.html_page import facts as facts_table
from data_prep.common.html_page import page, section, table, tiles
from trainer.evaluation.metric_names import metrics_of
from trainer.reporting.comparison import METRIC, Comparison, Query, Shown
from trainer.reporting.facts import Facts
from trainer.run_dir.verdict import describe

LINES = (  # title, caption, name of the curve -> key of the log's steps
    ("Loss", "Of every step, on its global batch.", {"loss": "loss"}),
    ("Similarity in training", "Mean cosine of a query and its positive, and of a query and its negatives, of every "
     "step's batch.", {"positive": "positive_similarity", "negative": "negative_similarity"}),
    ("Learning rate", "", {"learning rate": "lr"}),
    ("Gradient norm", "Before clipping.", {"gradient norm": "grad_norm"}),
    ("Temperature", "", {"temperature": "temperature"}),
    ("Pairs per second", "Of every step, evaluation and checkpoints left out.", {"pairs/s": "pairs_per_second"}),
)  # fmt: skip
METRICS, SHOWN_METRICS = ("nDCG@10", "MRR@10", "recall@10"), 3  # the curves; of a run that logs others, the first ones
TEXT = 220  # shown characters of a document


def write_report(facts: Facts) -> str:
    """Returns the whole page."""
    comparison = facts.comparison
    plots = [*_curves(facts), _metrics(facts), _similarities(comparison), _data(facts), _lengths(facts), _speed(facts)]
    body = _tiles(facts) + _verdict(facts.verdict) + _shares(facts) + _missing(facts)
    body += _before_and_after(comparison, facts.verdict)
    body += f'<div class="plots">{"".join(plots)}</div>'
    body += _queries(comparison, "gained") + _queries(comparison, "lost") + _again(facts)
    return page(facts.run.resolve().name, _subtitle(facts), body)


def _subtitle(facts: Facts) -> str:
    topology, model = facts.record["topology"], facts.config.model
    started = facts.record["started"][:16].replace("T", " ")
    name = "/".join(Path(model.path).parts[-2:])  # org/name, or a folder: alone it is often called model
    caption = f"{name}, {model.finetune} fine-tuning, begun {started}: "
    processes = "1 process" if topology["processes"] == 1 else f"{topology['processes']} processes"
    caption += f"{processes} on {topology['device']}, engine {topology['engine']}."
    return f"{escape(caption)} Made by <code>python -m trainer.report</code>."


def _tiles(facts: Facts) -> str:
    steps = facts.events["step"]
    shown = [(f"{len(steps):,}", f"steps of {facts.config.train.batch_size:,} rows", "")]
    shown += [(f"{steps[-1]['loss']:.4g}", "last loss", "")] if steps[-1]["loss"] is not None else []
    if facts.comparison:
        row = facts.comparison.table[METRIC]
        sure = "good" if row["interval_95"][0] > 0 else "error" if row["interval_95"][1] < 0 else ""
        of = f"all {facts.comparison.queries:,} queries"
        shown.append((f"{row['base']:.4f}", f"{METRIC} before, {of}", ""))
        shown.append((f"{row['tuned']:.4f}", f"{METRIC} after, {of}", sure))
    skipped = sum(bool(event.get("skipped")) for event in steps)
    shown += [(f"{skipped:,}", "steps skipped (gradient not finite)", "error")] if skipped else []
    return tiles(shown)


def _verdict(verdict: dict) -> str:
    if not verdict:
        return ""
    first, *more = (line[:1].upper() + line[1:] for line in describe(verdict))
    items = "".join(f"<li>{escape(line)}.</li>" for line in more)
    body = f'<ul class="found">{items}</ul>' if items else ""
    first = first.removeprefix("Verdict: ")
    return section("Verdict", f"{escape(first[:1].upper() + first[1:])}.", body, "lead")


def _shares(facts: Facts) -> str:
    """Returns the table of a blend, its last one; empty for a run that blended nothing."""
    if not (blends := facts.events["blend"]):
        return ""
    blend = blends[-1]
    sets = [name for name in ("domain", "general") if name in blend["shares"][0]]
    rows = []
    for row in blend["shares"]:
        means = [f"{row[name][half]:.4f}" for name in sets for half in ("chooses", "reports")]
        note = "in final/" if row["share"] == blend["share"] else row["refused"] or ""
        rows.append((f"{row['share']:g}", *means, note))
    head = ("share", *(f"{name}, {half}" for name in sets for half in ("choosing", "reporting")), "")
    caption = f"Mean {blend['metric']} on queries that choose and on queries that report, by the tuned model's share."
    if "general" in sets:
        caption += f" At most {blend['most_lost']:g} of it may be lost on the general set."
    return section("Shares of the blend", escape(caption), table(head, rows))


def _missing(facts: Facts) -> str:
    items = "".join(f'<li class="warning"><b>left out</b> {escape(line)}</li>' for line in facts.missing)
    return f'<section><h2>What is not shown</h2><ul class="found">{items}</ul></section>' if items else ""


def _before_and_after(comparison: Comparison | None, verdict: dict) -> str:
    if comparison is None:
        return ""
    rows = []
    for name, row in comparison.table.items():
        low, high = row["interval_95"]
        change = f"{row['difference']:+.4f}<br><small>{low:+.4f} … {high:+.4f}</small>"
        rows.append((name, f"{row['base']:.4f}", f"{row['tuned']:.4f}", change))
    caption = f"{escape(comparison.name)}: {comparison.queries:,} held-out queries, {comparison.documents:,} documents."
    caption += escape(_halves(comparison.name, verdict))
    caption += " The interval is of the change, by paired bootstrap over queries."
    caption += "".join(f" {escape(line[:1].upper() + line[1:])}." for line in comparison.read)
    return section("Before and after", caption, table(("", "before", "after", "change, 95 % interval"), rows))


def _halves(name: str, verdict: dict) -> str:
    """Returns how many queries of the set `name` chose the model and how many report, as a sentence for the caption;
    empty where the verdict is of another set."""
    if not verdict.get("best") or verdict["set"] != name:
        return ""
    choosing, reporting = verdict["choosing_queries"], verdict["best"]["queries"]
    if verdict["same_queries"]:
        return f" All {reporting:,} chose the model, and the same ones report in the verdict."
    if not choosing:
        return f" None chose the model (watch.metric was train_loss); all {reporting:,} report in the verdict."
    return f" {choosing:,} of them chose the model, the other {reporting:,} report in the verdict."


def _curves(facts: Facts) -> list[str]:
    sections = []
    for title, caption, keys in LINES:
        series = {name: points for name, key in keys.items() if (points := facts.series(key))}
        constant = title == "Temperature" and len({value for _, value in series.get("temperature", [])}) < 2
        if series and not constant:
            steps = len(next(iter(series.values())))
            caption += f" The lowest and highest of each stretch of {steps:,} steps." if steps > svg.MOST_POINTS else ""
            sections.append(section(title, caption.strip(), svg.lines(series, title)))
    return sections


def _metrics(facts: Facts) -> str:
    sections = ""
    for source in dict.fromkeys(event.get("source", "") for event in facts.events["evaluation"]):
        events = [event for event in facts.events["evaluation"] if event.get("source", "") == source]
        logged = dict.fromkeys(name for event in events for name in metrics_of(event))
        shown = [name for name in METRICS if name in logged] or [*logged][:SHOWN_METRICS]
        series = {name: [(event["step"], event[name]) for event in events if name in event] for name in shown}
        caption = "On the evaluation set during training" + (f", source {escape(source)}." if source else ".")
        sections += section("Metrics", caption, svg.lines(series, "metrics"))
    return sections


def _similarities(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    body = ""
    for side, name in (("base", "before"), ("tuned", "after")):
        plot = svg.densities(comparison.shares[side], comparison.edges, f"similarities {name}")
        body += f"<h3>{name}</h3>{plot}"
    caption = "Cosine of the held-out queries with their relevant documents, and with all others: share of the pairs."
    return section("Similarities", caption, body)


def _queries(comparison: Comparison | None, kind: str) -> str:
    queries = comparison.changed[kind] if comparison else []
    if not queries:
        return ""
    items = "".join(f"<li><b>{escape(query.text)}</b>{_rankings(query)}</li>" for query in queries)
    caption = f"By {METRIC}; relevant documents in green, with a check mark."
    return section(f"Queries that {kind} most", caption, f'<ul class="found">{items}</ul>')


def _rankings(query: Query) -> str:
    sides = ""
    for side, name in (("base", f"before: {query.base:.3f}"), ("tuned", f"after: {query.tuned:.3f}")):
        hits = "".join(map(_hit, query.best[side]))
        sides += f"<div><h4>{name}</h4><ol>{hits}</ol></div>"
    return f'<div class="sides">{sides}</div>'


def _hit(hit: Shown) -> str:
    kind, mark = (" class=right", " ✓") if hit.right else ("", "")
    return f"<li{kind}><small>{100 * hit.similarity:.0f} %</small>{mark} {escape(one_line(hit.text, TEXT))}</li>"


def _data(facts: Facts) -> str:
    if not facts.manifest:
        return ""
    splits, total = facts.manifest["rows"], sum(facts.manifest["rows"].values()) or 1
    rows = [
        (f"{source}: {split}", count / total, f"{count:,} · {100 * count / total:.1f} %")
        for source, counts in facts.manifest["sources"].items()
        for split, count in counts.items()
    ]
    counted = ", ".join(f"{count:,} rows of {name}" for name, count in splits.items())
    caption = f"{escape(str(facts.config.data.train))}: {counted}; "
    caption += f"{facts.manifest['duplicates_removed']:,} duplicates were removed."
    return section("Data", caption, svg.bars(rows, "rows by source and split"))


def _lengths(facts: Facts) -> str:
    plots = ""
    for number, (name, of) in enumerate((facts.manifest.get("lengths") or {}).items()):
        if of and of.get("words"):
            plots += f"<h3>{escape(name)}</h3>" + svg.histogram(of["words"]["histogram"], number, f"words of {name}")
    caption = "Share of texts with up to this many words (and more than the bound before)."
    return section("Lengths", caption, plots) if plots else ""


def _speed(facts: Facts) -> str:
    steps = facts.events["step"]

    def mean(key: str) -> float:
        values = [event[key] for event in steps if event.get(key) is not None]
        return sum(values) / len(values) if values else 0.0

    seconds = [event["texts"] and event["tokens"] / event["tokens_per_second"] for event in steps]
    evaluation = sum(event.get("seconds", 0) for event in facts.events["evaluation"])
    rows = [
        ("pairs per second, mean", f"{mean('pairs_per_second'):.1f}"),
        ("tokens per second, mean", f"{mean('tokens_per_second'):,.0f}"),
        ("padding share, mean", f"{100 * mean('padding_share'):.1f} %"),
        ("texts cut", f"{sum(event['truncated_texts'] for event in steps):,} of {sum(e['texts'] for e in steps):,}"),
        ("memory, peak", f"{max(event['memory_gib'] for event in steps):.2f} GiB"),
        ("training steps", f"{sum(seconds):,.0f} s"),
        ("evaluation", f"{evaluation:,.0f} s"),
    ]
    return section("Speed", "Of the first process.", facts_table(rows))


def _again(facts: Facts) -> str:
    """Returns the commands that repeat the run: run.json holds the value of every key, defaults included."""
    topology, run_json = facts.record["topology"], escape(str(facts.run / "run.json"))
    world = ""
    if topology["processes"] > 1 or topology["engine"].startswith("zero"):
        world = f" --engine {topology['engine']} --processes {topology['processes']}"
    start = f"python -m launch run --config again.json{world}" if world else "python -m trainer --config again.json"
    commands = (
        f"python -c \"import json; json.dump(json.load(open('{run_json}'))['config'], open('again.json', 'w'))\"\n"
        f"{start} {escape(shlex.quote(f'output_dir={facts.run}-again'))}"
    )
    commit = (facts.record.get("git") or {}).get("commit")
    known = {"data fingerprint": facts.record["data_fingerprint"], "commit": commit, **facts.record["versions"]}
    rows = [(escape(name), f"<code>{escape(str(value))}</code>") for name, value in known.items() if value]
    config = escape(json.dumps(facts.record["config"], indent=2, ensure_ascii=False))
    body = f"<pre>{commands}</pre>{facts_table(rows)}"
    body += f"<details><summary>run file</summary><pre>{config}</pre></details>"
    caption = "The same data (by fingerprint), versions and topology give the same losses."
    return section("The same run again", caption, body)
