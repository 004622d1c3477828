"""A quantised base and 8-bit AdamW. Only this file imports bitsandbytes."""

import logging
from functools import partial

import torch
from torch import Tensor, nn

from trainer.config.sections import OptimConfig

MOMENTS = ("state1", "state2", "absmax1", "absmax2")  # bitsandbytes' names: numbers, and the scales of their blocks


def settings(bits: int, compute: torch.dtype | None) -> dict:
    """Returns transformers' quantisation config, as plain values that a saved folder can hold: NF4 with quantised
    constants (Dettmers et al. 2023, arXiv:2305.14314), or LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339)."""
    if bits == 8:
        return {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": str(compute or torch.float32).removeprefix("torch."),
    }


def arguments(bits: int, compute: torch.dtype | None, device: torch.device) -> dict:
    """Returns arguments of from_pretrained that quantise each tensor as it is read."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig.from_dict(settings(bits, compute))
    return {"quantization_config": config, "device_map": {"": device}}


def layers(backbone: nn.Module) -> dict[str, nn.Module]:
    """Returns the quantised linear layers by name, set to compute the same in training, in evaluation and on every
    device: on a CPU with bf16 instructions a 4-bit layer would compute in bf16 wherever no gradient is wanted, and on
    CUDA an 8-bit layer would round its inputs by the other texts of the chunk. The two forward passes over a chunk
    would differ, and an embedding would depend on its neighbours."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for every product
    quantised = {n: m for n, m in backbone.named_modules() if isinstance(m, (Linear4bit, Linear8bitLt))}
    for module in quantised.values():
        if isinstance(module, Linear8bitLt):
            module.forward = partial(_dequantised_product, module)
        else:
            module.support_avx512bf16_for_cpu = False
    return quantised


def _dequantised_product(layer: nn.Module, x: Tensor) -> Tensor:
    """An 8-bit layer's forward pass: a product of its input with its dequantised weights."""
    from bitsandbytes.autograd._functions import MatMul8bitFp

    if layer.weight.CB is not None:  # as it was loaded
        layer.init_8bit_state()
        layer.weight.data = layer.state.CB
    return MatMul8bitFp.apply(x, layer.weight, None, layer.bias, layer.state)


def dequantize(quantised: dict[str, nn.Module], backbone: nn.Module) -> None:
    """Copies the dequantised weights of layers into the plain layers of another backbone, which may have an adapter.
    quantised: layers by their names before an adapter was added."""
    for name, layer in quantised.items():
        plain = backbone.get_submodule(name)
        getattr(plain, "base_layer", plain).weight.data.copy_(weights_of(layer))


def weights_of(layer: nn.Module) -> Tensor:
    """Returns a layer's weights, (out, in) float32; dequantised where it is quantised."""
    if hasattr(layer.weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    if not hasattr(layer.weight, "CB"):
        return layer.weight.data.float()
    owner = layer.weight if layer.weight.CB is not None else layer.state  # the layer takes them in its first pass
    return owner.CB.float() * (owner.SCB.float() / 127.0).unsqueeze(1)


def empty(quantised: dict[str, nn.Module]) -> None:
    """Takes what layers hold beside their parameters: the scales, and after an 8-bit layer's first pass its weights."""
    for layer in quantised.values():
        for owner in (layer, layer.weight, getattr(layer, "state", None)):
            for name in ("CB", "SCB", "quant_state"):
                if getattr(owner, name, None) is not None:
                    setattr(owner, name, None)


def adamw_8bit(groups: list[dict], optim: OptimConfig):
    """AdamW whose moments are 8-bit in blocks of 256; vectors and small matrices keep 32 bits, as bitsandbytes does."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, lr=0.0, betas=tuple(optim.betas), eps=optim.eps)


def load_moments(optimizer, named: dict[str, nn.Parameter], moments: dict[str, Tensor], updates: int) -> None:
    """Loads moments by `<key>.<parameter>`. updates: AdamW updates that they have seen."""
    names = {parameter: name for name, parameter in named.items()}
    for g, group in enumerate(optimizer.param_groups):
        for p, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, g, p)
            state = optimizer.state[parameter]
            state["step"] = updates
            for key in MOMENTS:
                if key in state:
                    state[key].copy_(moments[f"{key}.{names[parameter]}"])
