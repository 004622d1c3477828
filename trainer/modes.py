"""Which ways to fine-tune run on which engines: one table, read here and printed by `python -m trainer.modes`.

Never imports torch.
"""

from trainer.config import FreezeConfig, RunConfig
from trainer.topology import ENGINES, ZERO

from data_prep.problems import BadInput

MODES = ("full", "lora", "qlora 4", "qlora 8")
OPTIONS = ("dora", "gradient_checkpointing", "freeze", "adamw_8bit", "ema")
