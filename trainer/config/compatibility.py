"""One table of what does not go together: modes, options and engines. No torch.

`python -m trainer.config.compatibility` prints it.
"""

import importlib.metadata

from data_prep.common.files import check
from trainer.config.sections import FreezeConfig, RunConfig
from trainer.distributed.engines import ENGINES, ZERO

MODES = ("full", "lora", "qlora 4 bits", "qlora 8 bits")
QLORA = MODES[2:]
PARTED = ("zero3", "zero3_offload")  # weights are divided among the ranks
OPTIONS = {  # name -> True for a run that asks for it
    "model.lora.dora": lambda run: run.model.lora.dora,
    "model.base_dtype: bf16": lambda run: run.model.base_dtype == "bf16",
    "model.freeze": lambda run: run.model.freeze != FreezeConfig(),
    "train.gradient_checkpointing": lambda run: run.train.gradient_checkpointing,
    "train.gradient_reduction: chunk": lambda run: run.train.gradient_reduction == "chunk",
    "optim.name: adamw_8bit": lambda run: run.optim.name == "adamw_8bit",
    "optim.ema": lambda run: run.optim.ema is not None,
}
EIGHT_BIT = "optim.name: adamw_8bit"

_NO_MPS = "bitsandbytes' kernels for Apple GPUs do not cover it"
_FROZEN = "the whole model is frozen already, only adapters train"
_FLAT = (
    "ZeRO keeps the moments in flat partitions of its own, which bitsandbytes' 8-bit blocks, a set for each parameter, "
    "do not fit; it divides the 32-bit moments among the ranks instead"
)
_WHOLE = (
    "bitsandbytes holds a whole int8 copy of every weight on every rank, so partitioning them would save nothing: use "
    "zero2, or 4 bits"
)
_SCALES = "peft 0.21 loses the scales of int8 weights while it reads the norms that DoRA needs"
_UNDIVIDED = "only ZeRO-3 divides the gradient among the ranks while it is computed; leave it out, or use zero3"
_REPLACED = "peft 0.21 puts new parameters in the place of quantised ones while it reads the norms that DoRA needs"
# Combinations that are refused -> the reason. All others run.
REFUSED = {
    **{(mode, "mps"): _NO_MPS for mode in QLORA},
    **{("qlora 8 bits", engine): _WHOLE for engine in PARTED},
    ("model.lora.dora", "full"): "there are no adapters in full fine-tuning",
    ("model.lora.dora", "qlora 8 bits"): _SCALES,
    **{("model.lora.dora", "qlora 4 bits", engine): _REPLACED for engine in PARTED},
    **{("model.freeze", mode): _FROZEN for mode in MODES[1:]},
    **{("train.gradient_reduction: chunk", engine): _UNDIVIDED for engine in ENGINES if engine not in PARTED},
    (EIGHT_BIT, "mps"): _NO_MPS,
    **{(EIGHT_BIT, engine): _FLAT for engine in ZERO},
}


def facts(config: RunConfig) -> list[str]:
    """Returns the mode of a run, then its options, as REFUSED calls them."""
    bits = config.model.bits
    mode = f"qlora {bits} bits" if bits else config.model.finetune
    return [mode, *(name for name, used in OPTIONS.items() if used(config))]


def check_modes(config: RunConfig, engine: str | None = None) -> None:
    """Raises BadInput with every refused combination of a run; engine: one of ENGINES, None where it is not known."""
    asked = facts(config)
    problems = [
        f"{what[0]} does not go with {' and '.join(what[1:])}: {why}"
        for what, why in REFUSED.items()
        if {*what} <= {engine, *asked}
    ]
    for needed in {*QLORA, EIGHT_BIT}.intersection(asked):
        try:
            importlib.metadata.version("bitsandbytes")
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{needed} needs bitsandbytes, which is not installed: pip install 'embedfleet[qlora]'")
    check(problems)


def table() -> str:
    """Markdown: a row for every mode and option, a column for every engine and mode; below, why not."""
    columns, reasons = (*ENGINES, *MODES), list(dict.fromkeys(REFUSED.values()))

    def cell(row: str, column: str) -> str:
        if row in MODES and column in MODES:
            return ""
        notes = [f"{reasons.index(why) + 1}" for what, why in REFUSED.items() if {row, column} <= {*what}]
        if not notes:
            return "yes"
        answer = "no" if (row, column) in REFUSED else "some"  # for several engines: each note once
        return f"{answer} ({', '.join(dict.fromkeys(notes))})"

    lines = [("", *columns), ("---",) * (len(columns) + 1)]
    lines += [(row, *(cell(row, column) for column in columns)) for row in (*MODES, *OPTIONS)]
    notes = []
    for i, why in enumerate(reasons):
        several = [" + ".join(what) for what, reason in REFUSED.items() if reason == why and len(what) > 2]
        notes.append(f"{i + 1}. {'; '.join([*several, why])}.")
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *notes])


if __name__ == "__main__":
    print(table())
