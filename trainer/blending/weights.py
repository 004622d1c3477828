"""One model in memory whose weights are set to any share between a base and a tuned model.

- Whole models: (1 - share) x base + share x tuned, tensor by tensor, each read from its file when it is needed
  (WiSE-FT, Wortsman et al. 2021, arXiv:2109.01903; LM-Cocktail, Xiao et al. 2023, arXiv:2311.13534).
- An adapter: its scale. The base stays as it is, quantised or not, and is never copied.
- Share 0 is the base and share 1 the tuned model, to the last bit of every tensor that is set.
- Every rank has a whole copy, whatever engine trained the model. Rank 0 reads the files; the others get its numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_prep.common.files import check
from trainer.blending.pair import Pair
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.model import adapters
from trainer.model.build import build_embedder
from trainer.model.embedder import Embedder
from trainer.model.loading import Sources
from trainer.model_folder.files import weights_sha256
from trainer.model_folder.spec import ModelSpec


class Between:
    """The model, whole on every rank."""

    def __init__(self, engine: TorchEngine, move: Callable[[float], None], untrained: Callable[[float], dict]):
        """move: sets the engine's weights to a share. untrained: of the same share, tensors that no embedding sees."""
        self.engine, self._move, self._untrained = engine, move, untrained
        self.share: float | None = None

    def set(self, share: float) -> None:
        """Sets the weights. share: 0, the base, to 1, the tuned model. Collective."""
        if share != self.share:
            self.share = None  # while it is neither the one nor the other
            with torch.no_grad():
                self._move(share)
            self.share = share

    def weights(self) -> dict[str, Tensor]:
        """fp32 CPU tensors by name, as save_embedder takes them; empty on other ranks than 0."""
        return {} if self.engine.world.rank else self.engine.weights() | self._untrained(self.share)


@dataclass(frozen=True)
class _Place:
    """The ranks that hold the model, each on its device."""

    device: torch.device
    world: World
    dtype: torch.dtype | None

    @property
    def sources(self) -> Sources | None:
        """Takes the numbers of a model until an engine fills it; None: they are loaded at once."""
        return Sources(reads=self.world.rank == 0) if self.world.size > 1 else None

    def engine(self, embedder: Embedder) -> TorchEngine:
        return TorchEngine(embedder, OptimConfig(), self.world, self.device, self.dtype)


def between(pair: Pair, device: torch.device, world: World | None = None, dtype: torch.dtype | None = None) -> Between:
    """Loads the model. world: the ranks that hold it, by default this process alone. dtype: of the matrix products;
    None: fp32. Raises BadInput for folders between which nothing lies. Collective."""
    place = _Place(device, world or World(), dtype)
    return (_scaled if pair.is_adapter else _whole)(pair, place)


class _End:
    """One of two whole models: tensors that are read from its files one at a time."""

    def __init__(self, spec: ModelSpec, config: ModelConfig):
        self._sources = Sources(reads=True)
        embedder, self.untrained = build_embedder(spec, config, sources=self._sources)
        self.tensors = embedder.stored()  # hollow

    def read(self, name: str) -> Tensor:
        return self._sources.read(self.tensors[name]).detach()


def _whole(pair: Pair, place: _Place) -> Between:
    ends: list[_End] = []  # on rank 0

    def open_ends() -> None:
        ends.extend((_End(pair.base_spec, pair.base_config), _End(pair.spec, pair.config)))
        check(_unlike(*ends))

    place.world.on_first(open_ends)
    embedder, _ = build_embedder(pair.spec, pair.config, sources=place.sources)
    engine = place.engine(embedder)
    tensors = {name: tensor for name, tensor in embedder.stored().items() if tensor.is_floating_point()}

    def move(share: float) -> None:
        for name, tensor in tensors.items():
            if ends:
                tensor.data.copy_(torch.lerp(*(end.read(name).float() for end in ends), share))
            place.world.broadcast(tensor.data)

    def untrained(share: float) -> dict[str, Tensor]:
        base, tuned = (end.untrained for end in ends)
        return {
            name: torch.lerp(base[name], tensor, share) if name in base else tensor for name, tensor in tuned.items()
        }

    return Between(engine, move, untrained)


def _unlike(base: _End, tuned: _End) -> list[str]:
    problems = []
    for mine, other, side in ((base, tuned, "BASE"), (tuned, base, "TUNED")):
        if alone := sorted(mine.tensors.keys() - other.tensors.keys()):
            problems.append(f"tensors: {len(alone)} are in {side} only, among them {alone[0]}")
    for name in sorted(base.tensors.keys() & tuned.tensors.keys()):
        one, other = base.tensors[name], tuned.tensors[name]
        if one.shape != other.shape:
            problems.append(f"tensor {name}: BASE has the shape {[*one.shape]}, TUNED has {[*other.shape]}")
        elif not one.is_floating_point() and not torch.equal(base.read(name), tuned.read(name)):
            problems.append(f"tensor {name}: holds whole numbers that differ")
    return problems


def _scaled(pair: Pair, place: _Place) -> Between:
    embedder, _ = build_embedder(pair.spec, pair.config, None, place.device, place.dtype, sources=place.sources)
    embedder.adapter.base = str(Path(pair.base_name).resolve()) if Path(pair.base_name).exists() else pair.base_name
    embedder.adapter.base_sha256 = place.world.on_first(lambda: weights_sha256(pair.base))
    engine = place.engine(embedder)
    ends = adapters.ends(embedder.adapter)

    def move(share: float) -> None:
        for parameter, zero, one in ends:
            parameter.data.copy_(torch.lerp(zero, one, share))

    return Between(engine, move, lambda share: {})
