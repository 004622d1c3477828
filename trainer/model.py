"""The embedder: transformer, pooling, dense layers, normalisation; from and to a sentence-transformers folder."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from data_prep.model_folder import read_object
from data_prep.problems import BadInput
from trainer import adapters, dense, quantized
from trainer.config import FreezeConfig, ModelConfig
from trainer.families import FAMILIES, family_of
from trainer.folder import POOLINGS, TRUST, ModelSpec, fetch, read_spec
from trainer.packing import Packing, Run, register, runs_of
from trainer.recompute import recompute


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """(texts, tokens, d) hidden states and (texts, tokens) 0/1 mask -> (texts, d). Padding may stand on either side.

    mean: over real tokens. cls: the first real token. last: the last real token. weighted_mean: over real tokens, the
    n-th with weight n (Muennighoff 2022, arXiv:2202.08904, eq. 2).
    """
    if how in ("mean", "weighted_mean"):
        weights = mask.to(hidden.dtype) if how == "mean" else (mask.cumsum(dim=1) * mask).to(hidden.dtype)
        weights = weights.unsqueeze(-1)
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
        if how == "weighted_mean":
            weights = torch.arange(1, run.length + 1, dtype=texts.dtype, device=texts.device)
            pooled.append((texts * (weights / weights.sum())[:, None]).sum(dim=1))
        else:
            pooled.append(texts.mean(dim=1) if how == "mean" else texts[:, 0 if how == "cls" else -1])
    return torch.cat(pooled)


def finish(pooled: Tensor, dense_layers: nn.ModuleDict, normalize: bool) -> Tensor:
    """(texts, pooled size) -> (texts, d): what stands behind the pooling, in fp32."""
    for layer in dense_layers.values():
        pooled = layer(pooled)
    return F.normalize(pooled, dim=1) if normalize else pooled


class Embedder(nn.Module):
    """Token ids -> one fp32 embedding per text, of length 1 where the model normalises.

    packing: texts run without padding where the device and the model's family allow it, see pack(). model_dropout:
    whether training runs the model's own dropout. adapter: what is trained in place of the model's own weights.
    dense: layers behind the pooling, see dense.py.
    """

    def __init__(
        self,
        backbone: nn.Module,
        dense_layers: nn.ModuleDict,
        pooling: str,
        normalize: bool,
        model_dropout: bool = False,
    ):
        super().__init__()
        self.backbone, self.dense = backbone, dense_layers
        self.model_dropout = model_dropout
        self.adapter: adapters.Adapter | None = None
        self.quantised: dict[str, nn.Module] = {}
        self.recomputed: list[nn.Module] = []
        self.packing: Packing | None = None
        # A decoder would keep keys and values of every layer for a generation that never comes.
        self.own_use_cache = getattr(backbone.config, "use_cache", None)
        backbone.config.use_cache = False
        self.pooling, self.normalize = pooling, normalize

    @property
    def size(self) -> int:
        """d, the length of an embedding."""
        return list(self.dense.values())[-1].linear.out_features if self.dense else self.pooled_size

    @property
    def pooled_size(self) -> int:
        return self.backbone.config.hidden_size

    def train(self, mode: bool = True) -> "Embedder":
        """Dropout on (where the run asks for any) or off; layers are recomputed in training only."""
        self.training = mode
        self.backbone.train(mode and self.model_dropout)
        self.dense.train(mode)
        for module in self.recomputed:
            module.training = mode
        for module in self.quantised.values():  # see quantized.layers
            module.training = True
        for name, module in self.backbone.named_modules():
            if adapters.is_dropout(name):
                module.training = mode
        self.noisy = mode and (self.model_dropout or (self.adapter is not None and self.adapter.dropout))
        return self

    def recompute(self) -> None:
        """From now on the blocks keep their inputs only, and make the rest again in the backward pass."""
        self.recomputed = recompute(self)
        self.train(self.training)

    def stored(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by name: the adapter, or all weights."""
        if self.adapter is None:
            return self.backbone.state_dict(keep_vars=True) | self.dense.state_dict(keep_vars=True)
        return self.trained()

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """All parameters by the names that a checkpoint gives them."""
        return dict([*self.backbone.named_parameters(), *self.dense.named_parameters()])

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.parameters_by_name().items() if p.requires_grad}

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
        if self.noisy:  # with dropout off the modules stay in eval mode, which is exact for every family
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
        return finish(pooled, self.dense, self.normalize)


def load_embedder(
    config: ModelConfig,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
):
    """(Embedder in fp32 on the CPU, tokenizer, ModelSpec, untrained) from a folder or hub id.

    checkpoint: folder of ours to take the trained weights from instead (resume); everything else still comes from
    `config`. device, dtype: where a quantised base is to lie (it cannot move), and what it computes in. seed: of a new
    adapter. untrained: tensors of a pooler that no pooling here uses, by name; not trained, but exported again, so that
    the exported folder is as whole as the one it came from. Raises BadInput for a folder that cannot be loaded.
    """
    folder = fetch(config.path, config.trust_remote_code)
    spec = read_spec(config, folder)
    tokenizer = load_tokenizer(config, folder)
    spec.notes.extend(eos_notes(tokenizer, spec))
    embedder, untrained = build_embedder(spec, config, checkpoint, device, dtype, seed)
    if config.tokenizer:
        _check_vocabulary(tokenizer, embedder.backbone, config)
    return embedder, tokenizer, spec, untrained


def build_embedder(
    spec: ModelSpec,
    config: ModelConfig,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> tuple[Embedder, dict[str, Tensor]]:
    """(Embedder, untrained) of what read_spec found; see load_embedder."""
    adapted = spec.is_adapter or config.finetune != "full"
    source = spec.base if adapted else checkpoint or spec.path
    quantised = quantized.arguments(spec.bits, dtype, device or torch.device("cpu")) if spec.bits else {}
    backbone = _load_backbone(source, spec, config, quantised)
    pooler, untrained = getattr(backbone, "pooler", None), {}
    if pooler is not None:
        untrained = {} if spec.bits else {f"pooler.{name}": t.clone() for name, t in pooler.state_dict().items()}
        backbone.pooler = None
    layers = dense.load(spec.dense, None if adapted or not checkpoint else checkpoint).requires_grad_(not adapted)
    embedder = Embedder(backbone, layers, spec.pooling, spec.normalize, config.dropout == "model")
    if spec.bits:
        layers.to(device or torch.device("cpu"))  # where the base lies
        embedder.quantised = quantized.layers(backbone)
    if spec.is_adapter:
        embedder.adapter = adapters.load(backbone, Path(spec.path))
    elif config.finetune != "full":
        embedder.adapter = adapters.attach(backbone, config.lora, _lasting(config.path), seed)
        if checkpoint:
            embedder.adapter.read(checkpoint)
    freeze(backbone, config.freeze)
    return embedder.train(), untrained


def _load_backbone(source, spec: ModelSpec, config: ModelConfig, quantised: dict) -> nn.Module:
    """The transformer in fp32 (or quantised), with every tensor found. Raises BadInput."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # one per rank, for seconds of work
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing or left over is looked at here
    try:
        settings, kind, remote = read_settings(source, spec, config)
        family = FAMILIES.get(settings.model_type)
        code = {"trust_remote_code": config.trust_remote_code} if kind is transformers.AutoModel else {}
        backbone, found = kind.from_pretrained(
            source, config=settings, dtype=torch.float32, output_loading_info=True, **code, **quantised
        )
    except Exception as error:  # whatever a damaged folder makes the library raise is the folder's fault
        raise BadInput(f"model.path: {source} cannot be loaded ({type(error).__name__}: {error})") from None
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(k for k in [*found["missing_keys"], *map(str, found["mismatched_keys"])] if "pooler." not in k)
    if missing:  # they would be random
        raise BadInput(f"model.path: {source} lacks {len(missing)} tensors of the model, among them {missing[0]}")
    strange = [k for k in found["unexpected_keys"] if remote and f"{family.blocks}." in k]
    if strange:
        raise BadInput(
            f"model.path: {source} holds {len(strange)} tensors that the family {settings.model_type} does not know, "
            f"among them {strange[0]}: its own code is needed: {TRUST}"
        )
    return backbone


def read_settings(source, spec: ModelSpec, config: ModelConfig):
    """(transformers' config of a folder, the class of its model, whether the folder's own code is left out)."""
    import transformers

    settings = transformers.AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    remote = bool(getattr(settings, "auto_map", None)) and not config.trust_remote_code
    if remote:
        del settings.auto_map  # the folder that we write holds no code
    if spec.bidirectional is not None and spec.bidirectional != (not getattr(settings, "is_causal", True)):
        settings.is_causal = not spec.bidirectional
    family = None if spec.own_code else FAMILIES.get(settings.model_type)
    return settings, getattr(transformers, family.model_class if family else "AutoModel"), remote


def _lasting(path: str) -> str:
    """What to call the base in an adapter's files: the hub id, or the whole path of a folder."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def freeze(backbone: nn.Module, config: FreezeConfig) -> None:
    """Excludes parts of the backbone from training; which ones there are was checked by read_spec."""
    if config == FreezeConfig():
        return
    family = family_of(backbone)
    parts = [backbone.get_submodule(name) for name in family.embeddings] if config.embeddings else []
    for part in [*parts, *backbone.get_submodule(family.blocks)[: config.layers]]:
        part.requires_grad_(False)


def count_parameters(embedder: Embedder) -> tuple[int, int]:
    """(trained, all) numbers in the model, whatever an engine or a quantisation did to their tensors."""
    counts = {True: 0, False: 0}
    for parameter in embedder.parameters():
        state = getattr(parameter, "quant_state", None)  # 4-bit: two numbers in a byte
        whole = state.shape.numel() if state is not None else getattr(parameter, "ds_numel", parameter.numel())
        counts[parameter.requires_grad] += whole
    return counts[True], counts[True] + counts[False]


def load_tokenizer(config: ModelConfig, folder: str):
    """The fast tokenizer (slow ones cannot say what they cut) of the folder, or of model.tokenizer. Raises BadInput."""
    from transformers import AutoTokenizer

    key, source = ("model.tokenizer", fetch(config.tokenizer)) if config.tokenizer else ("model.path", folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        raise BadInput(f"{key}: {source} has no usable tokenizer ({type(error).__name__}: {error})") from None
    if not tokenizer.is_fast:
        raise BadInput(f"{key}: {source} has no fast tokenizer (tokenizer.json); convert it with transformers")
    if read_object(Path(folder) / "sentence_bert_config.json").get("do_lower_case"):
        _lower(tokenizer)
    if config.append_eos:
        _append_eos(tokenizer, f"{key}: {source}")
    return tokenizer


def _lower(tokenizer) -> None:
    """As sentence-transformers does where the folder says so; an exported tokenizer does it everywhere."""
    from tokenizers.normalizers import Lowercase, Sequence

    own = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = Sequence([Lowercase(), own]) if own else Lowercase()


def _append_eos(tokenizer, where: str) -> None:
    """Makes the tokenizer itself end every text in EOS, so that an exported folder does so everywhere."""
    from tokenizers.processors import Sequence, TemplateProcessing

    eos = tokenizer.eos_token
    if eos is None:
        raise BadInput(f"model.append_eos: the tokenizer of {where} has no EOS token")
    if _ends_in_eos(tokenizer):
        return
    own = tokenizer.backend_tokenizer.post_processor
    added = TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = Sequence([own, added]) if own else added


def _ends_in_eos(tokenizer) -> bool:
    return tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]


def eos_notes(tokenizer, spec: ModelSpec) -> list[str]:
    """A line where the last token is pooled and is not an EOS."""
    if spec.pooling != "last" or _ends_in_eos(tokenizer):
        return []
    return ["pooling last: the tokenizer ends no text in EOS, so the text's own last token is taken (model.append_eos)"]


def _check_vocabulary(tokenizer, backbone: nn.Module, config: ModelConfig) -> None:
    largest, rows = max(tokenizer.get_vocab().values()), backbone.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise BadInput(
            f"model.tokenizer: {config.tokenizer} has token ids up to {largest}, but {config.path} knows {rows} tokens"
        )


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
    """Writes a folder that sentence-transformers and transformers load. weights: fp32 CPU tensors by their names here,
    of the whole model or of its adapter.
    """
    backbone = embedder.backbone
    dense.write(folder, spec.dense, weights)
    weights = {name: tensor for name, tensor in weights.items() if not dense.is_of(name, spec.dense)}
    if embedder.adapter:
        embedder.adapter.write(folder, weights)
    else:
        # Today's tensor names, not those of the file that was once loaded: the same on every engine.
        backbone.config.use_cache = embedder.own_use_cache
        backbone.save_pretrained(folder, state_dict=weights, save_original_format=False)
        backbone.config.use_cache = False
    tokenizer.save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *("Dense" for _ in spec.dense)] + (["Normalize"] if spec.normalize else [])
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    pooling = {"word_embedding_dimension": embedder.pooled_size} | {
        key: name == spec.pooling for name, key in POOLINGS.items()
    }
    prompts = {"query": spec.query_prompt, "document": spec.passage_prompt}
    for module in modules[1:]:
        (folder / module["path"]).mkdir(exist_ok=True)
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        # one length for both sides is all that this file can say: the longer, so that nothing is cut silently
        "sentence_bert_config.json": {"max_seq_length": max(spec.query_max_len, spec.passage_max_len)}
        | (_of_base(embedder, spec) if embedder.adapter else {}),
        "config_sentence_transformers.json": {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if spec.normalize else "dot",
        },
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _of_base(embedder: Embedder, spec: ModelSpec) -> dict:
    """How sentence-transformers (and folder.read_spec) must load an adapter's base, where its own files do not say."""
    arguments: dict = {}
    if spec.bidirectional is not None:
        arguments["config_kwargs"] = {"is_causal": not spec.bidirectional}
    if spec.bits:
        arguments["model_kwargs"] = {"quantization_config": quantized.settings(spec.bits, None)}
    return arguments
