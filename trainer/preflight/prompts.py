"""Checks the prompts of a run: those that rows state, and that every prompt leaves room for its texts."""

import json
from collections.abc import Iterable

from data_prep.common.console import track
from data_prep.common.files import check
from data_prep.texts.prompts import SIDES, without_room
from data_prep.texts.row_prompts import Survey
from data_prep.texts.token_lengths import has_tokenizer, tokenizer_of
from trainer.model_folder.files import fetch
from trainer.preflight.inputs import Inputs


def check_prompts(inputs: Inputs) -> list[str]:
    """Returns a line on the rows that state no prompt, where the run file names the key of one. Raises BadInput for
    prompts that are no texts, for a key that no row has, and for prompts as long as their texts may be."""
    surveys = _surveys(inputs)
    options = {side: f"data.row_{side}_prompt" for side in surveys}
    problems = [line for side, survey in surveys.items() for line in survey.problems(options[side])]
    check(problems or [line for side in SIDES for line in _without_room(inputs, side, surveys.get(side))])
    return [line for side, survey in surveys.items() for line in survey.notes(options[side])]


def _surveys(inputs: Inputs) -> dict[str, Survey]:
    """Reads the metadata of all train rows, where a prompt is one of its values."""
    surveys = {side: Survey(made) for side, made in inputs.config.own_prompts.of_rows.items()}
    if surveys:
        rows = inputs.shards.split("train")
        for row, metadata in track(rows.values("id", "metadata"), "reading the rows' prompts", total=len(rows)):
            values = json.loads(metadata)
            for survey in surveys.values():
                survey.add(row, values)
    return surveys


def _without_room(inputs: Inputs, side: str, survey: Survey | None) -> Iterable[str]:
    """Yields a problem for each owner of a prompt that fills a text of one side."""
    config, spec = inputs.config, inputs.spec
    folder = fetch(config.model.tokenizer) if config.model.tokenizer else spec.path
    if not has_tokenizer(folder):
        return
    tokenizer = tokenizer_of(folder)
    owners = {f"model.{side}_prompt": [getattr(spec.rules, f"{side}_prompt")]}
    owners |= {f"sources.{name}.{side}_prompt": [text] for name, text in getattr(spec.own_prompts, side).items()}
    owners |= {f"data.row_{side}_prompt": survey.longest} if survey else {}
    length = f"model.{side}_max_len"
    limit = getattr(spec.rules, f"{side}_max_len")
    for option, prompts in owners.items():
        yield from without_room(prompts, limit, option, length, lambda text: len(tokenizer.encode(text)))
