"""Run on every rank of a process group: all cells of one engine and world size, held against the reference.

A cell that hangs ends the process after LIMIT seconds, with a traceback of every thread.
"""

import faulthandler
import itertools
import json
import math
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from data_prep.mining.choice import Choice
from data_prep.mining.mine import Mining, mine
from data_prep.records import Record
from tests.multiprocess import cells, modes, released, rounded
from tests.multiprocess import planned as planned_runs
from tests.multiprocess.cells import SGD_LR, STEPS, TAU
from tests.multiprocess.dense import relative_error
from trainer.config.loading import load_config
from trainer.config.sections import LossConfig
from trainer.distributed.collectives import World
from trainer.distributed.stop import StopRequest
from trainer.engine import gradient_traffic
from trainer.engine.start import process_group, start
from trainer.inference.encode import encode, encode_share
from trainer.inference.team import Team
from trainer.inference.text_encoder import TextEncoder
from trainer.loss.objective import Objective
from trainer.preflight.inputs import Inputs
from trainer.ranking.retrieval import rank_set
from trainer.train import fit as real_fit
from trainer.train import setup as real_setup
from trainer.train import step as real_step

LIMIT = 120  # seconds a cell may take
EVERYTHING = 10**6  # tokens: no batch has as many
TIGHT = 150  # tokens: the longest text has 26
SMALL_BUCKET = 2**15  # bytes: several buckets even for the tiny model


def main(setting: str, engine: str, world: int, asked: list[dict], out: str) -> None:
    """Writes one JSON line per cell to `out` (rank 0). setting: the folder of setting.write_setting."""
    first = load_config(f"{setting}/{asked[0]['run']}.json")
    runtime = start(first, "run.json", engine, world)
    reference = Path(setting) / "dense.pt"
    dense = torch.load(reference, weights_only=False) if reference.exists() else {}
    with process_group(runtime, first.train.timeout_minutes):
        group = Group(Path(setting), Path(out).with_suffix(""), runtime, dense)
        for cell in asked:
            faulthandler.dump_traceback_later(cell.get("limit", LIMIT), exit=True)
            began = time.perf_counter()
            found = getattr(group, cell["kind"])(cell)
            faulthandler.cancel_dump_traceback_later()
            if runtime.is_main:
                found |= {
                    "cell": cell,
                    "engine": runtime.engine,
                    "world": world,
                    "seconds": time.perf_counter() - began,
                }
                with open(out, "a") as file:
                    file.write(json.dumps(found) + "\n")


def plain_sgd(module, optim, device):
    """In place of trainer.engine.optimizer.adamw: neither AdamW nor clipping can hide a wrong factor."""
    return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0)


class Group:
    """One method per kind of cell; each returns what the tests look at."""

    def __init__(self, setting: Path, out: Path, runtime, dense: dict):
        self.setting, self.out, self.runtime, self.dense = setting, out, runtime, dense
        self.world: World = runtime.world
        self.runs = itertools.count()

    @contextmanager
    def job(self, run: str, chunks: str, *overrides: str, sgd: bool = True):
        """A job as the trainer makes it. chunks: see cells.CHUNKS. sgd: plain, unclipped; else as the run file says."""
        more = [*overrides, *(["optim.max_grad_norm=null"] if sgd else [])]
        where = self.out / f"run{next(self.runs)}"
        config = load_config(self.setting / f"{run}.json", [f"output_dir={where}", *more])
        self.set_deepspeed(config, gather_all=chunks != "1 chunk")
        with ExitStack() as stack:
            if sgd:
                stack.enter_context(patch("trainer.engine.torch_engine.adamw", plain_sgd))
                stack.enter_context(patch("trainer.engine.zero_engine.adamw", plain_sgd))
            if chunks == "4 kept":
                stack.enter_context(patch("trainer.engine.gradient_traffic.BUCKET_BYTES", SMALL_BUCKET))
                stack.enter_context(patch("trainer.model.embedder.why_padded", lambda *_: "test"))  # padded texts, then
            job = real_setup.prepare(self.runtime, Inputs(config), resume=False)
            budget = TIGHT if chunks == "tight" else self._budget_of_four(job)
            per_chunk, job.micro_batch_tokens = {
                "1 chunk": (EVERYTHING, EVERYTHING),
                "4 chunks": (budget, budget),
                "4 kept": (budget, EVERYTHING),
                "tight": (budget, budget),
            }[chunks]
            stack.enter_context(patch("trainer.train.step.CHUNK_TOKENS", {"cpu": per_chunk}))
            yield job
            job.log.close()
        self.forget()

    def forget(self) -> None:
        """Lets go of the engine: accelerate would hold every one."""
        if self.runtime.accelerator:
            self.runtime.accelerator._models.clear()
            self.runtime.accelerator._optimizers.clear()

    def set_deepspeed(self, config, gather_all: bool) -> None:
        accelerator = self.runtime.accelerator  # None for one process without DeepSpeed
        plugin = accelerator and accelerator.state.deepspeed_plugin
        if plugin:
            plugin.deepspeed_config["gradient_clipping"] = config.optim.max_grad_norm or 0.0
            # By default ZeRO-3 leaves small parameters whole, which all of the tiny model's are.
            threshold = 0 if gather_all else 10**5
            plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = threshold

    def _budget_of_four(self, job) -> int:
        """Tokens with which the busiest rank has four chunks of a whole batch."""
        lengths, packed = [len(ids) for ids in self.batch(job, 0).tokens], job.engine.embedder.packing is not None
        least = next(b for b in itertools.count(max(lengths)) if len(real_step.make_chunks(lengths, b, packed)) <= 4)
        return int(self.world.gather_ints([least]).max())

    def batch(self, job, step: int):
        return next(job.data.batches(step, step + 1, self.world.rank, self.world.size))[1]

    def gradient(self, job, batch, objective=None):
        """The real step's gradient (left in the engine), its statistics, and how many collectives it made."""
        before = self.world.calls
        objective = objective or job.objectives[batch.source]
        stats = real_step.compute_gradients(job.engine, batch, objective, job.micro_batch_tokens)
        return job.engine.gradients(), stats, self.world.calls - before

    def sgd_step(self, job) -> dict:
        """Returns what one step changes, by parameter name (rank 0)."""
        before = {name: t.clone() for name, t in job.engine.weights().items()}
        job.engine.apply(SGD_LR)
        return {name: t - before[name] for name, t in job.engine.weights().items()}

    def error(self, got: dict, expected: dict) -> float | None:
        if not self.runtime.is_main:
            return None
        assert not any(got[name].any() for name in got.keys() - expected.keys()), "something else changed"
        return relative_error({name: got[name] for name in expected}, expected)

    def table(self, cell: dict) -> dict:
        """Gradient and SGD update of a whole batch, then of a last one; 20 clipped AdamW steps."""
        reference, found = self.dense[cell["run"]], {"gradient": [], "update": [], "temperature_grad": [], "calls": []}
        with self.job(cell["run"], cell["chunks"], *cell.get("options", ())) as job:
            objective = next(iter(job.objectives.values()))
            sizes = [p.numel() * p.element_size() for p in job.engine.named.values()]
            buckets = count_buckets(sizes, gradient_traffic.BUCKET_BYTES) if self.runtime.engine == "ddp" else 0
            found["planned"] = real_step.planned_collectives(self.world.size, objective, buckets)
            for expected in (reference["whole"], reference["last"]):
                batch = self.batch(job, expected["step"])
                forward = real_step.compute_loss(job.engine, batch, objective)
                gradient, stats, calls = self.gradient(job, batch)
                assert math.isclose(forward, stats.loss, rel_tol=1e-5), (self.world.rank, forward, stats.loss)
                found["calls"].append(calls)
                found["gradient"].append(self.error(gradient, expected["gradient"]))
                found["update"].append(self.error(self.sgd_step(job), expected["update"]))
                if objective.config.temperature_lr:
                    wanted = expected["temperature_grad"]
                    # it is a small difference of large sums over the batch: their size is that of loss / temperature
                    size = max(abs(wanted), stats.loss / objective.config.temperature)
                    found["temperature_grad"].append(abs(stats.temperature_grad - wanted) / size)
            found["chunks"] = self._chunks(job, reference["whole"]["step"])
            if cell["planted"]:
                found["planted"] = self.planted(job, reference["whole"]["step"])
        if cell["adamw"]:
            found |= self.adamw(cell)
        return found

    def reduced(self, cell: dict) -> dict:
        """ZeRO-3 with the gradient reduced by chunks: the table's cell, the most numbers of gradients on a rank at once
        and between chunks, and the error where DeepSpeed counts backward passes by itself."""
        cell = cell | {"options": ["train.gradient_reduction=chunk"]}
        plugin = self.runtime.accelerator.state.deepspeed_plugin
        with patch.dict(plugin.deepspeed_config["zero_optimization"], reduce_bucket_size=cell["bucket"]):
            found = self.table(cell)
            expected = self.dense[cell["run"]]["whole"]
            with self.job(cell["run"], cell["chunks"], *cell["options"]) as job:
                found |= self._live_gradients(job, expected["step"])
            with (
                self.job(cell["run"], cell["chunks"], *cell["options"]) as job,
                patch("trainer.engine.zero_engine.ZeroEngine._count_chunk", lambda engine: None),
            ):
                gradient, _, _ = self.gradient(job, self.batch(job, expected["step"]))
                found["uncounted"] = self.error(gradient, expected["gradient"])
        return found

    def _live_gradients(self, job, step: int) -> dict:
        trained, live, left = list(job.engine.named.values()), [], []

        def count() -> int:
            return sum(p.grad.numel() for p in trained if p.grad is not None)

        for parameter in trained:  # behind DeepSpeed's own hook
            parameter.register_post_accumulate_grad_hook(lambda _: live.append(count()))
        backward = job.engine.backward
        with patch.object(
            job.engine, "backward", lambda *args, **last: (backward(*args, **last), left.append(count()))
        ):
            self.gradient(job, self.batch(job, step))
        sizes = [p.ds_numel for p in trained]
        return {"live": max(live), "left": max(left), "largest": max(sizes), "whole": sum(sizes)}

    adapter = table  # of an adapter's parameters
    offloaded = table  # on the engines with offload

    def _chunks(self, job, step: int) -> list[int]:
        """Counts the busiest rank's chunks, and those of them that are embedded twice."""
        lengths, packed = [len(ids) for ids in self.batch(job, step).tokens], job.engine.embedder.packing is not None
        chunks = real_step.make_chunks(lengths, real_step.CHUNK_TOKENS["cpu"], packed)
        kept = real_step.kept_chunks([real_step.cost_of(c, lengths, packed) for c in chunks], job.micro_batch_tokens)
        return self.world.gather_ints([len(chunks), len(chunks) - len(kept)]).amax(dim=0).tolist()

    def planted(self, job, step: int) -> list[list]:
        """Errors with wrong factors, against the right gradient of the same weights: all must be seen.

        Of the gradient with the one factor, of gradient and update with the other.
        """
        found, (first, second) = [], planted(self.world.size)
        right, _, _ = self.gradient(job, self.batch(job, step))
        job.engine.apply(0.0)  # done with it: the weights stay
        job.engine.gradient_factor *= first
        wrong, _, _ = self.gradient(job, self.batch(job, step))
        found.append([self.error(wrong, right)])
        job.engine.apply(0.0)
        job.engine.gradient_factor *= second / first
        wrong, _, _ = self.gradient(job, self.batch(job, step))
        rightly = {name: -SGD_LR * gradient for name, gradient in right.items()}
        found.append([self.error(wrong, right), self.error(self.sgd_step(job), rightly)])
        job.engine.gradient_factor /= second
        return found

    def adamw(self, cell: dict) -> dict:
        """The trainer's own loop; its log is what a user sees. cell["trained_in"]: other chunks than the gradients'."""
        batches = []

        def recording(engine, batch, *rest):
            counts = self.world.gather_ints([batch.rows])[:, 0].tolist()
            ids = self.world.gather_rows(torch.tensor(batch.row_ids, dtype=torch.int64), counts)
            batches.append([batch.source, sorted(ids.tolist())])
            return real_step.compute_gradients(engine, batch, *rest)

        with (
            self.job(cell["run"], cell.get("trained_in", cell["chunks"]), *cell.get("options", ()), sgd=False) as job,
            patch("trainer.train.fit.compute_gradients", recording),
            patch("trainer.train.fit.end_epoch", lambda job: None),  # checkpoints are tested elsewhere
        ):
            real_fit.fit(job, StopRequest())
            steps = job.log.events("step") if self.runtime.is_main else []
            assert not self.runtime.is_main or len(steps) == STEPS
            return {
                "losses": [event["loss"] for event in steps],
                "norms": [event["grad_norm"] for event in steps],
                "temperature": [learned.value for learned in job.temperatures.values()],
                "batches": batches,
            }

    def sources(self, cell: dict) -> dict:
        return self.adamw({**cell, "chunks": "4 chunks"})

    def planned(self, cell: dict) -> dict:
        return planned_runs.run_cell(self, cell)

    def rounded(self, cell: dict) -> dict:
        return rounded.run_cell(self, cell)

    def released(self, cell: dict) -> dict:
        return released.run_cell(self, cell)

    def mode(self, cell: dict) -> dict:
        return modes.run_cell(self, cell)

    def loads(self, cell: dict) -> dict:
        """Batches whose ranks have very different work, or none at all: [name, relative error of the gradient].

        cell["losses"]: which of the reference's two, both where it says nothing.
        """
        found = []
        ids, whole = self.dense["loads"]["ids"], len(self.dense["loads"]["ids"])  # longest texts first
        for run in cell.get("losses", ("infonce+kl", "user")):
            with self.job(run, "tight") as job:
                for name, sizes in uneven_loads(whole, self.world.size).items():
                    mine = torch.tensor(ids).split(sizes)[self.world.rank].tolist()
                    batch = job.data.make_batch(mine, job.data.rows.take(mine), [0] * len(mine), whole, 1, "pairs")
                    gradient, _, _ = self.gradient(job, batch)
                    job.engine.apply(0.0)  # done with it: the weights stay
                    found.append([f"{run}, {name}", self.error(gradient, self.dense["loads"][run])])
        return {"loads": found}

    def retrieval(self, cell: dict) -> dict:
        """The documents that each query of a set finds, with scores, by the model in its engine (rank 0)."""
        data, found = cells.retrieval_set(), {}
        with (
            self.job("infonce", "4 chunks") as job,
            patch("trainer.inference.encode.CHUNK_TOKENS", {"cpu": TIGHT}),
            patch("trainer.ranking.search.QUERIES", 5),
        ):
            engine, reader, model = job.engine, job.model.reader, job.engine.embedder
            queries = encode(engine, reader, data.query_texts, "", 32)
            documents = encode_share(engine, reader, data.doc_texts, "", 32)
            assert model.training, "the next step trains"
            for run in rank_set(self.world, queries, documents.vectors, documents.rows, data, engine.device, 15):
                found |= {query: list(hits.items()) for query, hits in run.items()}
            counts = self.world.gather_ints([len(documents.rows)])[:, 0].tolist()
        return {"found": found, "documents": counts}

    def mined(self, cell: dict) -> dict:
        """The records that the ranks mine together (rank 0)."""
        config = load_config(self.setting / f"{cell['run']}.json").model
        team = Team(TextEncoder(config, runtime=self.runtime))
        rows, out = self.out / "rows.jsonl", self.out / "mined.jsonl"
        lines = [json.dumps(row | {"teacher_scores": None}) + "\n" for row in cells.records(False)]
        self.world.on_first(lambda: (self.out.mkdir(exist_ok=True), rows.write_text("".join(lines))))
        mining = Mining("dense", Choice(k=3, relative_margin=0.01))
        team.lead(lambda: mine([rows], out, mining, encoder=team, searcher=team))
        self.forget()
        return {"mined": out.read_text().splitlines()} if self.runtime.is_main else {}

    def dropout(self, cell: dict) -> dict:
        """Compares the gradients of kept and of re-embedded chunks, bit by bit, and those of another seed."""
        with self.job("infonce", "4 kept", "model.dropout=model") as job:
            batch = self.batch(job, 0)
            kept, _, _ = self.gradient(job, batch)
            job.engine.apply(0.0)
            with patch("trainer.train.step.kept_chunks", lambda *_: set()):
                again, _, _ = self.gradient(job, batch)
            job.engine.apply(0.0)
            batch.seed += 1000
            other, _, _ = self.gradient(job, batch)
            equal = all(torch.equal(kept[name], again[name]) for name in kept)
            return {"equal": equal, "other_seed": relative_error(other, kept)}

    def overlapped(self, cell: dict) -> dict:
        """Compares gradients that are sent during the last backward pass with those sent after it, bit by bit."""
        with self.job("infonce", "4 kept") as job:  # in small buckets
            batch, traffic = self.batch(job, 0), job.engine.traffic
            sent, backward = [], job.engine.backward
            with patch.object(
                job.engine, "backward", lambda *args, **last: (backward(*args, **last), sent.append(traffic._sent))
            ):
                during, _, _ = self.gradient(job, batch)
            job.engine.apply(0.0)
            with patch.object(job.engine, "backward", lambda surrogate, last: backward(surrogate)):
                after, _, _ = self.gradient(job, batch)
            equal = all(torch.equal(during[name], after[name]) for name in after)
            return {"equal": equal, "sent": sent, "buckets": len(traffic.buckets)}

    def duplicates(self, cell: dict) -> dict:
        """Planted duplicates: the largest gradient where only they are negatives; and a batch against the reference."""
        found: dict = {"twins": {}, "mixed": {}}
        with self.job("infonce", "1 chunk") as job:
            for name, records in self.dense["duplicates"]["twins"].items():
                for masked in (True, False):
                    gradient, stats, _ = self.gradient(job, *self._planted_batch(job, records, masked))
                    job.engine.apply(0.0)
                    largest = max(t.abs().max().item() for t in gradient.values())
                    found["twins"][f"{name}, mask {masked}"] = [stats.loss, largest]
            mixed = self.dense["duplicates"]["mixed"]
            for name, (directions, masked, expected) in mixed["gradients"].items():
                given = self._planted_batch(job, mixed["records"], masked, directions)
                gradient, stats, _ = self.gradient(job, *given)
                job.engine.apply(0.0)
                found["mixed"][name] = [self.error(gradient, expected), stats.values["masked_negatives"]]
        return found

    def rules(self, cell: dict) -> dict:
        """By rule about negatives: errors of a whole and a last batch, masked candidates, collectives planned and made,
        and the errors with planted faults: a wrong factor, and the guide's embeddings of other texts.

        cell["rules"]: which of them, all where it says nothing.
        """
        found = {}
        with self.job("guided", "4 chunks") as job:
            guide, sizes = job.objectives["pairs"].guide, [p.nbytes for p in job.engine.named.values()]
            buckets = count_buckets(sizes, gradient_traffic.BUCKET_BYTES) if self.runtime.engine == "ddp" else 0
            for name in cell.get("rules", self.dense["rules"]):
                rule = self.dense["rules"][name]
                objective = Objective(LossConfig(temperature=TAU, **rule["loss"]), normalised=True, guide=guide)
                planned = real_step.planned_collectives(self.world.size, objective, buckets)
                errors, masked, calls = [], [], []
                for kind in ("whole", "last"):
                    error, stats, made = self._rule_error(job, objective, rule[kind])
                    errors.append(error)
                    masked.append(stats.values["masked_negatives"])
                    calls.append(made)
                # a user's function does not divide by the rows
                factors = planted(self.world.size)[:1] if [*objective.terms] == ["infonce"] else ()
                faults = [self._rule_error(job, objective, rule["whole"], factor)[0] for factor in factors]
                shuffled = None
                if objective.guided:
                    mixed = Objective(objective.config, True, guide=lambda tokens: guide(tokens).flip(0))
                    shuffled = self._rule_error(job, mixed, rule["whole"])[0]
                found[name] = {"errors": errors, "masked": masked, "planned": planned, "calls": calls,
                               "faults": faults, "shuffled": shuffled}  # fmt: skip
        return {"rules": found}

    def _rule_error(self, job, objective: Objective, expected: dict, factor: float = 1.0):
        """(error of the gradient, statistics, collectives); factor: a wrong one of the loss."""
        batch = self.batch(job, expected["step"])
        batch.global_rows = batch.global_rows * factor
        gradient, stats, calls = self.gradient(job, batch, objective)
        job.engine.apply(0.0)
        return self.error(gradient, expected["gradient"]), stats, calls

    def _planted_batch(self, job, records: list[dict], masked: bool, directions: str = "query_to_doc"):
        whole = list(range(len(records)))
        mine = [part.tolist() for part in torch.tensor(whole).tensor_split(self.world.size)][self.world.rank]
        rows = [Record(**records[i]) for i in mine]
        batch = job.data.make_batch(mine, rows, [0] * len(mine), len(whole), seed=1)
        config = LossConfig(temperature=0.05, mask_duplicates=masked, directions=directions)
        return batch, Objective(config, normalised=True)


def planted(world: int) -> tuple[float, float]:
    """The wrong factors that peers' gradients have: W and 1/W."""
    factor = float(max(2, world))
    return factor, 1 / factor


def count_buckets(sizes: list[int], limit: int) -> int:
    """Counts the buckets that tensors of these bytes fill, each closed once it holds `limit` or more."""
    buckets = held = 0
    for size in sizes:
        held += size
        if held >= limit:
            buckets, held = buckets + 1, 0
    return buckets + (held > 0)


def uneven_loads(rows: int, world: int) -> dict[str, list[int]]:
    """Rows of each rank, of a batch sorted by length: the longest texts come first."""
    idle = [0] * (world - 2)
    return {
        "rank 0 has the long texts": [rows - 4, 4, *idle],
        "rank 0 has all": [rows, 0, *idle],
        "the last rank has all": [*idle, 0, rows],
    }
