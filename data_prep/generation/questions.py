"""Question-answer pairs from the chunks of a store with a language model.

    config = QuestionGenerationConfig(collection_name="docs", path="chroma", model="M", output_path="pairs.jsonl")
    QuestionGenerator(config).generate()

- The collection is read once, into a temporary file (selection.py).
- Every chunk without an answer is sent to the model; answers go to the cache (answer_cache.py).
- The output is written from the cache, in the collection's order, so neither concurrency nor an interruption shows.
- Of several workers each asks about its part of the chunks; `join` writes what one worker would have written.
- With `on` the workers are tasks on a Ray cluster (on_cluster.py), and this process joins their answers.
"""

from importlib.util import find_spec
from pathlib import Path

from data_prep.common.errors import Failed
from data_prep.common.files import cache_folder
from data_prep.common.paths import user_path
from data_prep.generation.answer import Answer
from data_prep.generation.config import QuestionGenerationConfig
from data_prep.generation.filters import Encoder
from data_prep.generation.on_cluster import NEEDED, ask_on_cluster
from data_prep.generation.run import Run
from data_prep.generation.selection import Selection
from data_prep.model_server.answer_cache import AnswerCache
from data_prep.stores.open import open_collection


class QuestionGenerator:
    """Makes the pairs of one config. encoder: for the round-trip filter, in place of BM25."""

    def __init__(self, config: QuestionGenerationConfig, encoder: Encoder | None = None):
        self.config, self.encoder = config, encoder

    def generate(self) -> Path:
        """Writes the output and returns its path.

        One line per pair: {"chunk_id", "question", "answer", "metadata", "context"}, in the collection's order. Chunks
        and parts of answers that give no pair go to OUTPUT.rejected.jsonl, with the reason. BadInput, Failed: nothing
        is written, except where some chunks may get an answer later: then all other pairs are written before Failed is
        raised. Answers are never lost: the same call continues from them. With `part` no pairs are written, and the
        path of the answers is returned.
        """
        prompt = self.config.prompt()
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            raise Failed(f"a language model needs {', '.join(missing)}: pip install 'embedfleet[llm]'")
        request = {"model": self.config.model, "system": self.config.system_prompt or "", "prompt": prompt.parts}
        request["temperature"] = self.config.temperature
        folder = user_path(self.config.cache) if self.config.cache else cache_folder("answers")
        own = {"part": self.config.worker, "reading": self.config.join}
        with open_collection(self.config.store()) as collection, AnswerCache(folder, request, Answer, **own) as cache:
            chunks = Selection(self.config, collection)
            if self.config.on is None:
                run = Run(self.config, prompt, chunks, cache)
                run.join(cache.unanswered()) if self.config.join else run.ask()
                return self._end(run, chunks)
            asked, unanswered = ask_on_cluster(self.config, prompt, chunks, cache, request)
            with AnswerCache(folder, request, Answer, reading=True) as answers:
                run = Run(self.config, prompt, chunks, answers)
                run.join(unanswered)
                run.asked, run.reused = asked, run.reused - asked
                return self._end(run, chunks)

    def _end(self, run: Run, chunks: Selection) -> Path:
        if self.config.part:
            run.end_part()
            return run.cache.path
        run.write(self.encoder, chunks.every_chunk, chunks.total)
        return self.config.output
