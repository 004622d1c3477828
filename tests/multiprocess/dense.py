"""An independent reference: the same training in one process, in one padded batch, with plain autograd.

Written anew is all that the real code must not be trusted with: tokenising, padding, pooling, every loss (plainly, in
the words of its paper), its gradient, clipping, the learning rate, the optimizers. Which rows a batch holds is taken
from the plan, whose own tests are in test_planner.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.multiprocess.cells import ADAPTED, CASES, LAST, LR, STEPS, TAU, TEMPERATURE_LR, WHOLE

TEACHER_TAU = 2.0


def no_prompts(record) -> tuple[str, str]:
    return "", ""


class Texts:
    """A batch's embeddings and what is known of its rows. negatives: (embedding, row, teacher's score) of each.

    prompts_of: gives the prompts of a record's query and of its documents.
    """

    def __init__(self, embed, records: list, ids: list[int], prompts_of=no_prompts):
        prompts = [prompts_of(record) for record in records]
        texts = [(before, r.query) for (before, _), r in zip(prompts, records)]
        texts += [(before, r.positives[0]) for (_, before), r in zip(prompts, records)]
        texts += [(before, text) for (_, before), r in zip(prompts, records) for text in r.negatives]
        self.records, self.ids, m = records, ids, len(records)
        embedded = embed(texts)
        self.queries, self.positives, self.hard = embedded[:m], embedded[m : 2 * m], embedded[2 * m :]
        self.row_of_hard = [i for i, r in enumerate(records) for _ in r.negatives]
        self.documents = torch.cat([self.positives, self.hard])
        self.row_of_document = [*range(m), *self.row_of_hard]

    def shortened(self, size: int) -> "Texts":
        short = object.__new__(Texts)
        short.__dict__ |= self.__dict__
        for name in ("queries", "positives", "hard", "documents"):
            setattr(short, name, F.normalize(getattr(self, name)[:, :size], dim=1))
        return short

    def hard_of(self, row: int) -> list[int]:
        return [k for k, owner in enumerate(self.row_of_hard) if owner == row]


def false_negatives(t: Texts) -> Tensor:
    """(rows, documents) bool: same text or document as one of the row's positives, or another row's with its query."""
    documents = [(r.positives[0], r.doc_ids[0] if r.doc_ids else None, r.query) for r in t.records]
    documents += [(text, None, None) for r in t.records for text in r.negatives]
    found = torch.zeros(len(t.records), len(documents), dtype=torch.bool)
    for i, row in enumerate(t.records):
        for j, (text, doc_id, query) in enumerate(documents):
            same_text = text.lower() in [p.lower() for p in row.positives]
            same_document = doc_id is not None and doc_id in row.doc_ids
            found[i, j] = i != j and (same_text or same_document or query == row.query)
    return found


def infonce(t: Texts, tau, masked: bool = True) -> Tensor:
    scores = t.queries @ t.documents.T / tau
    if masked:
        scores = scores.masked_fill(false_negatives(t), -math.inf)
    return F.cross_entropy(scores, torch.arange(len(t.queries)))


def symmetric(t: Texts, tau) -> Tensor:
    back = t.positives @ t.queries.T / tau
    back = back.masked_fill(false_negatives(t)[:, : len(t.queries)], -math.inf)
    return (infonce(t, tau) + F.cross_entropy(back, torch.arange(len(t.queries)))) / 2


def gte(t: Texts, tau) -> Tensor:
    """Li et al. 2023, eq. 1: one softmax over four kinds of pairs; own texts meet in the first and third only."""
    m, excluded, losses = len(t.queries), false_negatives(t), []
    own_document = torch.tensor(t.row_of_document)
    for i, (query, positive) in enumerate(zip(t.queries, t.positives)):
        documents, queries = t.documents[~excluded[i]], t.queries[~excluded[i, :m]]
        other_documents = t.documents[~excluded[i] & (own_document != i)]
        other_queries = t.queries[~excluded[i, :m] & (torch.arange(m) != i)]
        rivals = [documents @ query, other_queries @ query, queries @ positive, other_documents @ positive]
        losses.append(torch.logsumexp(torch.cat(rivals) / tau, 0) - query @ positive / tau)
    return torch.stack(losses).mean()


def matryoshka(t: Texts, tau) -> Tensor:
    return infonce(t.shortened(32), tau) + 0.5 * infonce(t.shortened(16), tau) + 0.25 * infonce(t.shortened(8), tau)


def cosine(t: Texts, tau) -> Tensor:
    scores = torch.tensor([r.score for r in t.records])
    return ((t.queries * t.positives).sum(1) - scores).square().mean()


def cosent(t: Texts, tau) -> Tensor:
    cosines, scores = (t.queries * t.positives).sum(1), [r.score for r in t.records]
    rows = range(len(scores))
    wrong = [(cosines[i] - cosines[j]) / tau for i in rows for j in rows if scores[i] < scores[j]]
    return torch.logsumexp(torch.stack([0.0 * cosines[0] / tau, *wrong]), 0)  # a last batch may hold equal scores only


def kl(t: Texts, tau) -> Tensor:
    losses = []
    for i, record in enumerate(t.records):
        own = torch.cat([t.positives[i : i + 1], t.hard[t.hard_of(i)]])
        teacher = F.softmax(torch.tensor(record.teacher_scores) / TEACHER_TAU, 0)
        losses.append(F.kl_div(F.log_softmax(own @ t.queries[i] / tau, 0), teacher, reduction="sum"))
    return torch.stack(losses).mean()


def infonce_and_kl(t: Texts, tau) -> Tensor:
    return infonce(t, tau) + 0.5 * kl(t, tau)


def margin_mse(t: Texts, tau) -> Tensor:
    errors = []
    for i, record in enumerate(t.records):
        for k, teacher in zip(t.hard_of(i), record.teacher_scores[1:]):
            margin = t.queries[i] @ t.positives[i] - t.queries[i] @ t.hard[k]
            errors.append((margin - (record.teacher_scores[0] - teacher)).square())
    return torch.stack(errors).mean()


def user(t: Texts, tau) -> Tensor:
    """Computes user_loss.pull_and_push row by row."""
    total, m = 0.0, len(t.queries)
    for i, record in enumerate(t.records):
        near = t.queries[i] @ t.positives[i]
        for k, teacher in zip(t.hard_of(i), record.teacher_scores[1:]):
            margin = record.teacher_scores[0] - teacher
            total = total + (1 + t.ids[i] % 3) * F.softplus((t.queries[i] @ t.hard[k] - near) / tau + margin)
        total = total + F.softplus((t.documents @ t.queries[i] - near) / tau).sum() / m
    return total / m


def ruled(t: Texts, guide: Texts, tau, loss: dict) -> tuple[Tensor, int, float]:
    """InfoNCE row by row under the rules of `loss`, a run file's. guide: the same texts in its embeddings.

    Returns the loss, the number of masked candidates, and the least distance of any similarity to its limit.
    """
    m, same, owner = len(t.queries), false_negatives(t), torch.tensor(t.row_of_document)
    losses, masked, nearest, rule = [], 0, math.inf, loss.get("guide", {})
    for i in range(m):
        others, pair = torch.arange(m) != i, F.one_hot(torch.tensor(i), len(t.documents)).bool()
        foreign = owner != i
        # each: anchor and candidates of both models, equal texts, the positive pair, which of them take part
        rows_own = ~foreign if loss.get("negatives") == "own" else torch.ones_like(foreign)
        blocks = [("queries", "documents", same[i], pair, rows_own)]
        if loss.get("directions") == "gte":
            blocks += [
                ("queries", "queries", same[i, :m], ~others & False, others),
                ("positives", "queries", same[i, :m], ~others, torch.ones_like(others)),
                ("positives", "documents", same[i], pair & False, foreign),
            ]
        near, guided_near = (x.queries[i] @ x.positives[i] for x in (t, guide))
        rivals = []
        for anchor, candidates, equal, positive, taking_part in blocks:
            scores, guided = (getattr(x, candidates) @ getattr(x, anchor)[i] for x in (t, guide))
            gone = equal.clone()
            for values, limit in ((scores, near - loss["mask_margin"] if "mask_margin" in loss else None),
                                  (guided, guided_near - rule["margin"] if rule else None)):  # fmt: skip
                if limit is not None:
                    gone |= values.detach() > limit.detach()
                    distances = (values - limit).detach().abs()[taking_part & ~positive & ~equal]
                    nearest = min([nearest, *distances.tolist()])
            gone &= ~positive
            masked += int((gone & taking_part).sum())
            rivals.append(scores[taking_part & ~gone])
        losses.append(torch.logsumexp(torch.cat(rivals) / tau, 0) - near / tau)
    total = torch.stack(losses).mean()
    return (total + 0.5 * user(t, tau) if isinstance(loss.get("name"), dict) else total), masked, nearest


LOSSES = {
    "infonce": infonce,
    "symmetric": symmetric,
    "gte": gte,
    "matryoshka": matryoshka,
    "cosine": cosine,
    "cosent": cosent,
    "infonce+kl": infonce_and_kl,
    "margin_mse": margin_mse,
    "user": user,
    "learned temperature": infonce,
    "lora": infonce,
    "dora": infonce,
    "lora, bf16 base": infonce,
    "dora, bf16 base": infonce,
    "frozen layers in bf16": infonce,
}


class Dense:
    """The model and one loss. frozen: beginnings of the names of parameters that are not trained."""

    def __init__(self, folder, rows, plan, frozen: tuple[str, ...] = ()):
        from transformers import AutoModel, AutoTokenizer

        self.rows, self.plan, self.prompts_of = rows, plan, no_prompts
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()  # dropout off
        frozen = (*frozen, "pooler.")  # the pooler is not used
        self.trained = {n: p for n, p in self.model.named_parameters() if not n.startswith(frozen)}
        self.start = {name: t.detach().clone() for name, t in self.trained.items()}

    def round_frozen(self) -> None:
        """Rounds the matrices that are not trained to bf16."""
        for name, parameter in self.model.named_parameters():
            if name not in self.trained and parameter.dim() == 2:
                parameter.data = parameter.data.to(torch.bfloat16).float()

    def forward(self, **inputs):
        return self.model(**inputs)

    def embed(self, texts: list[tuple[str, str]]) -> Tensor:
        """texts: prompt and text of each. The mean leaves out the words of the prompt, and the [CLS] before them."""
        whole = [prompt + text for prompt, text in texts]
        batch = self.tokenizer(whole, padding=True, truncation=True, max_length=32, return_tensors="pt")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hidden = self.forward(**inputs).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).float()
        for row, (prompt, _) in enumerate(texts):
            mask[row, : len(prompt.split()) + 1 if prompt else 0] = 0
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def texts(self, ids: list[int]) -> Texts:
        return Texts(self.embed, self.rows.take(ids), ids, self.prompts_of)

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        for parameter in self.trained.values():
            parameter.grad = None
        loss.backward()
        return {n: p.grad.clone() for n, p in self.trained.items() if p.grad is not None}

    def sgd_update(self, gradient: dict[str, Tensor], lr: float) -> dict[str, Tensor]:
        """Returns what one plain SGD step adds to every parameter."""
        before = {name: self.trained[name].detach().clone() for name in gradient}
        torch.optim.SGD([self.trained[name] for name in gradient], lr=lr).step()
        return {name: self.trained[name].detach() - before[name] for name in gradient}

    def reset(self) -> None:
        for name, parameter in self.trained.items():
            parameter.data.copy_(self.start[name])

    def step_with(self, size: int, hard: bool) -> int:
        """The first step whose batch has this many rows, and a hard negative if asked."""
        for step in range(1000):
            ids = self.plan.batch(step)[1].tolist()
            if len(ids) == size and (not hard or any(r.negatives for r in self.rows.take(ids))):
                return step
        raise AssertionError(f"no batch of {size} rows")

    def at_start(self, name: str, lr: float) -> dict:
        """Raw gradients and SGD updates of a whole batch from the starting weights, then of a last one."""
        self.reset()
        found = {}
        for kind, size in (("whole", WHOLE), ("last", LAST)):
            step = self.step_with(size, hard=True)
            tau = torch.tensor(TAU, requires_grad=True)
            gradient = self.gradient(LOSSES[name](self.texts(self.plan.batch(step)[1].tolist()), tau))
            slope = 0.0 if tau.grad is None else tau.grad.item()
            update = self.sgd_update(gradient, lr)
            found[kind] = {"step": step, "gradient": gradient, "temperature_grad": slope, "update": update}
        return found

    def adamw(self, loss_of_step, max_norm: float) -> dict:
        """Losses, norms and the last temperature of STEPS clipped AdamW steps.

        loss_of_step: (step, temperature) -> loss, and whether the temperature is learned from it.
        """
        self.reset()
        trained = list(self.trained.values())
        decayed, plain = ([p for p in trained if (p.dim() > 1) is many] for many in (True, False))
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(groups, eps=1e-6, betas=(0.9, 0.999))
        log_tau = torch.tensor(math.log(TAU), dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([log_tau])
        losses, norms = [], []
        for step in range(STEPS):
            adamw.zero_grad()
            adam.zero_grad()
            loss, learned = loss_of_step(step, log_tau.exp().float())
            loss.backward()
            losses.append(loss.item())
            norms.append(torch.nn.utils.clip_grad_norm_(trained, max_norm).item())
            warmup = STEPS // 10
            factor = (step + 1) / warmup if step < warmup else 1 - (step - warmup) / (STEPS - warmup)
            for optimizer, lr in ((adamw, LR), (adam, TEMPERATURE_LR)):
                for group in optimizer.param_groups:
                    group["lr"] = lr * factor
            adamw.step()
            if learned:
                adam.step()
        return {"losses": losses, "norms": norms, "temperature": log_tau.exp().item()}

    def trained_on(self, name: str) -> dict:
        learned = name == "learned temperature"

        def loss_of_step(step, tau):
            texts = self.texts(self.plan.batch(step)[1].tolist())
            return LOSSES[name](texts, tau if learned else TAU), learned

        return self.adamw(loss_of_step, {**CASES, **ADAPTED}[name].max_norm)

    def trained_on_sources(self, losses: dict[str, tuple], max_norm: float) -> dict:
        """losses: by source, (name, whether its temperature is learned)."""

        def loss_of_step(step, tau):
            source, ids = self.plan.batch(step)
            name, learned = losses[source]
            return LOSSES[name](self.texts(ids.tolist()), tau if learned else TAU), learned

        batches = [[source, sorted(ids.tolist())] for source, ids in map(self.plan.batch, range(STEPS))]
        return self.adamw(loss_of_step, max_norm) | {"batches": batches}


class Adapted(Dense):
    """The model with adapters: W + s B A in place of W, written out; A and B are what is trained.

    With DoRA the rows of that sum get trained lengths m, and their own lengths count as constants (Liu et al. 2024,
    arXiv:2402.09353, eq. 5 and section 4.3).
    """

    def __init__(self, folder, rows, plan, adapter: Path):
        super().__init__(folder, rows, plan)
        settings = json.loads((adapter / "adapter_config.json").read_text())
        self.scale = settings["lora_alpha"] / (settings["r"] ** 0.5 if settings["use_rslora"] else settings["r"])
        self.trained = {}
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
            ours = name.removeprefix("base_model.model.").removesuffix(".weight") + ".default.weight"
            self.trained[ours] = tensor.requires_grad_(True)
        self.start = {name: t.detach().clone() for name, t in self.trained.items()}

    def forward(self, **inputs):
        weights = dict(self.model.named_parameters())
        for name, a in self.trained.items():
            layer, _, kind = name.removesuffix(".default.weight").rpartition(".")
            if kind != "lora_A":
                continue
            w = weights[f"{layer}.weight"].detach() + self.scale * self.trained[f"{layer}.lora_B.default.weight"] @ a
            m = self.trained.get(f"{layer}.lora_magnitude_vector.default.weight")
            weights[f"{layer}.weight"] = w if m is None else w * (m / w.norm(dim=1).detach())[:, None]
        return torch.func.functional_call(self.model, weights, kwargs=inputs)


def relative_error(got: dict, expected: dict) -> float:
    """Over all parameters as one vector: |got - expected| / |expected|."""
    assert got.keys() == expected.keys(), got.keys() ^ expected.keys()
    difference = math.sqrt(sum((got[k] - expected[k]).double().square().sum().item() for k in expected))
    return difference / math.sqrt(sum(expected[k].double().square().sum().item() for k in expected))
