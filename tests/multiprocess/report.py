"""Checks of a cell's result, and the table of all cells."""

import json

from tests.multiprocess.cells import ADAPTED, CASES, ROWS, records

GRADIENT = 1e-5  # relative error of raw gradients and of the SGD update, over all parameters as one vector
LOSS = 1e-4  # largest difference in 20 clipped AdamW steps
TEMPERATURE = 1e-4  # relative, after 20 steps


def problems(result: dict, reference: dict) -> list[str]:
    """Returns the problems of a cell, one line each."""
    cell = result["cell"]
    where = " ".join(str(cell[key]) for key in ("kind", "run", "chunks") if key in cell)
    return [f"{result['engine']}, {where}: {wrong}" for wrong in CHECKS[cell["kind"]](result, reference)]


def _table(result: dict, reference: dict) -> list[str]:
    cell, wrong = result["cell"], []
    for name in ("gradient", "update", "temperature_grad"):
        wrong += [f"{name} is off by {error:.1e}" for error in result[name] if not error < GRADIENT]
    if any(calls != result["planned"] for calls in result["calls"]):
        wrong.append(f"{result['calls']} collectives, {result['planned']} planned")
    if result["chunks"] != {"1 chunk": [1, 0], "4 chunks": [4, 3], "4 kept": [4, 0]}[cell["chunks"]]:
        wrong.append("{} chunks, {} of them twice".format(*result["chunks"]))
    for errors in result.get("planted", []):  # a wrong factor must not pass the check that the right one passes
        wrong += [f"a planted factor is seen as {error:.1e} only" for error in errors if not error > 0.4]
    if reference[cell["run"]].get("base_matters", 0) < 100 * GRADIENT and "bf16" in cell["run"]:
        wrong.append("rounding the base changes nothing, so it is not tested")
    if "losses" in result:
        wrong += _trained(result, reference[cell["run"]]["adamw"], {**CASES, **ADAPTED}[cell["run"]].max_norm)
    return wrong


def _released(result: dict, _: dict) -> list[str]:
    weights, training, after = (result[key] for key in ("weights", "training", "after"))
    wrong = (
        [] if training > 0.9 * weights else [f"{training} bytes in training, of {weights} of weights: not all is seen"]
    )
    return wrong + ([f"{after} bytes are left of {training}"] if after > 0.02 * training else [])


def _rounded(result: dict, _: dict) -> list[str]:
    half, whole = result["numbers"], result["numbers_fp32"]
    wrong = [] if result["same"] else ["rounded gathers change the gradient"]
    wrong += [] if result["planted"] else ["rounding a table that is looked up changes nothing"]
    wrong += [] if result["read"] and result["digits"] else ["weights are read without all of their digits"]
    if not (whole.keys() == {"float32"} and sum(half.values()) == whole["float32"]):
        wrong.append(f"other weights are gathered: {half}, {whole}")
    if not half.get("bfloat16", 0) > 0.4 * whole["float32"]:
        wrong.append(f"few weights travel rounded: {half}")
    return wrong


def _trained(result: dict, expected: dict, max_norm: float) -> list[str]:
    wrong = []
    if loss_difference(result, expected) >= LOSS:
        wrong.append(f"losses differ by up to {loss_difference(result, expected):.1e}")
    for tau in result["temperature"]:
        if not abs(tau / expected["temperature"] - 1) < TEMPERATURE:
            wrong.append(f"the temperature is {tau}, not {expected['temperature']}")
    if not min(expected["norms"]) < max_norm < max(expected["norms"]):
        wrong.append(f"clipping at {max_norm} must act in some steps only: {sorted(expected['norms'])}")
    return wrong


def loss_difference(result: dict, expected: dict) -> float:
    assert len(result["losses"]) == len(expected["losses"])
    return max(abs(a - b) for a, b in zip(result["losses"], expected["losses"]))


def _reduced(result: dict, reference: dict) -> list[str]:
    wrong = _table(result, reference)
    if not result["live"] <= result["cell"]["bucket"] + result["largest"] < result["whole"] / 1.5 or result["left"]:
        wrong.append(f"{result['live']} of {result['whole']} numbers of gradients at once, {result['left']} left")
    embedded_twice = result["chunks"][1]  # by a forward pass between two backward passes, which DeepSpeed counts
    if not embedded_twice and not result["uncounted"] > 0.1:
        wrong.append(f"chunks that are not counted are seen as {result['uncounted']:.1e} only")
    return wrong


def _sources(result: dict, reference: dict) -> list[str]:
    expected = reference["sources"]
    wrong = _trained(result, expected, expected["max_norm"])
    return wrong + ([] if result["batches"] == expected["batches"] else ["other batches than the plan's"])


def _loads(result: dict, reference: dict) -> list[str]:
    return [f"{name}: gradient is off by {error:.1e}" for name, error in result["loads"] if not error < GRADIENT]


def _dropout(result: dict, reference: dict) -> list[str]:
    wrong = [] if result["equal"] else ["embedding a chunk twice gives another gradient"]
    return wrong + ([] if result["other_seed"] > 1e-3 else ["another seed gives the same gradient: is dropout on?"])


def _overlapped(result: dict, reference: dict) -> list[str]:
    *early, last = result["sent"]
    wrong = [] if result["equal"] else ["gradients sent during the last pass have another sum"]
    wrong += [f"{early} buckets sent before the last pass"] if any(early) else []
    return wrong + (
        [] if last == result["buckets"] > 2 else [f"{last} of {result['buckets']} buckets sent in the last pass"]
    )


def _duplicates(result: dict, reference: dict) -> list[str]:
    wrong = []
    for name, (loss, largest) in result["twins"].items():
        masked = name.endswith("True")
        if masked and (loss, largest) != (0.0, 0.0):
            wrong.append(f"twins by {name}: loss {loss}, gradient up to {largest}")
        if not masked and not largest > 0.1:
            wrong.append(f"twins by {name}: without the mask there must be a gradient")
    mixed = reference["duplicates"]["mixed"]
    for name, (error, _) in result["mixed"].items():
        wrong += [f"{name}: gradient is off by {error:.1e}"] if not error < GRADIENT else []
    if result["mixed"]["infonce"][1] != mixed["masked"]:
        wrong.append(f"{result['mixed']['infonce'][1]} masked, not {mixed['masked']}")
    if not mixed["mask_matters"] > 0.01:
        wrong.append("the mask changes nothing, so it is not tested")
    return wrong


def _rules(result: dict, reference: dict) -> list[str]:
    wrong = []
    for name, rule in result["rules"].items():
        expected = [reference["rules"][name][kind] for kind in ("whole", "last")]
        wrong += [f"{name}: gradient is off by {error:.1e}" for error in rule["errors"] if not error < GRADIENT]
        if rule["masked"] != [one["masked"] for one in expected]:
            wrong.append(f"{name}: {rule['masked']} masked, not {[one['masked'] for one in expected]}")
        if any(calls != rule["planned"] for calls in rule["calls"]):
            wrong.append(f"{name}: {rule['calls']} collectives, {rule['planned']} planned")
        wrong += [
            f"{name}: a planted factor is seen as {error:.1e} only" for error in rule["faults"] if not error > 0.4
        ]
        if rule["shuffled"] is not None and not rule["shuffled"] > 1e-3:
            wrong.append(f"{name}: the guide's embeddings of other texts are seen as {rule['shuffled']:.1e} only")
        if not expected[0]["matters"] > 1e-3 or not expected[0]["masked"]:
            wrong.append(f"{name}: the rule changes nothing, so it is not tested")
        if not min(one["nearest"] for one in expected) > 1e-5:
            wrong.append(f"{name}: a similarity lies so near to its limit that rounding decides; choose another margin")
    return wrong


def _retrieval(result: dict, reference: dict) -> list[str]:
    wrong = []
    for query, hits in result["found"].items():
        if sorted(hits, key=lambda hit: (hit[1], hit[0]), reverse=True) != hits or len(hits) != 15:
            wrong.append(f"{query}: {len(hits)} documents, not 15 by score and then id")
        if any(document == query for document, _ in hits):
            wrong.append(f"{query}: finds the document of its own id")
    scores = [[score for _, score in hits] for hits in result["found"].values()]
    if all(len(set(row)) == len(row) for row in scores):
        wrong.append("no two documents have the same score, so ties are not tested")
    if min(result["documents"]) == 0:
        wrong.append(f"a rank embedded nothing: {result['documents']}")
    return wrong


def _mined(result: dict, reference: dict) -> list[str]:
    after = [json.loads(line) for line in result["mined"]]
    before, now = (sum(len(row["negatives"]) for row in rows) for rows in (records(False), after))
    added = now - before
    return [] if len(after) == ROWS and added > ROWS else [f"{len(after)} rows, {added} negatives added"]


CHECKS = {
    "mined": _mined,
    "retrieval": _retrieval,
    "table": _table,
    "adapter": _table,
    "offloaded": _table,
    "reduced": _reduced,
    "sources": _sources,
    "loads": _loads,
    "dropout": _dropout,
    "overlapped": _overlapped,
    "duplicates": _duplicates,
    "rules": _rules,
    "rounded": _rounded,
    "released": _released,
}

HEADER = ("engine", "ranks", "chunks", "loss", "gradient", "SGD update", "20 AdamW steps", "collectives")


def figures(result: dict, reference: dict) -> tuple[float, float, float | None]:
    """The largest error of the gradient, of the SGD update and of the losses."""
    expected = reference[result["cell"]["run"]]["adamw"]
    trained = loss_difference(result, expected) if "losses" in result else None
    return max(result["gradient"]), max(result["update"]), trained


def table(results: list[dict], reference: dict) -> str:
    """One line per cell, as Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "| " + " | ".join("---" for _ in HEADER) + " |"]
    for result in results:
        cell, (gradient, update, loss) = result["cell"], figures(result, reference)
        shown = f"{gradient:.1e}", f"{update:.1e}", "" if loss is None else f"{loss:.1e}"
        calls = f"{result['planned']} / {max(result['calls'])}"
        line = (result["engine"], result["world"], cell["chunks"], cell["run"], *shown, calls)
        lines.append("| " + " | ".join(map(str, line)) + " |")
    return "\n".join(lines)


def summary(results: list[dict], reference: dict) -> str:
    """The worst figures, in a sentence."""
    gradients, updates, losses = zip(*(figures(result, reference) for result in results))
    trained = [loss for loss in losses if loss is not None]
    planted = [errors for result in results for errors in result.get("planted", [])]
    return (
        f"{len(results)} cells. Largest relative error of a raw gradient {max(gradients):.1e}, of an SGD update "
        f"{max(updates):.1e} (limit {GRADIENT:.0e}); largest difference of a loss in 20 AdamW steps ({len(trained)} "
        f"cells) {max(trained):.1e} (limit {LOSS:.0e}). A planted factor of W or 1/W is seen as an error of at least "
        f"{min(map(min, planted)):.2f} ({len(planted)} plantings)."
    )


def others(results: list[dict]) -> list[str]:
    """Returns the results of the further kinds of cells, one line each."""
    by_kind = {kind: [r for r in results if r["cell"]["kind"] == kind] for kind in CHECKS}
    loads = [error for result in by_kind["loads"] for _, error in result["loads"]]
    mixed = [error for result in by_kind["duplicates"] for error, _ in result["mixed"].values()]
    where = {kind: _groups(by_kind[kind]) for kind in CHECKS}
    taus = [
        tau for r in by_kind["table"] if r["cell"]["run"] == "learned temperature" for tau in r.get("temperature", [])
    ]
    return [
        f"Very uneven loads (one rank has the long texts, or all texts, others few or none): {len(loads)} gradients, "
        f"the largest error {max(loads):.1e}; nothing hung ({where['loads']}).",
        f"Documents embedded and searched by all ranks: the same results in the same order ({where['retrieval']}).",
        "Dropout on: gradients of chunks that are embedded twice are bit for bit those of kept ones "
        f"({where['dropout']}).",
        "Planted duplicates (by text, document, query): where only they would be negatives, loss and gradient are "
        f"exactly 0; mixed with others, the largest error of a gradient is {max(mixed):.1e} ({where['duplicates']}).",
        _ruled(by_kind["rules"], where["rules"]),
        "In bf16 ZeRO-3 gathers rounded what autocast rounds: the gradient is bit for bit that of fp32 gathers "
        f"({where['rounded']}).",
        "Two sources with their own losses and prompts, rows with theirs, no prompt pooled, mixed: the same batches, "
        f"the same losses ({where['sources']}).",
        _adapted(by_kind["adapter"]),
        f"A learned temperature after 20 steps: between {min(taus):.8f} and {max(taus):.8f} in {len(taus)} runs.",
    ]


def _groups(results: list[dict]) -> str:
    count = len({(result["engine"], result["world"]) for result in results})
    return f"{count} group{'s' * (count != 1)}"


def _ruled(results: list[dict], where: str) -> str:
    rules = [rule for result in results for rule in result["rules"].values()]
    shuffled = min(rule["shuffled"] for rule in rules if rule["shuffled"] is not None)
    errors, faults = ([error for rule in rules for error in rule[key]] for key in ("errors", "faults"))
    return (
        f"Rules about negatives ({'; '.join(results[0]['rules'])}): the largest error of a gradient {max(errors):.1e}, "
        f"the masked candidates those of the reference; a planted factor is seen as at least {min(faults):.2f}, a "
        f"guide's embeddings in another order as at least {shuffled:.2g} ({where})."
    )


def _adapted(results: list[dict]) -> str:
    errors = [error for result in results for error in [*result["gradient"], *result["update"]]]
    planted = [error for result in results for errors in result["planted"] for error in errors]
    return (
        f"Adapters (LoRA and DoRA on every linear layer, the base frozen) and frozen layers, also with "
        f"frozen weights in bf16: {len(results)} cells, the largest error of "
        f"a gradient or update of their parameters {max(errors):.1e}; a planted factor is seen as at least "
        f"{min(planted):.2f} ({_groups(results)})."
    )
