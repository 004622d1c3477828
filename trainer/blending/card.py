"""The model card of a blended model."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.texts.tokenizer_rules import is_hub_id
from trainer.blending.pair import Pair
from trainer.reporting.model_card import card_of


def name_of(path: str) -> str:
    """Returns a hub id, or the name of a folder (run/final of a run): the rest of a path belongs to this machine."""
    if is_hub_id(path):
        return path
    folder = Path(path).absolute()
    of_run = (folder.parent / "run.json").is_file()
    return f"{folder.parent.name}/{folder.name}" if of_run else folder.name


def blend_card(output: Path, pair: Pair, result: dict) -> str:
    """Returns the text of README.md."""
    text = f"Weights between {result['base']} (share 0) and {result['tuned']} (share 1)."
    return card_of(output.name, text, result["base"], pair.spec, pair.is_adapter, [_blend(result), _metrics(result)])


def _blend(result: dict) -> str:
    rows = [("share of the tuned model", result["chosen"])]
    rows += [("chosen by", f"{result['metric']} on {_half(result['domain'], 'choose')}")]
    if result["general"]:
        bound = f"at most {result['most_lost']} of {result['metric']} lost on {_half(result['general'], 'choose')}"
        rows.append(("bound", bound))
    kept = result["gain_kept"]
    rows += [("part of the tuned model's gain that is kept", f"{kept:.0%}")] if kept is not None else []
    return f"## Blend\n\n{_table(('', ''), rows)}"


def _half(side: dict, does: str) -> str:
    return f"{side[f'queries_that_{does}']:,} queries of {Path(side['data']).name}"


def _metrics(result: dict) -> str:
    parts = []
    for side in filter(None, (result["domain"], result["general"])):
        rows = [
            (name, f"{row['base']:.4f}", f"{row['chosen']:.4f}", "{:+.4f} … {:+.4f}".format(*row["interval_95"]))
            for name, row in side["against_base"].items()
        ]
        head = ("metric", "base", "this model", "95 % interval of the difference")
        parts.append(f"On {_half(side, 'report')}, which chose nothing:\n\n{_table(head, rows)}")
    return "## Metrics\n\n" + "\n".join(parts)


def _table(head: Sequence, rows: Iterable[Sequence]) -> str:
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (head, ("---",) * len(head), *rows))
