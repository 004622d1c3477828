"""Asks a model from the nodes of a Ray cluster. Each task is a part of the chunks, as by --part (answer_cache.py).

- This process reads the store. It writes the texts without an answer into a file beside the cache.
- A task asks about its part and appends to a file of its own. A task that runs again continues from its earlier files.
- The chunks that got no answer come back with the results: records of earlier runs may say something else.
- Each of N tasks has an Nth of the endpoint's limits.
- The key comes from the environment of each node. It does not travel.
"""

import json
import platform
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cluster.ray_workers import RayWorkers
from data_prep.common.console import Meter, say
from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import whole_file
from data_prep.common.workers import Workers
from data_prep.generation.answer import Answer
from data_prep.generation.config import QuestionGenerationConfig
from data_prep.generation.prompt import Prompt
from data_prep.generation.run import Run
from data_prep.generation.selection import Selection
from data_prep.model_server.answer_cache import AnswerCache, Reason
from data_prep.model_server.endpoint import endpoint, other_key
from data_prep.stores.base import Chunk

NEEDED = ("openai", "json_repair", "filelock")  # the llm extra
LOCK_SECONDS = 60.0  # until the process that this task replaces has ended
LOOK_SECONDS = 2.0  # between two looks at the answers
SETTLE_SECONDS = 60.0  # for answers of other nodes to become visible


class _Task(NamedTuple):
    """A part of the chunks to ask about."""

    config: QuestionGenerationConfig  # with `part`, and with the server's address
    prompt: Prompt
    request: dict[str, Any]  # see AnswerCache
    texts: Path
    key_name: str | None  # variable of the key; None: the server needs none


class _Asked(NamedTuple):
    """The result of a task."""

    file: Path  # of its answers
    bytes: int
    answers: int
    pairs: int
    tokens: list[int]
    uncounted: int
    retries: Counter[str]
    unanswered: dict[bytes, Reason]  # by key_of


def ask_on_cluster(
    config: QuestionGenerationConfig, prompt: Prompt, chunks: Selection, cache: AnswerCache, request: dict[str, Any]
) -> tuple[int, dict[bytes, Reason]]:
    """Asks about every chunk without an answer. Returns the number of answers, and by key_of the chunks that got none.

    cache: as it was before. Both are recorded in its folder as parts record them. BadInput, Failed: see RayWorkers and
    Run.ask.
    """
    texts = cache.path.absolute().with_name(f".{cache.path.stem}.texts")
    texts.unlink(missing_ok=True)  # of a command that was killed
    try:
        if not (count := _write_texts(texts, chunks, cache)):
            return 0, {}
        server = endpoint(config.base_url)
        say(f"asking {config.model} at {server}, {config.concurrency} at a time on each core; answers: {texts.parent}")
        with RayWorkers(config.on, [texts], cache.path.absolute()) as pool:
            parts = min(pool.count, count, config.requests_per_minute or count)
            key_name = server.key_name if server.key else None
            tasks = [
                _Task(
                    replace(config, base_url=server.url, part=f"{n}/{parts}", on=None), prompt, request, texts, key_name
                )
                for n in range(1, parts + 1)
            ]
            with _shown(cache, count, pool):
                done = pool.together(_ask_part, tasks)  # each once: one that runs twice at once would pay twice
    finally:
        texts.unlink(missing_ok=True)
    _wait_for(done)
    total, unanswered = Run(config, prompt, chunks, cache), {}
    for one in done:
        unanswered |= one.unanswered
        total.asked += one.answers
        total.pairs += one.pairs
        total.uncounted += one.uncounted
        total.tokens = [sum(pair) for pair in zip(total.tokens, one.tokens)]
        total.retries += one.retries
    say(f"this run: {total.asked:,} answers, {total.note()}")
    return total.asked, unanswered


def _write_texts(file: Path, chunks: Selection, cache: AnswerCache) -> int:
    count = 0
    with whole_file(file, 0o600) as lines:
        for chunk in chunks:
            if chunk.text not in cache:
                lines.write(json.dumps(chunk.text) + "\n")  # ASCII: lone surrogates survive
                count += 1
    return count


class _Texts:
    """The chunks to ask about, as a node reads them."""

    def __init__(self, file: Path):
        self.file = file

    def __iter__(self) -> Iterator[Chunk]:
        with open(self.file, encoding="utf-8") as lines:
            for line in lines:
                yield Chunk("", json.loads(line))


def _ask_part(task: _Task) -> _Asked:
    """Asks about one part, in a process of a node."""
    node, folder = platform.node(), task.texts.parent
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise BadInput(f"node {node}: a language model needs {', '.join(missing)}: pip install 'embedfleet[llm]'")
    if task.key_name and (problem := other_key(task.config.base_url, task.key_name)):
        raise BadInput(f"node {node}: {problem}; start Ray on every node with it, no key travels")
    with AnswerCache(folder, task.request, Answer, task.config.worker, patience=LOCK_SECONDS, alone=True) as cache:
        run = Run(task.config, task.prompt, _Texts(task.texts), cache, folder)
        run.ask()
        unanswered = run.save_unanswered()
        size = cache.path.stat().st_size
    return _Asked(cache.path, size, run.asked, run.pairs, run.tokens, run.uncounted, run.retries, unanswered)


@contextmanager
def _shown(cache: AnswerCache, total: int, pool: Workers) -> Iterator[None]:
    """Shows how many answers have come from all nodes."""
    ended, before = threading.Event(), {path: path.stat().st_size for path in cache.files_of_parts()}

    def look() -> None:
        counts: Counter[Path] = Counter()
        with Meter("asking", total) as meter:
            while not ended.wait(LOOK_SECONDS):
                for path in cache.files_of_parts():
                    with suppress(OSError):  # of a network file system; the next look counts these too
                        lines, size = _lines_after(path, before.get(path))
                        counts[path], before[path] = counts[path] + lines, size
                meter.show(counts.total(), counts.total(), pool.note(counts.total(), meter.seconds).removeprefix(", "))

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    except BaseException:
        say(f"answers are kept in {cache.path.parent}; the same command goes on from there")
        raise
    finally:
        ended.set()
        watch.join()


def _lines_after(path: Path, start: int | None) -> tuple[int, int]:
    """Returns the answers behind a place of a file, and where it ends. start: None: a new file, with its head."""
    with open(path, "rb") as file:
        file.seek(start or 0)
        data = file.read()
    return data.count(b"\n") - (start is None and b"\n" in data), (start or 0) + len(data)


def _wait_for(done: list[_Asked]) -> None:
    """Waits until this machine sees all answers. Raises Failed where it does not within SETTLE_SECONDS."""
    until = time.monotonic() + SETTLE_SECONDS
    while unseen := [one.file for one in done if not one.file.is_file() or one.file.stat().st_size < one.bytes]:
        if time.monotonic() > until:
            raise Failed(f"{unseen[0]}: this machine does not see what a node wrote; run the same command again")
        time.sleep(0.2)
