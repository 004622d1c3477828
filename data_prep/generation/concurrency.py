"""Asks a chat model about many chunks at once, each text once."""

import asyncio
from collections.abc import Callable, Iterator

from data_prep.generation.answer import Answer
from data_prep.generation.answer_parser import Parsed, parse
from data_prep.generation.client import Model
from data_prep.model_server.answer_cache import AnswerCache
from data_prep.model_server.calls import Calls
from data_prep.model_server.client import Unanswered

Want = tuple[str, list[dict[str, str]]]  # the chunk's text, and the messages to send


class Asking(Calls[Want]):
    """Asks about each text of `wanted` once and puts the answers into the cache.

    on_answer: called with text, answer and parsed answer, once the answer is on disk.
    unanswered: text -> why it has no answer; complete after `run`.
    """

    def __init__(
        self,
        model: Model,
        cache: AnswerCache[Answer],
        wanted: Iterator[Want | None],
        concurrency: int,
        on_answer: Callable[[str, Answer, Parsed], None],
    ):
        super().__init__(model, wanted, concurrency)
        self.cache, self.on_answer = cache, on_answer
        self.unanswered: dict[str, Unanswered] = {}
        self._asked: set[str] = set()  # texts under way

    async def work(self, item: Want) -> None:
        text, messages = item
        if text in self._asked or text in self.unanswered:
            await asyncio.sleep(0)
            return
        self._asked.add(text)
        try:
            answer = await self.model.ask(messages)
            await self.cache.put({text: answer})
        except Unanswered as error:
            self.unanswered[text] = error
            return
        finally:
            self._asked.discard(text)
        parsed = await asyncio.to_thread(parse, answer.text, answer.cut)  # json-repair may take seconds
        self.on_answer(text, answer, parsed)
