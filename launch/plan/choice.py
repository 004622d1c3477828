"""Chooses a candidate, says why, and where nothing fits, what would."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from data_prep.common.errors import BadInput
from launch.plan.cost import communication_seconds
from launch.plan.estimate import Estimate, Outlook, Ranks, candidates, look, traffic_of
from launch.plan.hardware import Hardware
from launch.plan.memory import HEADROOM, shown
from trainer.config.sections import LoraConfig, RunConfig
from trainer.distributed.engines import ENGINES

NEAR = 1.05  # candidates whose seconds differ by less are equal: the estimate is no better than that
SHORTEST = 32  # tokens of a text, where shorter texts may fit
SLOWER = 1.02  # times the seconds on fewer ranks, from which more ranks are said to be slower


@dataclass(frozen=True)
class Choice:
    """The candidate to take; None if none fits."""

    estimate: Estimate | None
    reason: str
    changes: tuple[str, ...] = ()  # that would fit, the cheapest first


def simplicity(one: Estimate) -> tuple:
    """Sorts the simplest first: the base as it is, the engine with the fewest parts, nothing computed twice."""
    return one.candidate.bits is not None, ENGINES.index(one.engine), one.candidate.recompute, one.again or 0.0


def choose(estimates: list[Estimate], asked: str = "auto") -> Choice:
    """Returns the candidate of the least seconds per step that fits; among near equals the simplest.

    asked: an engine, or auto. Raises BadInput for an engine that these ranks do not have, or that refuses the run.
    """
    if asked != "auto":
        estimates = _of_engine(estimates, asked)
    fitting = [one for one in estimates if one.fits]
    if not fitting:
        return Choice(None, _short(estimates))
    fastest = min(fitting, key=lambda one: one.seconds.total)
    near = [one for one in fitting if one.seconds.total <= NEAR * fastest.seconds.total]
    chosen = min(near, key=simplicity)
    return Choice(chosen, _reason(chosen, fastest, fitting))


def _of_engine(estimates: list[Estimate], asked: str) -> list[Estimate]:
    of_it = [one for one in estimates if one.engine == asked]
    if not of_it:
        known = ", ".join(dict.fromkeys(one.engine for one in estimates))
        raise BadInput(f"--engine: {asked} is no engine for these ranks; {known} are")
    if all(one.refused for one in of_it):
        raise BadInput(f"--engine: {of_it[0].refused}")
    return of_it


def _reason(chosen: Estimate, fastest: Estimate, fitting: list[Estimate]) -> str:
    name, seconds = str(chosen.candidate), chosen.seconds.total
    if len(fitting) == 1:
        return f"{name} is the only candidate that fits"
    if chosen is not fastest:
        return (
            f"{name} takes {seconds:.3g} s per step, less than {NEAR - 1:.0%} more than the fastest of the "
            f"{len(fitting)} candidates that fit ({fastest.candidate}, {fastest.seconds.total:.3g} s), and is simpler"
        )
    others = [one for one in fitting if one is not chosen]
    second = min(others, key=lambda one: one.seconds.total)
    return (
        f"{name} takes the fewest seconds per step of the {len(fitting)} candidates that fit: {seconds:.3g} s, "
        f"{second.candidate} {second.seconds.total:.3g} s"
    )


def _short(estimates: list[Estimate]) -> str:
    able = [one for one in estimates if not one.refused]
    if not able:
        return f"no engine can run this: {estimates[0].refused}"
    nearest = min(able, key=lambda one: one.need.total)
    return f"nothing fits: {nearest.candidate} comes nearest, and needs {shown(nearest.need.total)} per rank"


def shortage(estimates: list[Estimate], memory: int) -> int:
    """Returns the bytes by which the candidate of the least memory does not fit; 0 if none can run at all."""
    needs = [one.need.total for one in estimates if not one.refused]
    return max(0, round(min(needs) - HEADROOM * memory)) if needs else 0


def changes(outlook: Outlook, hardware: Hardware, asked: str) -> Iterator[str]:
    """Yields what would fit where nothing does, the cheapest first: on the same ranks, then on more of them."""
    finetune = outlook.config.model.finetune

    def fits(other: Outlook) -> bool:
        estimates = candidates(other, hardware)
        return any(one.fits for one in estimates if asked in ("auto", one.engine))

    for key, value in (("train.micro_batch_tokens", "auto"), ("train.gradient_checkpointing", True)):
        freed = _freed(outlook, key)
        if freed and fits(freed):
            shown_value = str(value).lower()
            yield f"{key}={shown_value}"
    if length := _length(outlook, fits):
        yield f"texts of at most {length} tokens (model.query_max_len, model.passage_max_len)"
    for name, wanted in (("lora", {}), ("qlora", {"quantization_bits": 4})):
        if finetune == "full" or (finetune == "lora" and name == "qlora"):
            other = _with_mode(outlook, name, wanted)
            if other and fits(other):
                yield f"model.finetune={name}: it trains adapters, not the whole model"
    if ranks := _more(outlook, fits):
        yield f"{ranks.count} ranks ({ranks.nodes} x {ranks.per_node}) in place of {outlook.ranks.count}"


def _freed(outlook: Outlook, key: str) -> Outlook | None:
    """Returns the run without a memory knob that the run file states; None where it does not state it."""
    name = key.partition(".")[2]
    train = outlook.config.train
    if name not in train.model_fields_set or getattr(train, name) in ("auto", True):
        return None
    stated = {field: getattr(train, field) for field in train.model_fields_set - {name}}
    config = outlook.config.model_copy(update={"train": type(train)(**stated)})
    return look(config, outlook.ranks)


def _with_mode(outlook: Outlook, finetune: str, more: dict) -> Outlook | None:
    values = outlook.config.model
    model = values.model_copy(update={"finetune": finetune, **more, "freeze": type(values.freeze)()})
    model = model if values.finetune != "full" else model.model_copy(update={"lora": LoraConfig()})
    config: RunConfig = outlook.config.model_copy(update={"model": model})
    try:
        return look(config, outlook.ranks)
    except BadInput:
        return None


def _length(outlook: Outlook, fits: Callable[[Outlook], bool]) -> int | None:
    """Returns the longest texts (a power of two) of which one chunk fits."""
    length = 1 << (max(1, outlook.longest - 1).bit_length() - 1)
    while length >= SHORTEST:
        if fits(replace(outlook, longest=length)):
            return length
        length //= 2
    return None


def _more(outlook: Outlook, fits: Callable[[Outlook], bool]) -> Ranks | None:
    """Returns the fewest ranks that fit: twice as many per node up to eight, then twice the nodes."""
    ranks = outlook.ranks
    if ranks.device == "mps":
        return None
    while 2 * ranks.count <= outlook.plan.batch_size:  # a rank without a row helps nobody
        in_node = ranks.per_node < 8 and ranks.nodes == 1
        more = {"per_node": 2 * ranks.per_node} if in_node else {"nodes": 2 * ranks.nodes}
        ranks = replace(ranks, **more)
        if fits(outlook.on(ranks)):
            return ranks
    return None


@dataclass(frozen=True)
class Scaled:
    """The same run on other numbers of ranks."""

    ranks: Ranks
    estimate: Estimate | None  # of the same batch; None: nothing fits, or a rank has no row
    grown_seconds: float | None  # of a batch that grows with the ranks, on the engine that was chosen


def scaling(outlook: Outlook, hardware: Hardware, chosen: Estimate, throughput: float | None) -> list[Scaled]:
    """Looks at powers of two of ranks, up to twice those that were asked for."""
    asked, table = outlook.ranks, []
    for ranks in _counts(asked):
        other = outlook.on(ranks)
        same = None
        if ranks.count <= outlook.plan.batch_size:
            same = choose(candidates(other, hardware, throughput)).estimate
        table.append(Scaled(ranks, same, _grown(outlook, other, hardware, chosen)))
    return table


def _counts(asked: Ranks) -> list[Ranks]:
    within = {2**n for n in range(asked.per_node.bit_length()) if 2**n < asked.per_node}
    nodes = {2**n for n in range((2 * asked.nodes).bit_length()) if 2**n <= 2 * asked.nodes} | {asked.nodes}
    counts = [replace(asked, nodes=1, per_node=count) for count in sorted(within)]
    counts += [replace(asked, nodes=count) for count in sorted(nodes)]
    return counts if asked.device != "mps" else [asked]


def _grown(outlook: Outlook, other: Outlook, hardware: Hardware, chosen: Estimate) -> float | None:
    """Seconds of a step in which each rank has the rows that it has now, however many ranks there are."""
    if other.ranks.count == 1 or outlook.ranks.count == 1:
        return None
    variant = next(v for v in outlook.variants if v.bits == chosen.candidate.bits)
    traffic = traffic_of(outlook, variant, chosen.candidate, chosen.budget)
    factor = (other.ranks.count - 1) * outlook.ranks.count / other.ranks.count / (outlook.ranks.count - 1)
    more = other.ranks.count / outlook.ranks.count  # documents
    traffic = replace(
        traffic, embeddings=traffic.embeddings * factor * more, reduced=traffic.reduced * factor,
        gathered=traffic.gathered * factor, scattered=traffic.scattered * factor,
    )  # fmt: skip
    own = chosen.seconds.total - chosen.seconds.communication
    return own + communication_seconds(traffic, hardware, other.ranks.nodes, other.ranks.per_node)


def too_many(table: list[Scaled], asked: Ranks, chosen: Estimate) -> list[str]:
    """Returns a warning if fewer ranks take fewer seconds for the same batch."""
    fewer = [row for row in table if row.estimate and row.ranks.count < asked.count]
    if not fewer:
        return []
    best = min(fewer, key=lambda row: row.estimate.seconds.total)
    seconds = best.estimate.seconds.total
    if chosen.seconds.total < SLOWER * seconds:
        return []
    return [
        f"warning: more ranks make it slower: {best.ranks.count} rank(s) ({best.ranks.nodes} x {best.ranks.per_node}, "
        f"{best.estimate.candidate}) take {seconds:.3g} s for this batch, {asked.count} take "
        f"{chosen.seconds.total:.3g} s; take fewer, or raise train.batch_size"
    ]
