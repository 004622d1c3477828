"""Asks about many chunks at once: bounded concurrency, answers fsynced before they count, a stop that loses none."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from data_prep.common.console import say
from data_prep.generation.answer_cache import Answer, AnswerCache
from data_prep.generation.answer_parser import Parsed, parse
from data_prep.generation.client import Model, Stopped, Unanswered


class Asking:
    """Asks about each text of `wanted` once and puts the answers into the cache.

    Texts are asked about one by one until the server has answered and it is known what it can do, so that a wrong
    server, key or model shows at one call.
    wanted: (the chunk's text, the messages to send), or None to let other tasks run.
    on_answer: called with text, answer and parsed answer, once the answer is on disk.
    unanswered: text -> why it has no answer; complete after `run`.
    """

    def __init__(
        self,
        model: Model,
        cache: AnswerCache,
        wanted: Iterator[tuple[str, list[dict[str, str]]] | None],
        concurrency: int,
        on_answer: Callable[[str, Answer, Parsed], None],
    ):
        self.model, self.cache, self.wanted = model, cache, wanted
        self.concurrency, self.on_answer = concurrency, on_answer
        self.unanswered: dict[str, Unanswered] = {}
        self._under_way: set[str] = set()
        self._failure: BaseException | None = None
        self._interrupts = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: list[asyncio.Task] = []

    def run(self) -> None:
        """Returns when every text was asked about.

        KeyboardInterrupt: after Ctrl-C, once the pending calls ended and their answers are kept; a second Ctrl-C
        cancels them. BadInput, Failed, OSError: no further call would help; answers are kept.
        """
        if _a_loop_runs():
            self._run_beside()
        else:
            before = signal.getsignal(signal.SIGINT)
            asyncio.run(self._run())
            if _in_main_thread():
                signal.signal(signal.SIGINT, before)
        if self._failure is not None:
            raise self._failure
        if self._interrupts:
            raise KeyboardInterrupt

    def _run_beside(self) -> None:
        """Runs in a thread of its own, since a notebook's loop runs in this one."""
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(asyncio.run, self._run())
            try:
                done.result()
            except KeyboardInterrupt:
                self._loop.call_soon_threadsafe(self._interrupted)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        if _in_main_thread():
            self._loop.add_signal_handler(signal.SIGINT, self._interrupted)
        try:
            for work, count in ((self._first, 1), (self._all, self.concurrency)):
                self._workers = [asyncio.create_task(work()) for _ in range(count)]
                await asyncio.gather(*self._workers, return_exceptions=True)
        finally:
            await self.model.close()

    def _interrupted(self) -> None:
        self._interrupts += 1
        self.model.stop()
        if self._interrupts == 1 and self._under_way:
            say(f"stopping: waiting for {len(self._under_way):,} answers under way (Ctrl-C again: give them up)")
        elif self._interrupts > 1:
            for worker in self._workers:
                worker.cancel()

    async def _first(self) -> None:
        while not self.model.known and await self._one():
            continue

    async def _all(self) -> None:
        while await self._one():
            continue

    async def _one(self) -> bool:
        """Asks about the next text. Returns False if there is none or the run stops."""
        try:
            while not self.model.stopping:
                want = next(self.wanted, ())
                if want == ():
                    return False
                if want is None:
                    await asyncio.sleep(0)
                    continue
                text, messages = want
                if text not in self._under_way and text not in self.unanswered:
                    await self._ask(text, messages)
                    return True
        except Stopped:
            pass
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = self._failure or error
            self.model.stop()
        return False

    async def _ask(self, text: str, messages: list[dict[str, str]]) -> None:
        self._under_way.add(text)
        try:
            answer = await self.model.ask(messages)
            await self.cache.put(text, answer)
        except Unanswered as error:
            self.unanswered[text] = error
            return
        finally:
            self._under_way.discard(text)
        parsed = await asyncio.to_thread(parse, answer.text, answer.cut)  # json-repair may take seconds
        self.on_answer(text, answer, parsed)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _a_loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
