"""Measures the shares between a base and a tuned model, chooses one, and writes it as a folder that proves itself."""

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.files import existing_parent, sha256_of, write_json
from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.texts.tokenizer_rules import read_object
from trainer.blending.card import blend_card, name_of
from trainer.blending.choice import MANY, RULE, Side, by_interval, report
from trainer.blending.halves import Halves, halves_of
from trainer.blending.measured import Measured, PerQuery
from trainer.blending.pair import Pair, open_pair
from trainer.blending.rules import Rules
from trainer.blending.shares import Tell, best_share
from trainer.blending.weights import Between, between
from trainer.config.sections import ModelConfig
from trainer.distributed.device import choose_kernels, pick_device
from trainer.evaluation.measure import evaluate_engine
from trainer.inference.probe import Probe, take_probe
from trainer.inference.reading import describe, facts_of
from trainer.model.save import save_embedder
from trainer.model_folder.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAINING_CONFIG, weights_sha256, zero_tensors
from trainer.run_dir.checkpoint_writer import WriteModel, write_output
from trainer.run_dir.layout import damage, measured_file
from trainer.run_dir.verdict import BLEND

FEW_QUERIES = 50  # in a half: below it, a choice and its report say little
# Raises Failed unless a folder embeds as its probe records; returns lines to print. exporting/proof.py has one.
Prove = Callable[[Path, Probe, bool], list[str]]


def blend(
    base: ModelConfig, tuned: ModelConfig, domain: RetrievalSet, general: RetrievalSet | None, output: Path,
    rules: Rules, device: str = "auto", prove: Prove | None = None, halves: Sequence[Halves] | None = None,
) -> dict:  # fmt: skip
    """Writes the folder of the chosen share; returns what blend.json in it holds. In one process.

    What is measured is kept in measured_file(output), so a killed call goes on when it is repeated. A finished output
    of the same call is not written again. prove: checks the folder in a fresh process before it is finished. halves: of
    each set, in place of those that rules.seed draws. Raises BadInput for folders or sets that do not fit, Failed where
    the written folder would not embed as measured.
    """
    import torch

    pair, device = open_pair(base, tuned), torch.device(pick_device(device))
    choose_kernels(device.type)
    models = key_of_models(pair, device.type)
    sets = [data for data in (domain, general) if data is not None]
    sides = [Side(data, half, {}) for data, half in zip(sets, halves or [_halves(data, rules.seed) for data in sets])]
    by = {"halves": [list(map(list, half)) for half in halves]} if halves else {"seed": rules.seed}
    asked = {"models": models, "sets": [side.key for side in sides], "shares": rules.measured, "rule": RULE}
    asked |= {"most_lost": rules.most_lost} | by
    if (finished := _finished(output, asked)) is not None:
        say(f"{output}: is finished; nothing is measured again")
        return finished
    for line in describe({base.path: pair.spec}):
        say(line)
    say_rule(sides, rules, say)
    measured = Measured(measured_file(output), models)
    model = between(pair, device)

    def evaluate(side: Side) -> PerQuery:
        return evaluate_engine(model.engine, copy.deepcopy(pair.tokenizer), pair.spec, side.data)

    model.set(best_share(model, sides, rules, measured, evaluate, say))
    result = result_of(pair, sides, model.share, rules, name_of(tuned.path)) | {"asked": asked}
    _write(output, model, pair, result, prove)
    return result


def result_of(pair: Pair, sides: Sequence[Side], chosen: float, rules: Rules, tuned: str) -> dict:
    """Returns what blend.json holds. tuned: how it names the tuned model."""
    kind = "scale of an adapter" if pair.is_adapter else "weights of whole models"
    names = {"base": name_of(pair.base_name), "tuned": tuned, "kind": kind, "most_lost": rules.most_lost}
    bound = sides[1] if len(sides) > 1 else None
    return names | report(sides[0], bound, chosen, rules.most_lost) | {"read": facts_of(pair.spec)}


def _halves(data: RetrievalSet, seed: int) -> Halves:
    halves = halves_of(data, seed)
    if min(map(len, halves)) < FEW_QUERIES:
        say(
            f"{data.name}: only {len(halves[0])} queries choose and {len(halves[1])} report: with fewer than "
            f"{FEW_QUERIES}, both say little"
        )
    return halves


def say_rule(sides: Sequence[Side], rules: Rules, tell: Tell) -> None:
    """Tells that few queries of the general set make the bound stricter."""
    general = sides[1] if len(sides) > 1 else None
    if general and by_interval(general):
        tell(
            f"{general.data.name}: {len(general.halves[0])} queries choose, fewer than {MANY}: a share must hold the "
            f"bound of {rules.most_lost:g} with the lower end of its 95 % interval"
        )


def key_of_models(pair: Pair, device: str, dtype: str = "") -> str:
    """Returns the sha256 of all that decides an embedding of any share. dtype: of the products, if it is not fp32."""
    folders, spec = (pair.base, pair.tuned), pair.spec
    named = [folder / name for folder in folders for name in ("config.json", ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    named += [path for folder in folders if spec.own_code for path in sorted(folder.rglob("*.py"))]
    facts = [weights_sha256(folder) for folder in folders] + [sha256_of(path) for path in named if path.is_file()]
    facts += [pair.tokenizer.backend_tokenizer.to_str(), facts_of(spec), device + dtype]
    facts += [[d.inputs, d.outputs, d.bias, d.activation] for d in spec.dense]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _finished(output: Path, asked: dict) -> dict | None:
    """Returns the result of a finished output of the same call; None where there is no output. Raises BadInput."""
    if not (blocked := existing_parent(output.parent)).is_dir():
        raise BadInput(f"--output: {blocked} is a file, so {output} cannot be written below it")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    result = read_object(output / BLEND) if output.is_dir() else {}
    if result.get("asked") == asked and damage(output) is None:
        return result
    why = "is of another call, or was changed since" if result else "exists and is not an empty folder"
    raise BadInput(f"--output: {output} {why}; name a new one")


def writer_of(model: Between, pair: Pair, step: int | None = None) -> tuple[WriteModel, Probe]:
    """Returns the writer of the share that the model is set to, and the embeddings that its folder records. step: that
    of the tuned model, if it is known. Collective; the writer is for rank 0."""
    probe = replace(take_probe(model.engine, copy.deepcopy(pair.tokenizer), pair.spec), step=step)
    weights = model.weights()

    def write(folder: Path, _: dict) -> None:
        save_embedder(folder, weights, model.engine.embedder, pair.tokenizer, pair.spec)
        if (pair.tuned / TRAINING_CONFIG).is_file():
            shutil.copyfile(pair.tuned / TRAINING_CONFIG, folder / TRAINING_CONFIG)
        replace(probe, zeros=zero_tensors(folder)).write(folder)

    return write, probe


def _write(output: Path, model: Between, pair: Pair, result: dict, prove: Prove | None) -> None:
    """Writes the folder of the share that the model is set to, whole or not at all."""
    trust = pair.config.trust_remote_code
    write_model, probe = writer_of(model, pair)

    def write(folder: Path) -> None:
        write_model(folder, {})
        (folder / "README.md").write_text(blend_card(output, pair, result), encoding="utf-8")
        write_json(folder / BLEND, result)
        for line in prove(folder, replace(probe, zeros=zero_tensors(folder)), trust) if prove else ():
            say(line)

    write_output(output, write)
