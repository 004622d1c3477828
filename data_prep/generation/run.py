"""One run over the chunks: what is asked, joined and written, with its counts."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from data_prep.common.console import Meter, result, say, track
from data_prep.common.errors import Failed
from data_prep.common.files import rejected_name, whole_file, write_json
from data_prep.common.finite import NULLS, is_finite, with_nulls
from data_prep.common.workers import batches
from data_prep.generation.answer import Answer
from data_prep.generation.answer_parser import PAIRS_FORMAT, Parsed
from data_prep.generation.client import Model, messages
from data_prep.generation.concurrency import Asking
from data_prep.generation.config import QuestionGenerationConfig
from data_prep.generation.filters import Encoder, Filter, Pair
from data_prep.generation.prompt import Prompt
from data_prep.generation.selection import ParsedAnswers
from data_prep.model_server.answer_cache import AnswerCache, Reason, key_of, part_of
from data_prep.model_server.client import Unanswered
from data_prep.model_server.endpoint import endpoint
from data_prep.stores.base import Chunk

BLOCK = 512  # pairs that the filters see at once
MILLION = 1_000_000  # tokens that a price is for


class Run:
    """One call of `generate`, with its counts."""

    def __init__(
        self,
        config: QuestionGenerationConfig,
        prompt: Prompt,
        chunks: Iterable[Chunk],
        cache: AnswerCache,
        scratch: Path | None = None,
    ):
        """chunks: read again and again. scratch: folder of a temporary file; None: the output's."""
        self.config, self.prompt, self.chunks, self.cache = config, prompt, chunks, cache
        self.parsed = ParsedAnswers(scratch or config.output.parent)
        self.unanswered: dict[str, Unanswered] = {}
        self.asked = self.reused = self.pairs = self.uncounted = 0
        self.tokens = [0, 0]  # of this run: in, out
        self.retries: Counter[str] = Counter()  # repeated calls, by kind

    def _own(self) -> Iterator[Chunk]:
        """Yields the chunks that this process asks about."""
        part = self.config.worker
        return (chunk for chunk in self.chunks if part is None or part.holds(chunk.text))

    def join(self, unanswered: Mapping[bytes, Reason]) -> None:
        """Takes over what the parts found. Raises Failed, naming those that are not finished. unanswered: by key_of."""
        missing, parts = Counter(), self.cache.parts
        for chunk in self.chunks:
            if chunk.text in self.cache:
                self.reused += 1
            elif (key := key_of(chunk.text)) in unanswered:
                self.unanswered[chunk.text] = Unanswered(*unanswered[key])
            else:
                missing[part_of(chunk.text, parts or 1)] += 1
        if missing and parts is None:
            raise Failed(f"--join: no part has run in {self.cache.path.parent}; run --part 1/N … N/N with this --cache")
        if missing:
            each = ", ".join(f"--part {number}/{parts} ({count:,})" for number, count in sorted(missing.items()))
            raise Failed(f"--join: {missing.total():,} chunks have no answer yet; run again: {each}; then join")

    def save_unanswered(self) -> dict[bytes, Reason]:
        """Records the chunks of this part without an answer, and returns them, by key_of."""
        reasons = {key_of(text): (str(error), error.again) for text, error in self.unanswered.items()}
        self.cache.save_unanswered(reasons)
        return reasons

    def end_part(self) -> None:
        """Records the chunks without an answer. Raises Failed if some may get one later."""
        part, waiting = self.config.part, sum(again for _, again in self.save_unanswered().values())
        answers = f"({self.asked:,} answers from this run, {self.reused:,} from before)"
        result(f"part {part}: {sum(1 for _ in self._own()):,} chunks {answers}; pairs are written by --join")
        if waiting:
            raise Failed(f"{waiting:,} chunks of part {part} have no answer yet; run the same command again")

    def ask(self) -> None:
        config = self.config
        total = sum(1 for _ in self._own())
        if all(chunk.text in self.cache for chunk in self._own()):
            self.reused = total
            return
        server = endpoint(config.base_url)
        model = Model(
            server,
            config.model,
            temperature=config.temperature,
            response_format=PAIRS_FORMAT,
            timeout=config.timeout,
            retry=config.retry,
            pace=config.pace,
        )
        self.retries = model.retries
        say(f"asking {config.model} at {server}, {config.concurrency} at a time; answers are kept in {self.cache.path}")
        for url, count in self.cache.urls.items():
            if url != server.url:
                say(f"note: {count:,} answers in that file came from {url}; they are used (--cache DIR keeps others)")
        with Meter("asking", total) as meter:

            def on_answer(text: str, answer: Answer, parsed: Parsed) -> None:
                self.parsed.add(text, parsed)
                self.asked += 1
                self.pairs += len(parsed.pairs)
                self._count(answer)
                meter.show(self.asked + self.reused, self.asked, self.note())

            asking = Asking(model, self.cache, self._wanted(), config.concurrency, on_answer)
            try:
                asking.run()
            except BaseException:
                say(f"{len(self.cache):,} answers are kept in {self.cache.path}; the same command goes on from there")
                raise
            finally:
                say(f"this run: {self.asked:,} answers, {self.note()}")
        self.unanswered = asking.unanswered

    def _wanted(self) -> Iterator[tuple[str, list[dict[str, str]]] | None]:
        for chunk in self._own():
            if chunk.text in self.cache:
                self.reused += 1
                yield None
            else:
                yield chunk.text, messages(self.config.system_prompt, self.prompt.render(chunk.text))

    def _count(self, answer: Answer) -> None:
        counts = (answer.tokens_in, answer.tokens_out)
        self.uncounted += None in counts
        self.tokens = [sum(pair) for pair in zip(self.tokens, (count or 0 for count in counts))]

    def note(self) -> str:
        tokens_in, tokens_out = self.tokens
        note = f"{self.pairs:,} pairs, {tokens_in:,} + {tokens_out:,} tokens"
        if self.uncounted:
            note += f" ({self.uncounted:,} answers without a count)"
        if self.config.price_in is not None:
            cost = (tokens_in * self.config.price_in + tokens_out * self.config.price_out) / MILLION
            note += f", cost {cost:,.4f}"
        repeated = ", ".join(f"{kind} x {count:,}" for kind, count in sorted(self.retries.items()))
        return note + (f", repeated calls: {repeated}" if repeated else "")

    def write(self, encoder: Encoder | None, every_chunk: Callable[[], Iterator[Chunk]], total: int) -> None:
        """Writes the output. every_chunk: those that a question could find. total: number of chunks."""
        output, rejected = self.config.output, rejected_name(self.config.output)
        label = "indexing for the round trip"
        filters = self.config.filters.build(lambda: track(every_chunk(), label), encoder)
        no_pair = None
        with whole_file(rejected) as rejects:
            writer = _Writer(rejects, self.cache, self.parsed, self.unanswered)
            try:
                with whole_file(output) as lines:
                    for block in batches(writer.pairs(track(self.chunks, "writing", total)), BLOCK):
                        writer.write(lines, block, filters)
                    if not writer.count:
                        raise Failed(f"no pair came out, so {output} is not written; {rejected} says why")
            except Failed as error:
                no_pair = error
        for kind, count in sorted(writer.reasons.items()):
            say(f"left out: {count:,} x {kind}, such as {writer.examples[kind]}")
        if writer.reasons:
            say(f"all that was left out, with reasons: {rejected}")
        if writer.nulls:
            say(f"note: {writer.nulls:,} pairs: {NULLS}")
        if no_pair:
            raise no_pair
        self._write_usage(writer)
        what = f"{writer.count:,} pairs from {writer.chunks:,} chunks"
        result(f"{output}: {what} ({self.asked:,} answers from this run, {self.reused:,} from before)")
        if writer.waiting:
            raise Failed(
                f"{writer.waiting:,} chunks have no answer yet and {output} lacks their pairs; run the same command "
                "again: it asks about those only"
            )

    def _write_usage(self, writer: "_Writer") -> None:
        """Writes what the pairs have cost beside them, answers of earlier runs included. cost: null without prices, or
        where a server did not count."""
        tokens_in, tokens_out = writer.tokens
        prices = self.config.price_in, self.config.price_out
        known = None not in prices and not writer.uncounted
        usage = {"pairs": writer.count, "answers": len(writer.answers), "answers_without_a_count": writer.uncounted}
        usage |= {"tokens_in": tokens_in, "tokens_out": tokens_out, "price_in": prices[0], "price_out": prices[1]}
        usage["cost"] = (tokens_in * prices[0] + tokens_out * prices[1]) / MILLION if known else None
        write_json(self.config.output.with_name(f"{self.config.output.stem}.usage.json"), usage)


class _Writer:
    """Turns answers into lines of the output and of the rejected, with counts."""

    def __init__(
        self, rejects: IO[str], cache: AnswerCache, parsed: ParsedAnswers, unanswered: Mapping[str, Unanswered]
    ):
        self.rejects, self.cache, self.parsed, self.unanswered = rejects, cache, parsed, unanswered
        self.chunks = 0
        self.count = 0  # pairs written
        self.nulls = 0  # of them, those with NaN or infinity in their metadata
        self.waiting = 0  # chunks without an answer that may get one later
        self.answers: set[bytes] = set()  # keys of the answers read: chunks of one text share one
        self.uncounted = 0  # of them, those whose tokens the server did not count
        self.tokens = [0, 0]  # of all answers: in, out
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}  # kind of reason -> its first chunk and full reason

    def pairs(self, chunks: Iterable[Chunk]) -> Iterator[Pair]:
        """Yields the pairs of every chunk, and writes what is no pair to the rejected."""
        for chunk in chunks:
            self.chunks += 1
            answer = self.cache.get(chunk.text)
            if answer is None:
                unanswered = self.unanswered[chunk.text]
                self.waiting += unanswered.again
                self.reject(chunk, str(unanswered))
                continue
            self._count(chunk.text, answer)
            parsed = self.parsed.of(chunk.text, answer)
            if answer.refusal and not parsed.pairs:
                parsed = Parsed(misfits=[f"refusal: {answer.refusal}"])
            for misfit in parsed.misfits:
                self.reject(chunk, misfit, raw=answer.text, finish=answer.finish)
            for question, text in parsed.pairs:
                yield Pair(chunk, question, text)

    def _count(self, text: str, answer: Answer) -> None:
        if (key := key_of(text)) in self.answers:
            return
        self.answers.add(key)
        counts = answer.tokens_in, answer.tokens_out
        self.uncounted += None in counts
        self.tokens = [total + (count or 0) for total, count in zip(self.tokens, counts)]

    def write(self, lines: IO[str], pairs: list[Pair], filters: list[Filter]) -> None:
        reasons: list[str | None] = [None] * len(pairs)
        for each in filters:
            kept = [row for row, reason in enumerate(reasons) if reason is None]
            if kept:
                for row, reason in zip(kept, each([pairs[row] for row in kept])):
                    reasons[row] = reason
        for pair, reason in zip(pairs, reasons):
            if reason is not None:
                self.reject(pair.chunk, reason, question=pair.question, answer=pair.answer)
                continue
            line = {"chunk_id": pair.chunk.id, "question": pair.question, "answer": pair.answer}
            line |= {"metadata": with_nulls(pair.chunk.metadata), "context": pair.chunk.text}
            self.nulls += not is_finite(pair.chunk.metadata)
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.count += 1

    def reject(self, chunk: Chunk, reason: str, **details: str) -> None:
        """Writes a line to the rejected, in ASCII: a raw answer may hold text that UTF-8 cannot encode."""
        kind = reason.partition(":")[0]
        self.reasons[kind] += 1
        self.examples.setdefault(kind, f"{chunk.id}: {reason}")
        self.rejects.write(json.dumps({"chunk_id": chunk.id, "reason": reason, **details}) + "\n")
