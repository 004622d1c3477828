"""Vectors of texts from an OpenAI-compatible /v1/embeddings endpoint, each text paid once.

- Texts are sent in batches, several calls at a time. A vector counts once it is on disk (answer_cache.py).
- A batch that the server refuses is divided, down to the text that it refuses. Where both halves are answered, later
  batches are as small.
- Another address, or another name of the model, has vectors of its own.
"""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.console import Meter, one_line, say
from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import cache_folder
from data_prep.common.paths import user_path
from data_prep.model_server.answer_cache import AnswerCache
from data_prep.model_server.calls import Calls
from data_prep.model_server.client import Client, Retry, Strange, Unanswered, count_of
from data_prep.model_server.endpoint import endpoint

NEEDED = ("openai", "filelock")  # of the llm extra
BATCH = 64  # texts of a call
MILLION = 1_000_000  # tokens that a price is for


@dataclass(frozen=True, slots=True)
class Embedding:
    """A text's vector, as it is kept in the answer cache."""

    vector: str  # base64 of float32, little-endian
    tokens_in: int | None = None  # of the whole call, at its first text; 0 at the others. None: not counted
    url: str = ""  # of the server


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """A model behind an endpoint. No secret: the key comes from the environment or .env."""

    model: str
    url: str | None = None  # None: the environment's, or OpenAI's
    concurrency: int = 8
    timeout: float = 120.0  # seconds for one answer
    retry: Retry = field(default_factory=Retry)
    price_in: float | None = None  # of a million tokens
    cache: Path | None = None  # folder of the vectors; None: in the user's cache folder

    def problems(self) -> list[str]:
        """Returns what is wrong with the settings, with their flags."""
        problems = [] if self.concurrency >= 1 else [f"--concurrency {self.concurrency}: must be 1 or more"]
        if not self.timeout > 0:
            problems.append(f"--timeout {self.timeout:g}: must be above 0")
        if self.price_in is not None and not self.price_in >= 0:
            problems.append(f"--price-in {self.price_in:g}: must be 0 or more")
        return problems


class TextVectors:
    """Vectors of texts by one model behind an endpoint."""

    def __init__(self, config: EmbeddingConfig):
        """Raises BadInput, Failed: no server to ask, no client for it."""
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            raise Failed(f"an embeddings endpoint needs {', '.join(missing)}: pip install 'embedfleet[llm]'")
        self.config, self.server = config, endpoint(config.url, "--endpoint")
        self.folder = user_path(config.cache) if config.cache else cache_folder("vectors")
        self.spent = _Spent(config.price_in)

    def of(self, texts: list[str]) -> np.ndarray:
        """Returns (texts, d) float32. Asks about texts without a vector.

        KeyboardInterrupt, BadInput, Failed: vectors that have arrived are kept. BadInput: the server refuses texts, or
        gives vectors of several sizes.
        """
        request = {"embeddings": self.config.model, "url": self.server.url.rstrip("/")}
        with AnswerCache(self.folder, request, Embedding) as cache:
            if missing := [text for text in dict.fromkeys(texts) if text not in cache]:
                self._ask(missing, cache)
            vectors = [np.frombuffer(base64.b64decode(cache.get(text).vector), "<f4") for text in texts]
            if len(sizes := {len(vector) for vector in vectors}) > 1:
                raise BadInput(
                    f"{self.server.url}: {self.config.model} gave vectors of {', '.join(map(str, sorted(sizes)))} "
                    f"numbers, so it is not one model; delete {cache.path} to ask for all anew"
                )
        return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)

    def _ask(self, texts: list[str], cache: AnswerCache[Embedding]) -> None:
        config = self.config
        model = EmbeddingModel(self.server, config.model, config.timeout, config.retry)
        spent, before = self.spent, self.spent.texts
        if not spent.texts:
            at_a_time = f"{config.concurrency} calls of {BATCH} texts at a time"
            say(f"asking {config.model} at {self.server}, {at_a_time}; vectors are kept in {cache.path}")
        with Meter("embedding", len(texts)) as meter:

            def on_answer(answers: list[Embedding]) -> None:
                spent.add(answers)
                meter.show(spent.texts - before, spent.texts - before, spent.note(model))

            asking = _Asking(model, cache, texts, config.concurrency, on_answer)
            try:
                asking.run()
            except BaseException:
                say(f"{len(cache):,} vectors are kept in {cache.path}; the same command goes on from there")
                raise
            finally:
                say(f"this run so far: {spent.note(model)}")
        _check(asking.unanswered, len(texts), self.server.url)


def _check(unanswered: dict[str, Unanswered], count: int, url: str) -> None:
    """Raises BadInput for refused texts, Failed for those that may be answered later."""
    if not unanswered:
        return
    text, error = next(iter(unanswered.items()))
    such = f"{len(unanswered):,} of {count:,} texts, such as {one_line(text, 60)!r}: {error}"
    if any(one.again for one in unanswered.values()):
        raise Failed(f"{url}: no vector yet for {such}; run the same command again: it asks about those only")
    raise BadInput(f"{url}: no vector for {such}; shorten or remove such texts, the vectors of the others are kept")


class _Spent:
    """Texts and tokens of a run."""

    def __init__(self, price: float | None):
        self.price = price
        self.texts = self.tokens = self.uncounted = 0

    def add(self, answers: list[Embedding]) -> None:
        self.texts += len(answers)
        self.tokens += sum(answer.tokens_in or 0 for answer in answers)
        self.uncounted += sum(answer.tokens_in is None for answer in answers)

    def note(self, model: Client) -> str:
        note = f"{self.texts:,} vectors, {self.tokens:,} tokens"
        note += f" ({self.uncounted:,} texts without a count)" if self.uncounted else ""
        note += "" if self.price is None else f", cost {self.tokens * self.price / MILLION:,.4f}"
        repeated = ", ".join(f"{kind} x {count:,}" for kind, count in sorted(model.retries.items()))
        return note + (f", repeated calls: {repeated}" if repeated else "")


class _Asking(Calls[list[str]]):
    """Asks for the vectors of texts, a batch at a time. unanswered: text -> why it has none; complete after `run`."""

    def __init__(
        self,
        model: "EmbeddingModel",
        cache: AnswerCache[Embedding],
        texts: list[str],
        concurrency: int,
        on_answer: Callable[[list[Embedding]], None],
    ):
        super().__init__(model, self._batches(texts), concurrency)
        self.cache, self.on_answer = cache, on_answer
        self.batch = BATCH
        self.unanswered: dict[str, Unanswered] = {}

    def _batches(self, texts: list[str]) -> Iterator[list[str]]:
        start = 0
        while start < len(texts):
            yield texts[start : (start := start + self.batch)]

    async def work(self, item: list[str]) -> None:
        await self._answered(item)

    async def _answered(self, texts: list[str]) -> bool:
        """Asks about some texts. Returns True if all have a vector."""
        try:
            answers = await self.model.ask(texts)
        except Unanswered as error:
            if error.again or len(texts) == 1:
                self.unanswered |= dict.fromkeys(texts, error)
                return False
            half = len(texts) // 2
            parts = [await self._answered(part) for part in (texts[:half], texts[half:])]
            if all(parts) and self.batch > len(texts) - half:
                self.batch = len(texts) - half
                say(f"note: {self.model.server.url}: {error}; asking for {self.batch} texts at a time")
            return all(parts)
        await self.cache.put(dict(zip(texts, answers)))
        self.on_answer(answers)
        return True


class EmbeddingModel(Client):
    """One embedding model of one server. A request is a list of texts, an answer a list of Embedding."""

    name_flag, thing, lacking, lacks = "--endpoint-model", "text", "no vectors", "no vectors"

    def is_single(self, request: list[str]) -> bool:
        return len(request) == 1

    async def once(self, request: list[str], failed: str) -> list[Embedding]:
        create = self._client.embeddings.with_raw_response.create
        return await self.call(create, input=request, encoding_format="float")

    def pick(self, body: Any, sent: dict[str, Any]) -> list[np.ndarray]:
        """Returns the vectors, in the order of the texts."""
        rows = {row.get("index", place): row["embedding"] for place, row in enumerate(body["data"])}
        count = len(sent["input"])
        if len(body["data"]) != count or rows.keys() != set(range(count)):
            raise Strange(f"the server's answer holds {len(body['data'])} vectors for {count} texts")
        vectors = [np.array(rows[number], dtype=np.float32) for number in range(count)]
        if not all(vector.ndim == 1 and vector.size and np.isfinite(vector).all() for vector in vectors):
            raise Strange("the server's answer holds vectors that are no lists of numbers")
        return vectors

    def answer(self, picked: list[np.ndarray], usage: dict[str, Any]) -> list[Embedding]:
        tokens = count_of(usage.get("prompt_tokens", usage.get("total_tokens")))
        others = None if tokens is None else 0
        encoded = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in picked]
        return [Embedding(vector, others if i else tokens, self.server.url) for i, vector in enumerate(encoded)]
