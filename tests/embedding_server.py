"""An OpenAI-compatible /v1/embeddings on loopback that fails on a seeded schedule and keeps a log of every call."""

import hashlib
import re
from functools import cache

import numpy as np

from tests.language_model import MODEL, Call, LanguageModel

D = 32


@cache
def _word(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(D)


@cache
def _turn() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))[0]


def vector_of(text: str) -> np.ndarray:
    """The model's vector, of length 1: texts with the same words are near. Questions are turned away by one rotation,
    which an adapter can learn to undo."""
    vector = sum(map(_word, re.findall(r"\w+", text.lower())), np.zeros(D))
    if "?" in text:
        vector = vector @ _turn() + 0.5 * vector
    return (vector / max(np.linalg.norm(vector), 1e-12)).astype(np.float32)


class EmbeddingServer(LanguageModel):
    """size: numbers of a vector, the first of vector_of and zeros. length: of every vector. most: texts of a call that
    it takes. refused: what no text of a call may hold. counted: whether tokens are. more: of LanguageModel."""

    path = "/v1/embeddings"

    def __init__(
        self, *, size: int = D, length: float = 1.0, most: int = 2048, refused: str = "", counted: bool = True, **more
    ):
        super().__init__(**more)
        self.size, self.length, self.most, self.refused, self.counted = size, length, most, refused, counted

    def name_of(self, body: dict) -> str:
        return hashlib.sha256("\0".join(body["input"]).encode()).hexdigest()[:8]

    def begin(self, name: str, body: dict) -> tuple[Call, str]:
        call, outcome = super().begin(name, body)
        if len(body["input"]) > self.most:
            return call, "422 batch"
        if self.refused and any(self.refused in text for text in body["input"]):
            return call, "400 length"
        return call, outcome

    def whole(self, handler, call: Call) -> dict:
        texts = call.body["input"]
        vectors = np.zeros((len(texts), self.size), np.float32)
        own = np.array([vector_of(text) for text in texts])[:, : self.size]
        vectors[:, : own.shape[1]] = self.length * own
        rows = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(vectors)]
        tokens = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens} if self.counted else None
        return {"object": "list", "data": rows[::-1], "model": MODEL, "usage": usage}  # order says nothing, index does

    def answered(self) -> list[str]:
        """The texts of every whole answer, each as often as it was paid."""
        with self.lock:
            return [text for call in self.calls if call.outcome == "answered" for text in call.body["input"]]
