"""sentence-transformers' side of vs_sentence_transformers.py: trains one case and writes what it saw.

    python benchmarks/sentence_transformers_side.py SETTINGS.json RESULT.json

It imports what their users import and nothing of ours: the time to the first step is theirs alone.
"""

import json
import sys
import time

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback


class Recorder(TrainerCallback):
    """Wall clock at the end of each step; tokens of the texts that the model embedded in it."""

    def __init__(self, model):
        self.ends, self.tokens, self.padded = [], [0], [0]
        model.register_forward_pre_hook(self.before_forward)

    def before_forward(self, module, inputs) -> None:
        mask = inputs[0]["attention_mask"]
        self.tokens[-1] += int(mask.sum())
        self.padded[-1] += mask.numel()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.ends.append(time.time())
        self.tokens.append(0)
        self.padded.append(0)


def in_order(dataset, batch_size: int, drop_last: bool, **kwargs):
    """The batches as the data set lies: they were planned already."""
    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)


def main(settings_file: str, result_file: str) -> None:
    with open(settings_file, encoding="utf-8") as file:
        settings = json.load(file)
    pairs, optim = settings["pairs"], settings["optim"]
    data = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
    model = SentenceTransformer(settings["model"], device="cpu")
    model.max_seq_length = settings["max_len"]
    arguments = Arguments(
        output_dir=settings["output_dir"],
        per_device_train_batch_size=settings["batch_size"],
        num_train_epochs=1,
        batch_sampler=in_order,
        learning_rate=optim["lr"],
        weight_decay=optim["weight_decay"],
        adam_beta1=optim["betas"][0],
        adam_beta2=optim["betas"][1],
        adam_epsilon=optim["eps"],
        max_grad_norm=optim["max_grad_norm"],
        lr_scheduler_type=optim["schedule"],
        warmup_steps=round(optim["warmup_ratio"] * settings["steps"]),
        bf16=settings["precision"] == "bf16",
        use_cpu=True,
        seed=settings["seed"],
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    if settings["mini_batch"]:
        loss = CachedMultipleNegativesRankingLoss(model, settings["scale"], mini_batch_size=settings["mini_batch"])
    else:
        loss = MultipleNegativesRankingLoss(model, settings["scale"])
    recorder = Recorder(model)
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, loss=loss, callbacks=[recorder]
    )
    ready = time.time()
    trainer.train()
    result = {"ready": ready, "ends": recorder.ends, "tokens": recorder.tokens[:-1], "padded": recorder.padded[:-1]}
    with open(result_file, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
