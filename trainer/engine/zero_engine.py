"""ZeRO 1, 2, 3 (Rajbhandari et al. 2020, arXiv:1910.02054) through Accelerate. Only this file imports DeepSpeed.

- Accelerate builds DeepSpeed's engine from one of our JSONs; every "auto" in it is resolved from the run file.
- DeepSpeed never sees a batch or a loss: it gets the forward pass of a chunk, and a scalar to go backward from.
- It averages gradients over ranks once per step, at the end of `coalesce_grad_reduction`.
- ZeRO-3 gathers the weights in every forward pass, so all ranks must make the same number of passes (`lockstep`).
  What autocast would round anyway travels rounded: half of the bytes, and the same numbers.
- Checkpoints hold whole tensors by name: moments are gathered from partitions, and filled back fragment by fragment.
"""

import logging
import sys
import warnings
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from data_prep.common.console import say
from data_prep.common.files import check
from trainer.config.sections import OptimConfig
from trainer.distributed.collectives import World
from trainer.distributed.compile_lock import compiling_alone
from trainer.distributed.deepspeed_json import OFFLOAD, check_deepspeed, read_ds_json, zero_engine
from trainer.distributed.engines import ZERO
from trainer.distributed.launcher_claims import rank
from trainer.engine.optimizer import LossScale, adamw
from trainer.engine.protocol import MOMENTS, Applied, Engine, empty
from trainer.engine.weight_average import Average, whole_average
from trainer.model.base_dtype import in_fp32, product_weights
from trainer.model.embedder import Embedder

# DeepSpeed's name for the dtype in which ZeRO-3 gathers a weight (runtime/torch_autocast.py). Only its autocast, which
# is off here, would reduce gradients in it too.
GATHERED_AS = "comm_dtype"


def plugin(ds_json: str, max_grad_norm: float | None, device: torch.device):
    """Returns Accelerate's DeepSpeedPlugin for one of our JSONs, or a user's. Raises BadInput for a missing package, a
    version that loses gradients, a missing compiler, or a JSON that states a fact the run file owns."""
    check_deepspeed(device.type)
    values = read_ds_json(ds_json)
    check([f"{ds_json}: {problem}" for problem in _foreign_facts(values)])
    from accelerate.utils import DeepSpeedPlugin

    if device.type == "cpu":
        _load_operator()
    # The engine never sees a batch: these sizes only satisfy its arithmetic. The global batch is the plan's.
    values |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm or 0.0,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW also where the state is offloaded: one update rule
    }
    values.pop("train_batch_size", None)
    return DeepSpeedPlugin(hf_ds_config=values, zero3_init_flag=False)


def _load_operator() -> None:
    """Compiles (the first time) and loads what DeepSpeed's CPU collectives need, before it would do so by itself."""
    if sys.platform != "linux":
        return  # DeepSpeed does without it elsewhere
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    with compiling_alone() as folder:
        builder = ShareMemCommBuilder()
        if not (folder / builder.NAME).is_dir() and rank() == 0:
            say("DeepSpeed compiles a small operator the first time it runs on a CPU (up to a minute)")
        builder.load(verbose=False)


def load_models_whole() -> None:
    """Undoes Accelerate's hook that makes transformers load (and save) partitioned tensors under ZeRO-3. The engine
    partitions the weights itself; a model that is whole until then has the same code path on every engine."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def _foreign_facts(values: dict) -> list[str]:
    """Problems of a DeepSpeed JSON: facts that the run file owns, and stages that have no engine here."""
    problems = []
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"):
        if values.get(key, "auto") != "auto":
            problems.append(f'{key}={values[key]}: the run file owns this; write "auto" or leave it out')
    if values.get("gradient_accumulation_steps", 1) not in (1, "auto"):
        steps = values["gradient_accumulation_steps"]
        problems.append(f"gradient_accumulation_steps={steps}: raise train.batch_size in the run file instead")
    for key in ("optimizer", "scheduler"):
        if key in values:
            problems.append(f"{key}: the run file owns this (section optim); remove it")
    for key in ("bf16", "fp16", "torch_autocast"):
        if values.get(key, {}).get("enabled"):
            problems.append(f"{key}: the run file owns the precision (train.precision); remove it")
    zero = values.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        problems.append("zero_optimization.stage must be 1, 2 or 3 (without ZeRO use --engine ddp)")
    elif zero_engine(zero) not in ZERO:
        problems.append("zero_optimization: offloading goes with stage 2 or 3 (stage 1 has no engine for it here)")
    for key in OFFLOAD:
        if zero.get(key, {}).get("device", "none") not in ("none", "cpu"):
            problems.append(f'zero_optimization.{key}.device={zero[key]["device"]}: only "cpu" is supported')
    return problems


@contextmanager
def _nothing_sent():
    """Keeps DeepSpeed's engine from broadcasting weights while it is made: they have no numbers yet."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    broadcast = DeepSpeedEngine._broadcast_model
    DeepSpeedEngine._broadcast_model = lambda engine: None
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model = broadcast


class ZeroEngine(Engine):
    """Partitioned optimizer state (1), gradients (2), weights (3). Gradients are averaged over ranks, once per step."""

    def __init__(
        self, accelerator, embedder: Embedder, optim: OptimConfig, world: World, dtype: torch.dtype | None,
        by_chunk: bool = False,
    ):  # fmt: skip
        """by_chunk: ZeRO-3 reduces the gradient of every chunk in its backward pass, bucket by bucket."""
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # its own calls
        self._zero = deepspeed.zero
        self._rounded: set[nn.Parameter] = set()  # weights that ZeRO-3 gathers in the dtype of the products
        self.world, self.device, self.dtype = world, accelerator.device, dtype
        self._free = accelerator.free_memory  # ends DeepSpeed's engine, and lets go of what accelerate holds of it
        self.by_chunk, self._reduced = by_chunk, 0  # chunks of the step whose gradients are in the partitions
        self.embedder = embedder
        embedder.pack(self.device, dtype)
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        self.stage = int(settings["zero_optimization"]["stage"])
        prepare = self._prepare_partitioned if self.stage == 3 else self._prepare_replicated
        prepare(accelerator, settings, optim)
        self.lockstep = self.stage == 3  # every forward pass gathers weights: all ranks make the same number
        self.gradient_factor = float(world.size)  # the engine divides by the number of ranks
        self.named = embedder.trained()
        self.scale = LossScale(dtype == torch.float16)
        self.average = Average(self.named, optim.ema, self._gather_small) if optim.ema else None

    def _prepare_partitioned(self, accelerator, settings: dict, optim: OptimConfig) -> None:
        """ZeRO-3: fills a parameter, takes its share, and frees it, before the next one. DeepSpeed broadcasts it."""
        zero = {key: value for key, value in settings["zero_optimization"].items() if value != "auto"}
        settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
        sources, first = self.embedder.sources, None
        largest = max(parameter.numel() for parameter in self.embedder.parameters())
        # parameters that come and go between shares that stay would leave holes in the memory
        room = None if sources.reads else torch.empty(4 * largest, dtype=torch.uint8, device=self.device)
        for parameter in self.embedder.parameters():
            sources.fill(parameter, self.device, room)
            if first is None:
                self._zero.Init(nn.ParameterList([parameter]), config_dict_or_path=settings, dtype=torch.float32)
                first = parameter
            else:
                first.convert_to_zero_parameters(param_list=[parameter])
        sources.close()  # before the optimizer takes memory
        for module in self.embedder.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else self.world.broadcast(buffer.to(self.device))
        self.engine, _ = accelerator.prepare(self.embedder, adamw(self.embedder, optim, self.device))
        self.optimizer = self.engine.optimizer
        if self.dtype is not None:
            # small parameters stay whole on every rank: they are gathered once, and must keep their digits
            self._rounded = {p for p in product_weights(self.embedder.backbone) if not p.ds_persist}
            self._send_rounded(self._rounded)

    def _send_rounded(self, parameters: set[nn.Parameter]) -> None:
        for parameter in parameters:
            setattr(parameter, GATHERED_AS, self.dtype)

    @contextmanager
    def _whole(self, parameters: list[nn.Parameter]):
        """Gathers weights with all their digits."""
        rounded = self._rounded.intersection(parameters)
        for parameter in rounded:
            delattr(parameter, GATHERED_AS)
            if parameter.ds_status.name == "AVAILABLE":
                parameter.partition()  # what a pass left there is rounded
        with self._zero.GatheredParameters(parameters):
            yield
        self._send_rounded(rounded)

    def _prepare_replicated(self, accelerator, settings: dict, optim: OptimConfig) -> None:
        """ZeRO-1/2: DeepSpeed lays trained weights into flat memory, which is filled afterwards. Numbers that exist
        before would exist twice meanwhile, on every rank."""
        sources = self.embedder.sources
        for parameter in self.embedder.parameters():
            sources.room(parameter, self.device)
        optimizer = adamw(self.embedder, optim, self.device)
        with _nothing_sent():
            self.engine, _ = accelerator.prepare(self.embedder, optimizer)
        self.optimizer = self.engine.optimizer
        for parameter in self.embedder.parameters():
            if parameter.requires_grad:
                sources.fill_in_place(parameter)
            else:
                sources.fill(parameter, self.device)
            self.world.broadcast(parameter.data)
        for buffer in self.embedder.buffers():
            self.world.broadcast(buffer.data)
        self.embedder.sources.close()
        self.optimizer.refresh_fp32_params()

    def _gather_small(self) -> None:
        """ZeRO-3 keeps small parameters whole on every rank, beside their partitions."""
        small = self.optimizer.persistent_parameters if self.stage == 3 else []
        if small:
            small[0].all_gather(small)

    buckets = 0

    def embed(self, tokens: Tensor, lengths: list[int], seed: int, prompts: list[int] | None = None) -> Tensor:
        self.world.doing = "one of DeepSpeed's, in a forward pass"
        return self.engine(tokens, lengths, seed, self.dtype, prompts)

    def backward(self, surrogate: Tensor, last: bool = False) -> None:
        """DeepSpeed multiplies by the loss scale that accumulate() sets."""
        self.world.doing = "one of DeepSpeed's, in a backward pass"
        if self.by_chunk:
            self._count_chunk()
        self.engine.backward(surrogate)

    def _count_chunk(self) -> None:
        """Lets DeepSpeed add the next backward pass to the partitions of the gradient. It counts backward passes in
        forward passes, of which kept chunks have none between them: it would write over the chunk before."""
        self.optimizer.clear_backward_seen_flag()
        self.optimizer.micro_step_id = self._reduced  # 0: writes, more: adds
        self._reduced += 1

    @contextmanager
    def accumulate(self):
        if self.scale.used:
            self.optimizer.override_loss_scale(self.scale.value)
        if self.by_chunk:
            self._reduced = 0
            yield
            return
        with self.engine.coalesce_grad_reduction():
            yield

    def gradients(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(p).detach().cpu().clone() / self.scale.value for name, p in self.named.items()}

    def apply(self, lr: float) -> Applied:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.world.doing = "one of DeepSpeed's, in the update"
        self.engine.step()
        overflowed = bool(self.optimizer.overflow)
        self.scale.update(overflowed)
        if self.average and not overflowed:
            self.average.update()
        norm = float("inf") if overflowed else float(self.engine.get_global_grad_norm())
        return Applied(norm, overflowed)

    def read(self, name: str) -> Tensor:
        parameter = self.named[name]
        with self._whole([parameter] if self.stage == 3 else []):
            return parameter.detach().clone()

    def weights(self) -> dict[str, Tensor]:
        stored, full = self.embedder.stored(), {}
        if self.stage < 3:
            return {} if self.world.rank else {name: in_fp32(t.detach().cpu()) for name, t in stored.items()}
        for name, tensor in stored.items():
            parts = [tensor] if hasattr(tensor, "ds_id") else []  # buffers are whole on every rank
            with self._whole(parts):  # one at a time: never the whole model at once
                if self.world.rank == 0:
                    full[name] = in_fp32(tensor.detach().cpu().clone())
        return full

    def moments(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self.optimizer.optimizer.state:
            return {}  # before the first step
        self._link_states()
        full = whole_average(self)
        for name, parameter in self.named.items():
            for key in MOMENTS:
                value = safe_get_full_optimizer_state(parameter, key)
                if self.world.rank == 0:
                    full[f"{key}.{name}"] = value.detach().cpu().clone()
        return full

    def load_moments(self, moments: dict[str, Tensor], updates: int) -> None:
        """Creates the states of this rank's partitions and fills them fragment by fragment: DeepSpeed's setter needs
        states that exist and, under ZeRO-3, sizes that divide by the ranks."""
        if self.average:
            self.average.load(moments, self.world.rank)
        zero, state = self.optimizer, self.optimizer.optimizer.state
        flats = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        for flat in flats:
            step = torch.tensor(float(updates), device=flat.device)
            state[flat] = {"step": step} | {key: torch.zeros_like(flat) for key in MOMENTS}
        self._link_states()
        for name, parameter in self.named.items():
            for key in MOMENTS:
                self._fill(parameter, key, moments[f"{key}.{name}"].flatten())

    def release(self) -> None:
        """DeepSpeed's flat memory goes with its engine, which hooks and attributes of the model refer to."""
        self._free()
        for module in self.embedder.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
            for name in ("pre_bwd_fn", "post_bwd_fn"):
                vars(module).pop(name, None)
        for parameter in self.embedder.parameters():
            vars(parameter).clear()  # of ZeRO-3 this rank's share, too
        empty(self.embedder)
        self.engine = self.optimizer = self.average = None
        self.named = {}
        self._free()  # collects what nothing refers to any more

    def _link_states(self) -> None:
        """Ties parameters to their states again, which DeepSpeed's getters need: ZeRO-1/2 do so once, when the first
        parameter group has stepped and the later ones have no state yet."""
        if self.stage < 3:
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _fill(self, parameter, key: str, value: Tensor) -> None:
        if self.stage == 3:
            part, _ = self.optimizer._get_fp32_opt_state_partition(parameter, False, key)
            start = self.world.rank * part.numel()
            mine = value[start : start + part.numel()]  # the last rank's partition may end in padding
            part[: mine.numel()].copy_(mine)
            return
        mapping = parameter._hp_mapping
        if mapping is not None:  # this rank owns a fragment of the parameter
            fragment = mapping.lp_fragment_address
            mapping.get_hp_fragment(key).copy_(value[fragment.start : fragment.start + fragment.numel])
