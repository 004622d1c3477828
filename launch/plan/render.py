"""Formats a plan for people."""

from launch.before_start import rows_per_rank
from launch.command import MASTER_PORT
from launch.plan.cost import TERMS
from launch.plan.memory import NEED, shown

PLACEHOLDERS = {
    "HEAD": "name or address of the first machine",
    "RANK": "0 on the first machine, 1 on the second, …",
    "TIME": "limit of the job, as SLURM takes it: 04:00:00",
}
ZERO = ("0", "0 B")
HEADS = ("compute", "twice", "recompute", "communic.", "update", "transfers", "total")


def render(facts: dict) -> str:
    ranks, model, steps = facts["ranks"], facts["model"], facts["steps"]
    negatives = sorted(set(steps["negatives_per_query"]))
    span = f"{negatives[0]}" if len(negatives) == 1 else f"{negatives[0]} to {negatives[-1]}"
    trained = f"model: {model['trained'] / 1e6:.1f} M of {model['parameters'] / 1e6:.1f} M parameters trained"
    if model["trained"] < model["parameters"]:
        trained += f", frozen weights in {model['base']}"
    lines = [
        trained,
        f"weights: {model['weights']}",
        f"ranks: {ranks['nodes']} x {ranks['per_node']} on {ranks['device']}, {shown(ranks['memory'])} each",
        *facts["hardware"]["notes"],
        f"steps: {steps['total']} in all, {steps['per_epoch']} per epoch, global batch {steps['global_batch']} of "
        f"{steps['rows']:,} rows, {steps['left_out_per_epoch']} left out per pass",
        rows_per_rank(steps["global_batch"], ranks["nodes"] * ranks["per_node"]),
        *facts["warnings"],
        f"negatives per query: {span} in the first batches, before duplicates are masked",
        f"tokens of the busiest rank: {steps['tokens_of_the_busiest_rank']:,}, longest text: {steps['longest_text']}",
        "",
        *_memory_table(facts["candidates"]),
        "",
        *_seconds_table(facts["candidates"]),
        "",
        f"choice: {facts['candidate'] or 'none'}",
        f"reason: {facts['reason']}",
    ]
    if facts["short_by"]:
        lines.append(f"short by: {shown(facts['short_by'])} per rank")
        lines += [f"would fit: {change}" for change in facts["would_fit"]] or ["nothing that was looked at would fit"]
    if facts["overrides"]:
        lines.append(f"overrides: {' '.join(facts['overrides'])}")
    lines += [f"{name}:\n  {command}" for name, command in facts["commands"].items()]
    words = " ".join(facts["commands"].values()).split()
    used = {word.removesuffix(f":{MASTER_PORT}") for word in words}
    lines += [f"{word}: {meaning}" for word, meaning in PLACEHOLDERS.items() if word in used]
    return "\n".join([*lines, *_scaling_table(facts["scaling"], steps["global_batch"])])


def _memory_table(estimates: list[dict]) -> list[str]:
    names = (*NEED, "total")
    rows = [[one["candidate"], *(shown(one["need"][name]) for name in names)] for one in _possible(estimates)]
    return _table(["bytes of a rank", *names], rows)


def _seconds_table(estimates: list[dict]) -> list[str]:
    rows = []
    for one in _possible(estimates):
        seconds = [f"{one['seconds'][term]:.3g}" for term in (*TERMS, "total")]
        fits = "yes" if one["fits"] else "no"
        rows.append([one["candidate"], fits, f"{one['budget']:,}", str(one["calls"]), shown(one["sent"]), *seconds])
    refused = [f"{one['candidate']}: refused: {one['refused']}" for one in estimates if one["refused"]]
    return _table(["seconds of a step", "fits", "micro_batch", "calls", "sent", *HEADS], rows) + refused


def _possible(estimates: list[dict]) -> list[dict]:
    return [one for one in estimates if not one["refused"]]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Returns lines as wide as their cells need, the first column to the left; a column of zeros is left out."""
    kept = [n for n in range(len(head)) if any(row[n] not in ZERO for row in rows)]
    widths = [max(len(row[n]) for row in [head, *rows]) for n in kept]
    return [
        "  ".join(row[n].rjust(width) if n else row[n].ljust(width) for n, width in zip(kept, widths))
        for row in [head, *rows]
    ]


def _scaling_table(table: list[dict], batch: int) -> list[str]:
    if not table:
        return []
    head = f"{'nodes':>6} {'ranks':>6} {'same batch: s/step':>19} {'efficiency':>11} {'batch x ranks: s/step':>22}"
    lines = ["", f"on other ranks:  {head}  candidate"]
    for row in table:
        same = f"{row['seconds']:19.4g} {100 * row['efficiency']:9.1f} %" if row["seconds"] else f"{'-':>19} {'-':>11}"
        grown = f"{row['grown_batch_seconds']:22.4g}" if row["grown_batch_seconds"] else f"{'-':>22}"
        why_not = f"the batch has {batch:,} rows" if row["ranks"] > batch else "nothing fits"
        lines.append(f"{'':15}  {row['nodes']:6} {row['ranks']:6} {same} {grown}  {row['candidate'] or why_not}")
    return lines
