"""An independent reference: the same training in one process, in one padded batch, with plain autograd."""

import torch
import torch.nn.functional as F

from data_prep.shards import open_shards
from trainer.config import RunConfig
from trainer.preflight import make_plan


def dense_run(config: RunConfig, steps: int, extra: int) -> tuple[list[float], list[float], list[dict]]:
    """(losses, gradient norms) of `steps` clipped AdamW steps, and the raw gradients of every step.

    `extra` further gradients are taken without an update. Only what the real code must not be trusted with is written
    anew here: tokenising, padding, pooling, the loss, its gradient, clipping and the optimizer.
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    model = AutoModel.from_pretrained(config.model.path, dtype=torch.float32)
    model.eval()  # dropout off
    rows = open_shards(config.data.train).split("train")
    plan = make_plan(config)  # which rows a batch holds is proved in test_planner
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=config.optim.lr, eps=config.optim.eps, betas=config.optim.betas)
    losses, norms, gradients = [], [], []
    for step in range(steps + extra):
        epoch, position = divmod(step, plan.steps_per_epoch)
        records = rows.take(plan.epoch(epoch)[position].tolist())
        documents = [r.positives[0] for r in records] + [n for r in records for n in r.negatives]

        def embed(texts):
            batch = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
            hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).float()
            return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

        scores = embed([r.query for r in records]) @ embed(documents).T / config.loss.temperature
        loss = F.cross_entropy(scores, torch.arange(len(records)))
        model.zero_grad(set_to_none=True)
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        if step >= steps:
            continue
        losses.append(loss.item())
        trained = [p for p in model.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.clip_grad_norm_(trained, config.optim.max_grad_norm).item())
        adamw.step()
    return losses, norms, gradients
