"""Cross-encoders for mining: the one module of data_prep that loads sentence-transformers."""

import hashlib
import inspect
from pathlib import Path

import numpy as np

from data_prep.common.errors import BadInput, Failed, first_line
from data_prep.texts.tokenizer_rules import WITHOUT_NETWORK

TRUST = "give --trust-remote-code only if you have read it"


def _library():
    try:
        import sentence_transformers
    except ImportError:
        raise Failed("--rescore needs sentence-transformers: pip install 'embedfleet[mine]'") from None
    from transformers.utils import logging

    logging.disable_progress_bar()
    return sentence_transformers


class CrossEncoderScorer:
    """A cross-encoder from a folder or the hub, as a miner.PairScorer, with the activation that the folder states.

    BadInput: no cross-encoder (its classifier would be random numbers), more than one score, or its own code without
    trust_remote_code.
    """

    def __init__(self, path: str, *, device: str | None = None, trust_remote_code: bool = False):
        library = _library()
        kinds = _architectures(path)
        if not any(kind.endswith(("ForSequenceClassification", "ForCausalLM")) for kind in kinds):
            raise BadInput(f"--rescore {path}: is no cross-encoder (its architecture: {', '.join(kinds) or 'none'})")
        try:
            self.model = library.CrossEncoder(path, device=device, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise _unloadable("--rescore", path, error) from None
        if self.model.num_labels != 1:
            raise BadInput(f"--rescore {path}: gives {self.model.num_labels} scores for a pair; it must give one")
        _check("--rescore", path, self.model, trust_remote_code)
        self.max_len = self.model.max_seq_length if hasattr(self.model, "max_seq_length") else self.model.max_length
        self.digest = _digest(self.model, (self.max_len, str(self.model.activation_fn)))

    def scores(self, pairs: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (n, 1) float32 scores, and (n,) bool: the pair was truncated."""
        cut = _cut(self.model.tokenizer, self.max_len, [query for query, _ in pairs], [text for _, text in pairs])
        scores = self.model.predict(pairs, show_progress_bar=False)
        return np.asarray(scores, np.float32).reshape(-1, 1), cut


def _architectures(path: str) -> list[str]:
    from transformers import PretrainedConfig

    try:
        settings, _ = PretrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        here = Path(path).exists()
        nowhere = f"is no folder, nor did the hub give it; {WITHOUT_NETWORK.format(path)}"
        state = "has no config.json that can be read" if here else nowhere
        raise BadInput(f"--rescore {path}: {state} ({first_line(error)})") from None
    return settings.get("architectures") or []


def _unloadable(flag: str, path: str, error: Exception) -> BadInput:
    mend = f"; {TRUST}" if "trust_remote_code" in str(error) else ""
    return BadInput(f"{flag} {path}: cannot be loaded ({type(error).__name__}: {first_line(error)}){mend}")


def _check(flag: str, path: str, model, trust_remote_code: bool) -> None:
    """Raises BadInput if a folder's own code was not run, or its tokenizer is slow and cannot report truncation.

    Without the folder's code the library may load another class: a silent and large loss.
    """
    has_own_code = any(getattr(getattr(module, "config", None), "auto_map", None) for module in model.modules())
    if has_own_code and not trust_remote_code:
        raise BadInput(f"{flag} {path}: brings its own code (auto_map in config.json), which is not run; {TRUST}")
    if not getattr(model.tokenizer, "is_fast", False):
        raise BadInput(f"{flag} {path}: has no fast tokenizer (tokenizer.json)")


def _cut(tokenizer, max_len: int, *texts: list[str]) -> np.ndarray:
    """Returns (n,) bool: the text, or pair of texts, is longer than max_len tokens."""
    encoded = tokenizer(*texts, truncation=True, max_length=max_len, return_attention_mask=False)
    return np.array([bool(encoding.overflowing) for encoding in encoded.encodings])


def _digest(model, facts: tuple) -> str:
    """Hashes a model: modules, the folder's own code, tokenizer, weights and the given facts."""
    import torch

    digest = hashlib.blake2b(repr((str(model), facts)).encode(), digest_size=8)
    own = {
        inspect.getmodule(type(m)) for m in model.modules() if type(m).__module__.startswith("transformers_modules.")
    }
    digest.update("".join(sorted(map(inspect.getsource, own))).encode())
    digest.update(model.tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
