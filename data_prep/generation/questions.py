"""Question-answer pairs from the chunks of a store with a language model.

    config = QuestionGenerationConfig(collection_name="docs", path="chroma", model="M", output_path="pairs.jsonl")
    QuestionGenerator(config).generate()

First every chunk is asked about and the answers go to the cache (data_prep.generation.answer_cache); then the output is written from
the cache, in the collection's order. So neither concurrency nor an interruption shows in the output.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import IO

from data_prep.common.console import Meter, result, say, track
from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import rejected_name, whole_file
from data_prep.generation.answer_cache import Answer, AnswerCache, default_cache
from data_prep.generation.answer_parser import PAIRS_FORMAT, Parsed, parse
from data_prep.generation.client import Model, Unanswered, messages, told
from data_prep.generation.concurrency import Asking
from data_prep.generation.config import QuestionGenerationConfig
from data_prep.generation.endpoint import endpoint
from data_prep.generation.filters import Encoder, Filter, Pair
from data_prep.generation.prompt import Prompt
from data_prep.stores.base import Chunk, Collection
from data_prep.stores.open import open_collection

BLOCK = 512  # pairs that the filters see at once
NEEDED = ("openai", "json_repair", "filelock")  # the llm extra
MILLION = 1_000_000  # tokens that a price is for


class QuestionGenerator:
    """Makes the pairs of one config. encoder: texts -> (n, d) vectors, for the round-trip filter instead of BM25."""

    def __init__(self, config: QuestionGenerationConfig, encoder: Encoder | None = None):
        self.config, self.encoder = config, encoder

    def generate(self) -> Path:
        """Writes the output and returns its path.

        One line per pair: {"chunk_id", "question", "answer", "metadata", "context"}, in the collection's order. What
        came of an answer or chunk without a pair stands in OUTPUT.rejected.jsonl with its reason. BadInput, Failed:
        nothing is written, but chunks that got no answer for reasons that may pass: then what there is is written
        first. Answers are never lost: the same call goes on where this one ended.
        """
        prompt = self.config.prompt()
        _check_installed()
        request = {
            "model": self.config.model,
            "system": self.config.system_prompt or "",
            "prompt": prompt.parts,
            "temperature": self.config.temperature,
        }
        cache_folder = Path(self.config.cache) if self.config.cache else default_cache()
        with open_collection(self.config.store()) as collection, AnswerCache(cache_folder, request) as cache:
            run = _Run(self.config, prompt, collection, cache)
            run.ask()
            run.write(self.encoder)
        return self.config.output


def _check_installed() -> None:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise Failed(f"a language model needs {', '.join(missing)}: pip install 'embedfleet[llm]'")


class _Run:
    """One call of `generate`: what is open, and what is counted."""

    def __init__(self, config: QuestionGenerationConfig, prompt: Prompt, collection: Collection, cache: AnswerCache):
        self.config, self.prompt, self.collection, self.cache = config, prompt, collection, cache
        self.unanswered: dict[str, Unanswered] = {}
        self.asked = self.reused = self.pairs = self.uncounted = 0
        self.tokens = [0, 0]  # of this run: in, out
        self.sampled = self._sample()
        count = collection.count(config.where)
        self.total = min(count, config.limit or config.sample or count)
        if not count:
            why = f" fits --where {json.dumps(config.where)}" if config.where else ""
            raise BadInput(f"--collection {config.collection_name}: no chunk{why}")

    def _sample(self) -> set[str] | None:
        """Ids of the chunks whose seeded hash is among the smallest, so that a larger sample contains a smaller."""
        if self.config.sample is None:
            return None
        ids = (chunk.id for chunk in track(self.collection.chunks(self.config.where), "drawing the sample"))

        def draw(chunk_id: str) -> bytes:
            return hashlib.blake2b(f"{self.config.seed}:{chunk_id}".encode(), digest_size=16).digest()

        return set(heapq.nsmallest(self.config.sample, ids, key=draw))

    def chunks(self) -> Iterator[Chunk]:
        """The chunks that are asked about, in the collection's order."""
        chunks = self.collection.chunks(self.config.where)
        if self.sampled is not None:
            return (chunk for chunk in chunks if chunk.id in self.sampled)
        return islice(chunks, self.config.limit)

    def ask(self) -> None:
        """Every chunk without an answer, to the model."""
        config = self.config
        if all(chunk.text in self.cache for chunk in self.chunks()):
            self.reused = self.total
            return
        server = endpoint(config.base_url)
        model = Model(
            server,
            config.model,
            temperature=config.temperature,
            response_format=PAIRS_FORMAT,
            timeout=config.timeout,
            retry=config.retry,
        )
        say(f"asking {config.model} at {server}, {config.concurrency} at a time; answers are kept in {self.cache.path}")
        for url, count in self.cache.urls.items():
            if url != server.url:
                say(f"note: {count:,} answers in that file came from {url}; they are used (--cache DIR keeps others)")
        with Meter("asking", self.total) as meter:

            def on_answer(answer: Answer, parsed: Parsed) -> None:
                self.asked += 1
                self.pairs += len(parsed.pairs)
                self._count(answer)
                meter.show(self.asked + self.reused, self.asked, self._note(model))

            asking = Asking(model, self.cache, self._wanted(), config.concurrency, on_answer)
            try:
                asking.run()
            except BaseException:
                say(f"{len(self.cache):,} answers are kept in {self.cache.path}; the same command goes on from there")
                raise
            finally:
                say(f"this run: {self.asked:,} answers, {self._note(model)}")
        self.unanswered = asking.unanswered

    def _wanted(self) -> Iterator[tuple[str, list[dict[str, str]]] | None]:
        for chunk in self.chunks():
            if chunk.text in self.cache:
                self.reused += 1
                yield None
            else:
                yield chunk.text, messages(self.config.system_prompt, self.prompt.render(chunk.text))

    def _count(self, answer: Answer) -> None:
        counts = (answer.tokens_in, answer.tokens_out)
        self.uncounted += None in counts
        self.tokens = [sum(pair) for pair in zip(self.tokens, (count or 0 for count in counts))]

    def _note(self, model: Model) -> str:
        """What this run has brought and used so far."""
        tokens_in, tokens_out = self.tokens
        note = f"{self.pairs:,} pairs, {tokens_in:,} + {tokens_out:,} tokens"
        if self.uncounted:
            note += f" ({self.uncounted:,} answers without a count)"
        if self.config.price_in is not None:
            cost = (tokens_in * self.config.price_in + tokens_out * self.config.price_out) / MILLION
            note += f", cost {cost:,.4f}"
        return note + (f", repeated calls: {told(model.retries)}" if model.retries else "")

    def write(self, encoder: Encoder | None) -> None:
        """The output and the rejected, from the cache."""
        output, rejected = self.config.output, rejected_name(self.config.output)
        filters = self.config.filters.build(self._among, encoder)
        lacking = None
        with whole_file(rejected) as rejects:
            written = _Written(rejects, self.unanswered)
            try:
                with whole_file(output) as lines:
                    for block in _blocks(written.pairs(track(self.chunks(), "writing", self.total), self.cache)):
                        written.write(lines, block, filters)
                    if not written.count:
                        raise Failed(f"no pair came out, so {output} is not written; {rejected} says why")
            except Failed as error:
                lacking = error
        for kind, count in sorted(written.reasons.items()):
            say(f"left out: {count:,} x {kind}, such as {written.examples[kind]}")
        if written.reasons:
            say(f"all that was left out, with reasons: {rejected}")
        if lacking:
            raise lacking
        what = f"{written.count:,} pairs from {written.chunks:,} chunks"
        result(f"{output}: {what} ({self.asked:,} answers from this run, {self.reused:,} from before)")
        if written.waiting:
            raise Failed(
                f"{written.waiting:,} chunks have no answer yet and {output} lacks their pairs; run the same command "
                "again: it asks about those only"
            )

    def _among(self) -> Iterator[Chunk]:
        """Every chunk that a question could find, whether it was asked about or not."""
        return track(self.collection.chunks(self.config.where), "indexing for the round trip")


class _Written:
    """The pass from answers to lines. count: pairs written; waiting: chunks without an answer that may get one."""

    def __init__(self, rejects: IO[str], unanswered: Mapping[str, Unanswered]):
        self.rejects, self.unanswered = rejects, unanswered
        self.count = self.chunks = self.waiting = 0
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}  # of each kind of reason: the first chunk, and the reason in full

    def pairs(self, chunks: Iterable[Chunk], cache: AnswerCache) -> Iterator[Pair]:
        """The pairs of every chunk; what is none goes to the rejected."""
        for chunk in chunks:
            self.chunks += 1
            answer = cache.get(chunk.text)
            if answer is None:
                why = self.unanswered.get(chunk.text) or Unanswered("not asked: the chunk is new", again=True)
                self.waiting += why.again
                self.reject(chunk, str(why))
                continue
            parsed = parse(answer.text, answer.cut)
            if answer.refusal and not parsed.pairs:
                parsed = Parsed(misfits=[f"refusal: {answer.refusal}"])
            for misfit in parsed.misfits:
                self.reject(chunk, misfit, raw=answer.text, finish=answer.finish)
            for question, text in parsed.pairs:
                yield Pair(chunk, question, text)

    def write(self, lines: IO[str], pairs: list[Pair], filters: list[Filter]) -> None:
        """The pairs that every filter keeps."""
        reasons: list[str | None] = [None] * len(pairs)
        for each in filters:
            kept = [place for place, reason in enumerate(reasons) if reason is None]
            if kept:
                for place, reason in zip(kept, each([pairs[place] for place in kept])):
                    reasons[place] = reason
        for pair, reason in zip(pairs, reasons):
            if reason is not None:
                self.reject(pair.chunk, reason, question=pair.question, answer=pair.answer)
                continue
            line = {"chunk_id": pair.chunk.id, "question": pair.question, "answer": pair.answer}
            line |= {"metadata": pair.chunk.metadata, "context": pair.chunk.text}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.count += 1

    def reject(self, chunk: Chunk, reason: str, **about: str) -> None:
        """ASCII: a raw answer may hold what is no UTF-8."""
        kind = reason.partition(":")[0]
        self.reasons[kind] += 1
        self.examples.setdefault(kind, f"{chunk.id}: {reason}")
        self.rejects.write(json.dumps({"chunk_id": chunk.id, "reason": reason, **about}) + "\n")


def _blocks(pairs: Iterator[Pair]) -> Iterator[list[Pair]]:
    while block := list(islice(pairs, BLOCK)):
        yield block
