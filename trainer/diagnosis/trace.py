"""One forward and backward pass, followed operation by operation on tensors without data.

- torch's fake tensors have shapes, types and storage sizes. Every operation of the real code runs on these alone.
- What an allocation depends on is read from its size: tokens = texts x length, both prime, divide what grows with them.
  So one trace gives memory and work for any number of tokens, with what a pass takes once (copies of weights) apart.
- Of equal blocks only some are traced. The others are put in from the trace of their kind, block by block, so that the
  peak of a deep model lies where it would lie.
"""

import weakref
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.diagnosis.profile import Effort, Line, Peak, Product, Profile

aten = torch.ops.aten
DEVICE_OF = torch.ops.prim.device.default  # torch asks a fake tensor for its device through the dispatcher
PRODUCTS = {aten.mm: 0, aten.addmm: 1}  # matrix product -> index of its first matrix
ATTENTION = {  # counted from the lengths of the texts instead: its work grows with their square
    aten.bmm, aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}  # fmt: skip


@dataclass
class Segment:
    """Events between two marks. Sizes are relative to its start."""

    events: list[tuple[int, int, float, float]] = field(default_factory=list)  # allocation, its bytes, all bytes then
    start: tuple[float, float] = (0.0, 0.0)
    end: tuple[float, float] = (0.0, 0.0)
    products: Counter = field(default_factory=Counter)  # (operations, fixed, per token) -> count
    moved: list[float] = field(default_factory=lambda: [0.0, 0.0])
    started: int = 0


class Tape(TorchDispatchMode):
    """Records allocations and work, in segments. tokens: of the chunk, the product of two primes."""

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.now = [0.0, 0.0]  # bytes that do not depend on the tokens, bytes that do
        self.segments: dict[object, Segment] = {}
        self.live: dict[int, int] = {}  # storage -> number of its allocation
        self._count = 0
        self.mark("start")

    def mark(self, key: object) -> None:
        """Ends a segment and begins another."""
        if self.segments:
            self._open.end = tuple(self.now)
        self._open = self.segments[key] = Segment(start=tuple(self.now))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is DEVICE_OF:  # more than half of all calls, each of which would take as long as an operation
            return args[0].fake_device
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        before = {t.untyped_storage()._cdata for t in inputs}
        out = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        for tensor in outputs:
            self._see(tensor.untyped_storage(), before)
        self._work(func, inputs, outputs, before)
        return out

    def _see(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.live or key in before:
            return
        self._count += 1
        self.live[key] = self._count
        scaled = int(size > 0 and size % self.tokens == 0)
        self.now[scaled] += size
        self._open.events.append((self._count, size, *self.now))
        weakref.finalize(storage, self._gone, key, size, scaled)

    def _gone(self, key: int, size: int, scaled: int) -> None:
        self.live.pop(key, None)
        self.now[scaled] -= size

    def _work(self, func, inputs: list, outputs: list, before: set[int]) -> None:
        views = all(t.untyped_storage()._cdata in before for t in outputs)
        if not outputs or (views and not func._schema.is_mutable):
            return
        packet, segment = func.overloadpacket, self._open
        segment.started += 1
        moved = [0.0, 0.0]
        for tensor in (*inputs, *outputs):
            size = tensor.numel() * tensor.element_size()
            moved[int(size > 0 and size % self.tokens == 0)] += size
        if packet in PRODUCTS:
            first = inputs[PRODUCTS[packet]]
            operations = 2 * first.shape[-1] * outputs[0].numel() / self.tokens
            segment.products[operations, moved[0], moved[1] / self.tokens] += 1
        elif packet not in ATTENTION:
            segment.moved[0] += moved[0]
            segment.moved[1] += moved[1] / self.tokens


def follow(embedder, blocks: list, of_block: list[int], tokens: int, run) -> Profile:
    """Traces run(), a forward pass that returns (texts, d), and its backward pass.

    blocks: the traced transformer blocks; none: nothing is put in. of_block: for each block of the whole model, the
    traced one of its kind. tokens: of the chunk, the product of two primes.
    """
    hooks, forward = [], [True]
    with Tape(tokens) as tape:
        for number, block in enumerate(blocks):
            hooks += _marks(tape, block, number, number == len(blocks) - 1, forward)
        try:
            out = run()
            forward[0] = False
            tape.mark("loss")
            (out * torch.zeros_like(out)).sum().backward()
            tape.mark("end")
        finally:
            for hook in hooks:
                hook.remove()
        grads = [p.grad for p in embedder.parameters() if p.grad is not None]
        allocated = {tape.live.get(grad.untyped_storage()._cdata) for grad in grads}
        del out
    embedder.zero_grad()
    keys = [
        "start",
        *(("forward", n) for n in of_block),
        "head",
        "loss",
        *(("backward", n) for n in reversed(of_block)),
    ]
    return _assembled(tape.segments, [key for key in keys if key in tape.segments], allocated, tokens)


def _marks(tape: Tape, block: torch.nn.Module, number: int, last: bool, forward: list[bool]) -> list:
    """Marks where a block's forward and backward pass begin. A recomputed block runs again in the backward pass."""

    def begins(*_):
        if forward[0]:
            tape.mark(("forward", number))

    def ends(_, __, output):
        if not forward[0]:
            return
        tensor = output[0] if isinstance(output, tuple) else output
        if tensor.requires_grad:
            tensor.register_hook(lambda _: tape.mark(("backward", number)))
        if last:
            tape.mark("head")

    return [block.register_forward_pre_hook(begins), block.register_forward_hook(ends)]


def _assembled(segments: dict, keys: list, grads: set, tokens: int) -> Profile:
    """Joins segments, some of them several times, into the profile of a whole model."""
    now, grown = np.zeros(2), 0.0  # bytes, and those of them that are gradients to stay
    first, later, kept = [np.zeros((1, 2))], [np.zeros((1, 2))], now
    passes: list[list[Segment]] = [[], []]  # forward, backward
    for key in keys:
        segment, start = segments[key], np.array(segments[key].start)
        if key == "loss":
            kept = now
        passes[key == "loss" or key[0] == "backward"].append(segment)
        if segment.events:
            numbers, sizes, *bytes_after = zip(*segment.events)
            points = now + np.array(bytes_after).T - start
            stay = np.cumsum([size if number in grads else 0 for number, size in zip(numbers, sizes)])
            existing = np.concatenate([[0], stay[:-1]]) + grown  # one that is being added to exists as well
            first.append(points)
            later.append(points - np.outer(existing, [1, 0]))
            grown += stay[-1]
        now = now + np.array(segment.end) - start
    peaks = (_peak(np.concatenate(points), tokens) for points in (first, later))
    return Profile(Line(float(kept[0]), float(kept[1] / tokens)), *peaks, *map(_effort, passes))


def _peak(points: np.ndarray, tokens: int) -> Peak:
    """Keeps the sizes that are the largest for some number of tokens."""
    lines: list[Line] = []
    for fixed, scaled in sorted(map(tuple, points), key=lambda point: (-point[0], -point[1])):
        if not lines or scaled / tokens > lines[-1].per_token:
            lines.append(Line(float(fixed), float(scaled / tokens)))
    return Peak(tuple(lines))


def _effort(segments: list[Segment]) -> Effort:
    products: Counter = Counter()
    for segment in segments:
        products.update(segment.products)
    merged = tuple(Product(count, operations, Line(*moved)) for (operations, *moved), count in products.items())
    moved = Line(*(sum(segment.moved[i] for segment in segments) for i in (0, 1)))
    return Effort(merged, moved, sum(segment.started for segment in segments))
