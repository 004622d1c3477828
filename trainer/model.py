"""The embedder: transformer, pooling, normalisation; loaded from and saved as a sentence-transformers folder."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from data_prep.problems import BadInput
from trainer.config import ModelConfig
from trainer.folder import POOLINGS, ModelSpec, fetch, read_spec
from trainer.packing import Packing, Run, register, runs_of


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """(texts, tokens, d) hidden states and (texts, tokens) 0/1 mask -> (texts, d). Padding may stand on either side.

    mean: over real tokens. cls: the first real token. last: the last real token.
    """
    if how == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    if how == "cls":
        index = torch.where(mask.bool(), positions, mask.shape[1]).amin(dim=1)
    elif how == "last":
        index = torch.where(mask.bool(), positions, -1).amax(dim=1)
    else:
        raise AssertionError(how)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), index]


def pool_packed(hidden: Tensor, runs: list[Run], how: str) -> Tensor:
    """As pool, for the (tokens, d) hidden states of texts that are laid end to end."""
    pooled = []
    for run, part in zip(runs, hidden.split([run.count * run.length for run in runs])):
        texts = part.view(run.count, run.length, -1)
        pooled.append(texts.mean(dim=1) if how == "mean" else texts[:, 0 if how == "cls" else -1])
    return torch.cat(pooled)


class Embedder(nn.Module):
    """Token ids -> one fp32 embedding per text, of length 1 where the model normalises.

    packing: texts run without padding where the device and the model's family allow it, see pack().
    """

    def __init__(self, backbone: nn.Module, pooling: str, normalize: bool):
        super().__init__()
        self.backbone = backbone
        self.packing: Packing | None = None
        # A decoder would keep keys and values of every layer for a generation that never comes.
        self.own_use_cache = getattr(backbone.config, "use_cache", None)
        backbone.config.use_cache = False
        self.pooling, self.normalize = pooling, normalize

    @property
    def size(self) -> int:
        """d, the length of an embedding."""
        return self.backbone.config.hidden_size

    def pack(self, device: torch.device) -> None:
        """Runs texts end to end from now on, if that is possible on this device."""
        if Packing.fits(self.backbone, device):
            register()
            self.packing = Packing(self.backbone)

    def forward(self, tokens: Tensor, lengths: list[int], seed: int, autocast: torch.dtype | None = None) -> Tensor:
        """Texts end to end -> (texts, d) float32 on the model's device.

        tokens: (sum of lengths,) ids on the CPU; equal lengths should stand side by side. seed: of dropout, the same
        seed gives the same. autocast: dtype of the matrix products, or None for fp32.
        """
        device = next(self.backbone.parameters()).device
        if self.training:  # with dropout off the module stays in eval mode, which is exact for every family
            torch.manual_seed(seed)
        if self.packing:
            self.packing.noise.reseed(seed)
            runs = runs_of(lengths)
            inputs, mask = self.packing.inputs(tokens.to(device), runs), None
        else:
            ids = pad_sequence(tokens.split(lengths), batch_first=True)
            mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long().to(device)
            inputs = {"input_ids": ids.to(device), "attention_mask": mask}
        # The cast of a weight is used once per pass, so caching it would only hold a second copy (of a gathered
        # shard, under ZeRO-3).
        with torch.autocast(device.type, autocast, enabled=autocast is not None, cache_enabled=False):
            hidden = self.backbone(**inputs).last_hidden_state.float()
        pooled = pool_packed(hidden[0], runs, self.pooling) if mask is None else pool(hidden, mask, self.pooling)
        return F.normalize(pooled, dim=1) if self.normalize else pooled


def load_embedder(config: ModelConfig, checkpoint: Path | None = None):
    """(Embedder in fp32 on the CPU, tokenizer, ModelSpec, untrained) from a folder or hub id.

    checkpoint: folder of ours to take the weights from instead (resume); everything else still comes from `config`.
    untrained: tensors of a pooler that no pooling here uses, by name; not trained, but exported again, so that the
    exported folder is as whole as the one it came from. Raises BadInput for a folder that cannot be loaded.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # one per rank, for seconds of work
    folder = fetch(config.path, config.trust_remote_code)
    spec = read_spec(config, folder)
    code = {"trust_remote_code": config.trust_remote_code}
    tokenizer = load_tokenizer(config, folder)
    source = checkpoint or folder
    try:
        backbone, found = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **code)
    except Exception as error:  # whatever a damaged folder makes the library raise is the folder's fault
        raise BadInput(f"model.path: {folder} cannot be loaded ({type(error).__name__}: {error})") from None
    missing = sorted(k for k in [*found["missing_keys"], *map(str, found["mismatched_keys"])] if "pooler." not in k)
    if missing:  # they would be random
        raise BadInput(f"model.path: {source} lacks {len(missing)} tensors of the model, among them {missing[0]}")
    pooler = getattr(backbone, "pooler", None)
    untrained = {f"pooler.{name}": t.clone() for name, t in pooler.state_dict().items()} if pooler is not None else {}
    if pooler is not None:
        backbone.pooler = None
    embedder = Embedder(backbone, spec.pooling, spec.normalize)
    return embedder.train(config.dropout == "model"), tokenizer, spec, untrained


def load_tokenizer(config: ModelConfig, folder: str):
    """The folder's fast tokenizer (slow ones cannot say what they cut). Raises BadInput."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        raise BadInput(f"model.path: {folder} has no usable tokenizer ({type(error).__name__}: {error})") from None
    if not tokenizer.is_fast:
        raise BadInput(f"model.path: {folder} has no fast tokenizer (tokenizer.json); convert it with transformers")
    return tokenizer


def tokenize(texts: list[str], prompt: str, max_len: int, tokenizer) -> tuple[list[list[int]], int]:
    """Token ids of prompt + text, cut at max_len tokens, and how many texts were cut."""
    if not texts:
        return [], 0
    encoded = tokenizer(
        [prompt + text for text in texts],
        truncation=True,
        max_length=max_len,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_overflowing_tokens=False,
    )
    # the fast tokenizer keeps what it cut off beside each encoding
    cut = sum(bool(e.overflowing) for e in encoded.encodings)
    return encoded["input_ids"], cut


def save_embedder(folder: Path, weights: dict[str, Tensor], embedder: Embedder, tokenizer, spec: ModelSpec) -> None:
    """Writes a folder that sentence-transformers and transformers load. weights: fp32 CPU tensors of the backbone."""
    backbone = embedder.backbone
    # Today's tensor names, not those of the file that was once loaded: the same on every engine.
    backbone.config.use_cache = embedder.own_use_cache
    backbone.save_pretrained(folder, state_dict=weights, save_original_format=False)
    backbone.config.use_cache = False
    tokenizer.save_pretrained(folder)
    kinds = ["Transformer", "Pooling"] + (["Normalize"] if spec.normalize else [])
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    pooling = {"word_embedding_dimension": embedder.size} | {
        key: name == spec.pooling for name, key in POOLINGS.items()
    }
    prompts = {"query": spec.query_prompt, "document": spec.passage_prompt}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    if spec.normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        # one length for both sides is all that this file can say: the longer, so that nothing is cut silently
        "sentence_bert_config.json": {"max_seq_length": max(spec.query_max_len, spec.passage_max_len)},
        "config_sentence_transformers.json": {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if spec.normalize else "dot",
        },
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
