"""Measures the shares between two models one after the other, in one process or over all ranks, and chooses one."""

from collections.abc import Callable, Sequence
from functools import partial

from trainer.blending.choice import Side, choose, refusals
from trainer.blending.measured import Measured, PerQuery
from trainer.blending.rules import Rules
from trainer.blending.weights import Between

# Evaluates the model, as it is set, on a set: every metric of every query, on rank 0. Collective.
Evaluate = Callable[[Side], PerQuery | None]
Tell = Callable[[str], None]  # gets a line of progress; on rank 0


def best_share(
    model: Between, sides: Sequence[Side], rules: Rules, measured: Measured | None, evaluate: Evaluate, tell: Tell
) -> float:
    """Returns the share that the rule chooses; rank 0 has the metrics of all others in Side.by_share. Collective.

    sides: of the domain, and of the general set if there is one. measured: what is kept of earlier calls; None on other
    ranks than 0.
    """
    bound = sides[1] if len(sides) > 1 else None
    on_first, refused = model.engine.world.on_first, False
    for share in rules.measured:
        if refused:
            tell(f"share {share:g}: not measured, because a smaller one is refused")
            continue
        for side in sides:
            _measure(model, share, side, measured, evaluate, tell)
        tell(on_first(partial(_line, share, sides)))
        refused = on_first(partial(_is_refused, bound, share, rules.most_lost))
    return on_first(partial(choose, sides[0], bound, rules.most_lost))


def _is_refused(bound: Side | None, share: float, most_lost: float) -> bool:
    """Returns True for a share between base and tuned model that loses too much on the general set."""
    return 0.0 < share < 1.0 and refusals(bound, [share], most_lost)[share] is not None


def _measure(
    model: Between, share: float, side: Side, measured: Measured | None, evaluate: Evaluate, tell: Tell
) -> None:
    """Puts the metrics of a share into side.by_share on rank 0, measured now if they were not before. Collective."""
    world = model.engine.world

    def known() -> bool:
        values = measured.get(side.key, side.data, share)
        if values is not None:
            side.by_share[share] = values
        return values is not None

    if world.on_first(known):
        return
    tell(f"share {share:g}: measuring on {side.data.name}")
    model.set(share)
    values = evaluate(side)

    def keep() -> None:
        side.by_share[share] = values
        measured.put(side.key, side.data, share, values)

    world.on_first(keep)


def _line(share: float, sides: Sequence[Side]) -> str:
    means = (f"{side.metric} {side.mean(share, 0):.4f} on {side.data.name}" for side in sides)
    return f"share {share:g}: {', '.join(means)} (the queries that choose)"
