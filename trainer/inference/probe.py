"""Probe texts of any language and vocabulary, and the record of their embeddings in a model folder.

Whoever loads the folder can compare its embeddings with those of the trainer.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.common.errors import BadInput
from data_prep.texts.tokenizer_rules import read_object
from trainer.distributed.device import rounds_products
from trainer.engine.protocol import Engine
from trainer.inference.encode import encode

TEXTS = (
    "How do I reset a forgotten password?",
    "The reset link arrives by mail within a few minutes and is valid for one hour.",
    "warranty",
    "A returned device is checked, cleaned and tested again before it goes back into stock; its warranty starts anew.",
    "Quels documents faut-il pour ouvrir un compte ?",
    "Der Zug nach Wien fährt heute von Gleis 9 ab.",
    "東京の天気は晴れです。",
    "def area(radius): return 3.14159 * radius ** 2",
    "In 1869 Mendeleev left gaps in his table for elements that nobody had seen, and said what they would weigh.",
    "42",
    "Ingredients: flour, water, salt, yeast. Bake at 230 degrees for 35 minutes, the first ten with steam.",
    "Error 0x80070057: the parameter is incorrect.",
)
LENGTHS = (1, 5, 12, 30)  # tokens of the texts from the model's own vocabulary
CUT_UP_TO = 1024  # tokens: a text that is cut at a longer limit would cost more than it proves
PROBE = "probe.json"
LABEL = f"embedding texts for {PROBE}"
COSINE, ROUNDED_COSINE = 0.9999, 0.999  # that embeddings must keep; the second where bf16 or a quantised base round


@dataclass(frozen=True)
class Probe:
    """The trainer's embeddings of the probe texts when the folder was written, with the prompts.

    Truncated at the longer of the two lengths, the only one that a folder states.
    """

    texts: list[str]
    queries: np.ndarray  # (texts, d) float32
    passages: np.ndarray  # (texts, d) float32
    rounded: bool  # computed in bf16 or fp16, or on a quantised base, or one that lost digits in bf16
    zeros: list[str]  # names of the tensors that were all zeros
    step: int | None = None  # optimizer steps behind the weights; None: not recorded by a trainer
    base_rounded: bool = False  # an adapter's base lost digits in bf16 while it was trained (model.base_dtype)

    @property
    def limit(self) -> float:
        """Cosine below which embeddings differ."""
        return ROUNDED_COSINE if self.rounded else COSINE

    def write(self, folder: Path) -> None:
        """Writes the same bytes for the same embeddings."""
        values = {
            "step": self.step,
            "texts": self.texts,
            "size": self.queries.shape[1],
            "rounded": self.rounded,
            **({"base_rounded": True} if self.base_rounded else {}),
            "zero_tensors": self.zeros,
            "queries_float32": _pack(self.queries),
            "passages_float32": _pack(self.passages),
        }
        (folder / PROBE).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_probe(folder: Path) -> Probe:
    """Reads a folder's probe. Raises BadInput if there is none."""
    if not (folder / PROBE).is_file():
        raise BadInput(
            f"{folder}: records no embeddings of its training ({PROBE}), so nothing can be proved of it; checkpoints, "
            "final/ and merged models of this version of embedfleet do"
        )
    values = read_object(folder / PROBE)
    try:
        packed = [base64.b64decode(values[f"{side}_float32"]) for side in ("queries", "passages")]
        sides = [np.frombuffer(side, dtype="<f4").reshape(-1, values["size"]) for side in packed]
        more = values.get("step"), values.get("base_rounded", False)
        return Probe(values["texts"], *sides, values["rounded"], values["zero_tensors"], *more)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{folder / PROBE}: is no record of embeddings ({type(error).__name__}: {error})") from None


def take_probe(engine: Engine, tokenizer, spec, zeros: list[str] = ()) -> Probe:
    """The probe of the model that an engine holds. Collective. tokenizer: one that may be used up."""
    longest = spec.rules.max_len
    texts = [text.strip() for text in probe_texts(tokenizer)]
    if longest <= CUT_UP_TO:
        texts.append(" ".join(TEXTS * (longest // 50 + 1)))
    queries = passages = encode(engine, tokenizer, texts, spec.rules.query_prompt, longest, LABEL).numpy()
    if spec.rules.passage_prompt != spec.rules.query_prompt:
        passages = encode(engine, tokenizer, texts, spec.rules.passage_prompt, longest, LABEL).numpy()
    embedder = engine.embedder
    # A whole model is written with the rounded weights that it was trained with, an adapter without them.
    on_rounded = bool(embedder.adapter and embedder.rounded and embedder.rounded.changed)
    rounded = bool(spec.bits or engine.dtype or rounds_products(engine.device) or on_rounded)
    return Probe(texts, queries, passages, rounded, sorted(zeros), base_rounded=on_rounded)


def probe_texts(tokenizer) -> list[str]:
    """Returns TEXTS and texts of the model's own vocabulary, in case it knows no word of them."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    plain = [id_ for token, id_ in vocabulary if token not in tokenizer.all_special_tokens]
    drawn = [plain[k * len(plain) // sum(LENGTHS)] for k in range(sum(LENGTHS))]
    own = []
    for length in LENGTHS:
        own.append(tokenizer.decode(drawn[:length]))
        drawn = drawn[length:]
    return [*TEXTS, *own]


def _pack(vectors: np.ndarray) -> str:
    return base64.b64encode(vectors.astype("<f4").tobytes()).decode()
