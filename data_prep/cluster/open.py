"""The workers that a command asks for: processes of this machine, or a Ray cluster."""

from collections.abc import Iterable
from pathlib import Path

from data_prep.common.workers import Workers
from data_prep.remote.location import Location


def problems_of(count: int, on: str | None) -> list[str]:
    """Returns the problems of --workers and --on that show without starting anything."""
    problems = [] if count >= 1 else [f"--workers {count}: must be 1 or more"]
    if on not in (None, "ray") and not on.startswith("ray://"):
        problems.append(f"--on {on}: must be ray, or ray://HOST:PORT of a Ray client server")
    return problems


def open_workers(
    count: int, on: str | None, inputs: Iterable[Path | Location] = (), output: Path | None = None
) -> Workers:
    """Returns workers, to be entered: `count` processes, or those of the cluster that `on` names, see RayWorkers.

    inputs: what tasks read. output: tasks write beside it. Absolute paths.
    """
    if on is None:
        return Workers(count)
    from data_prep.cluster.ray_workers import RayWorkers

    return RayWorkers(on, inputs, output)
