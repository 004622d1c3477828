"""`plan --after RUN`: holds the plan of a run against what the run logged."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.texts.tokenizer_rules import read_object
from launch.plan.estimate import Candidate, Estimate, Outlook, Ranks, estimate
from trainer.config.loading import parse_config
from trainer.config.sections import RunConfig
from trainer.run_dir.log import LOG, read_events

WARMING = 2  # steps that are left out: allocators, connections and caches are made in them
FEWEST = 3  # steps that must remain
GIB = 2**30
WIDE = 0.25  # share by which a figure may be off before it is said


@dataclass(frozen=True)
class Run:
    """A run as its directory records it."""

    config: RunConfig  # with the device and the micro_batch_tokens that it took
    engine: str
    processes: int
    device: str
    seconds: float  # median of a step
    tokens: float  # mean of a step, over all ranks
    memory: float  # peak bytes of rank 0: allocated on a GPU, elsewhere resident, with the libraries
    steps: int  # that were looked at


@dataclass(frozen=True)
class Compared:
    """A figure of the plan beside the logged one."""

    name: str
    planned: float
    logged: float

    @property
    def off(self) -> float:
        """Share by which the plan is above (or below) the logged figure."""
        return self.planned / self.logged - 1


def read_run(path: str) -> Run:
    """Reads run.json and logs.jsonl of a run directory. Raises BadInput."""
    folder = Path(path)
    recorded = read_object(folder / "run.json")
    try:
        config = parse_config(recorded["config"], str(folder / "run.json"))
        topology, budget = recorded["topology"], recorded["plan"]["micro_batch_tokens"]
        who = topology["engine"], topology["processes"], topology["device"]
    except (KeyError, TypeError) as error:
        raise BadInput(f"--after: {folder} holds no run of ours ({type(error).__name__}: {error})") from None
    events = [event for event in read_events(folder / LOG) if event["event"] == "step" and not event.get("skipped")]
    if len(events) < WARMING + FEWEST:
        raise BadInput(f"--after: {folder} logged {len(events)} step(s); {WARMING + FEWEST} are needed")
    events = events[WARMING:]
    seconds = statistics.median(event["tokens"] / event["tokens_per_second"] for event in events)
    tokens = statistics.mean(event["tokens"] for event in events)
    memory = max(event["memory_gib"] for event in events) * GIB
    made = {"micro_batch_tokens": budget, "device": topology["device"]}
    config = config.model_copy(update={"train": config.train.model_copy(update=made)})
    return Run(config, *who, seconds, tokens, memory, len(events))


def compare(run: Run, outlook: Outlook, hardware) -> tuple[Estimate, list[Compared]]:
    """Plans the run as it was made, and compares."""
    variant = outlook.variants[0]
    candidate = Candidate(run.engine, run.config.train.gradient_checkpointing, variant.bits)
    found = estimate(outlook, variant, candidate, hardware)
    if found.refused:
        raise BadInput(f"--after: {found.refused}")
    tokens = statistics.mean(float(batch.tokens.sum()) for batch in outlook.batches)
    need = found.need.total - (found.need.process if run.device == "cuda" else 0)  # the context is no tensor
    return found, [
        Compared("seconds of a step", found.seconds.total, run.seconds),
        Compared("tokens of a step", tokens, run.tokens),
        Compared("bytes of a rank", need, run.memory),
    ]


def render_after(path: str, run: Run, found: Estimate, compared: list[Compared]) -> str:
    lines = [
        f"{path}: {found.candidate}, {run.processes} rank(s) on {run.device}, {run.steps} steps",
        f"{'':20} {'planned':>12} {'logged':>12} {'off by':>8}",
    ]
    lines += [f"{one.name:20} {one.planned:12.4g} {one.logged:12.4g} {one.off:+8.0%}" for one in compared]
    return "\n".join([*lines, *_verdict(run, found, compared)])


def _verdict(run: Run, found: Estimate, compared: list[Compared]) -> list[str]:
    lines = []
    seconds, tokens, memory = compared
    if abs(seconds.off) > WIDE:
        largest = max(found.seconds.shown().items(), key=lambda item: item[1] if item[0] != "total" else 0.0)[0]
        faster = "slower" if seconds.off < 0 else "faster"
        lines.append(
            f"the run is {faster} than planned; {largest} is the largest term of the plan. Measure the machine "
            "(python -m launch doctor --measure --output machine.json) and plan with --machine machine.json"
        )
    if abs(tokens.off) > WIDE:
        lines.append("the first batches of the data hold other lengths than the later ones")
    if run.device != "cuda":
        lines.append("bytes logged are those of the whole process, with Python and its libraries")
    elif abs(memory.off) > WIDE:
        lines.append("memory is off: kernels' own memory and the allocator's remainders are not planned")
    return lines or ["within a quarter everywhere"]


def check_ranks(run: Run, ranks: Ranks) -> None:
    """Raises BadInput where the flags describe another number of ranks than the run had."""
    if ranks.count != run.processes:
        raise BadInput(
            f"--after: the run had {run.processes} rank(s); say --nodes and --gpus-per-node (given: {ranks.count})"
        )
