"""Target: answers of models, replies of servers and files of the answer cache.

Pairs inside thoughts carry WRONG: whatever thoughts, fences and chatter stand around them, none may come out.
"""

import asyncio
import functools
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from data_prep.generation.answer import Answer
from data_prep.generation.answer_parser import parse
from data_prep.generation.client import Model
from data_prep.model_server import client
from data_prep.model_server.answer_cache import AnswerCache, key_of
from data_prep.model_server.endpoint import Endpoint
from data_prep.reading.files import Item
from data_prep.reading.formats import to_record
from tests.fuzzing.case import Case, Finding
from tests.fuzzing.mutations import WORDS, Draw, dumps

TARGET = "answers"
WRONG = "of the thought"
TEXTS = ("one", "two", "three")
THOUGHTS = [
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<Thought>", "</Thought>"), ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"), ("◁think▷", "◁/think▷"), ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<reasoning>", "</reasoning>"), ("&lt;think&gt;", "&lt;/think&gt;"), ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<unused94>thought", "<unused95>"), ("\nThinking...\n", "\n...done thinking.\n"),
    ("<scratchpad>", "</scratchpad>"),
]  # fmt: skip
CHATTER = [
    "Sure!", "Here are the pairs:", "\n\n", "I hope that helps.", "As [1] says, {x} matters.", "```", "```json\n",
    "\n```\n",
    "| a | b |", "- item", "Q: what?", "'question'", '"', "{", "}", "[", "]", ",", "1.", "**", "\\", "…", "</s>",
    "<|im_end|>",
    "Answer:", "A thinking man's [analysis](x) of the reasoning.",
]  # fmt: skip
REPLY = {
    "id": "1", "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": {
        "role": "assistant", "content": '{"pairs": [{"question": "Why?", "answer": "So."}]}', "refusal": None,
        "reasoning_content": "hm"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 4},
}  # fmt: skip


@st.composite
def cases(draw) -> Case:
    d = Draw(draw)
    kind = d.pick(["answer", "answer", "noise", "reply", "cache"])
    if kind == "answer":
        return Case(TARGET, {"kind": kind, "cut": d.chance(3), "text": _answer(d)})
    if kind == "noise":
        text = _answer(d)
        for _ in range(1 + d.number(0, 4)):
            text = d.damaged(text)
        return Case(TARGET, {"kind": kind, "cut": d.chance(3), "text": text})
    if kind == "cache":
        return Case(TARGET, {"kind": kind}, {"lines": _cache(d)})
    reply = d.pick([REPLY, {"error": {"message": "no", "code": 400}}, {"detail": ["x"]}, [], REPLY])
    for _ in range(1 + d.number(0, 2)):
        reply = d.mutated(reply)
    return Case(TARGET, {"kind": kind, "heard": d.chance(2)}, {"body": d.bytes_of(dumps(reply))})


def _answer(d: Draw) -> str:
    """Thoughts with wrong pairs among chatter, fences and right pairs; it may be cut anywhere."""
    parts: list[str] = []
    for _ in range(1 + d.number(0, 4)):
        kind = d.number(0, 3)
        if kind == 0:
            parts.append(_pairs(d, "right"))
        elif kind == 1:
            begin, end = d.pick(THOUGHTS)
            inner = [d.pick([_pairs(d, WRONG), d.pick(CHATTER), d.pick(WORDS)]) for _ in range(1 + d.number(0, 2))]
            parts.append(f"{begin}{d.pick([' ', chr(10)])}{' '.join(inner)} {end}")
        elif kind == 2:
            parts.append(d.pick(CHATTER))
        else:
            parts.append(d.word())
    text = d.pick([" ", "\n", ""]).join(parts)
    return text[: d.number(0, len(text))] if d.chance(4) else text


def _pairs(d: Draw, answer: str) -> str:
    pairs = [
        {"question": f"Why {i}?" + (d.word() if d.chance(5) else ""), "answer": f"{answer} {i}"}
        for i in range(1 + d.number(0, 2))
    ]
    form = d.number(0, 5)
    if form == 0:
        return dumps(pairs, indent=d.pick([None, 2]))
    if form == 1:
        return dumps({"pairs": pairs}, ensure_ascii=False)
    if form == 2:
        return "\n".join(dumps(pair) for pair in pairs)
    if form == 3:
        return f"```json\n{dumps(pairs)}\n```"
    if form == 4:
        return str(pairs)  # single quotes
    return dumps(pairs)[:-1] + ",]"


def _cache(d: Draw) -> bytes:
    answer = {
        "chunk": "00" * 32,
        "text": "t",
        "refusal": "",
        "finish": "stop",
        "tokens_in": 1,
        "tokens_out": 2,
        "url": "u",
    }
    lines = [dumps({"format": 1})]
    for number in range(1 + d.number(0, 2)):
        line: Any = answer | {"chunk": key_of(TEXTS[number]).hex()}
        for _ in d.times(2):
            line = d.mutated(line)
        lines.append(dumps(line))
    return d.bytes_of("\n".join(lines) + "\n" * d.number(0, 1))


def check(case: Case, folder: Path) -> None:
    kind = case.data["kind"]
    if kind == "cache":
        check_cache(case.files["lines"], folder)
    elif kind == "reply":
        check_reply(case.files["body"], case.data["heard"])
    else:
        check_answer(case.data["text"], case.data["cut"], thoughts=kind == "answer")


def check_answer(text: str, cut: bool, thoughts: bool) -> None:
    parsed = parse(text, cut)
    if not parsed.pairs and not parsed.misfits:
        raise Finding("an answer without a pair and without a reason")
    for question, answer in parsed.pairs:
        if thoughts and WRONG in answer:
            raise Finding("a pair of a thought comes out", repr(text))
        row = {"chunk_id": "c", "question": question, "answer": answer, "metadata": {}, "context": "x"}
        written = json.dumps(row, ensure_ascii=False).encode()
        to_record(Item(1, json.loads(written), written.decode()), "answer")


class Reply:
    """A reply as the client knows it."""

    def __init__(self, body: bytes):
        import httpx

        self.http_response = httpx.Response(200, content=body, headers={"content-type": "application/json"})


@functools.cache
def the_model() -> Model:
    server = Endpoint("http://127.0.0.1:9/v1")
    return Model(server, "m", temperature=None, response_format={}, timeout=1, retry=client.Retry())


def check_reply(body: bytes, heard: bool) -> None:
    """Reads the body of a server as the client does; only its own refusals may come."""
    model = the_model()
    model.heard = heard
    try:
        answer, usage = model._read(Reply(body), {})
    except (client.Fault, client._Reply, client.Strange, client._Page):
        return
    if not isinstance(answer.text, str) or not isinstance(answer.refusal, str):
        raise Finding("an answer that is no text", repr(answer))
    client._tokens_of(usage)
    check_answer(answer.text, answer.cut, thoughts=False)


def check_cache(lines: bytes, folder: Path) -> None:
    """Reads a damaged cache, adds to it and reads it again: an answer that counts has to be one."""
    with AnswerCache(folder, {"model": "m"}, Answer) as cache:
        path = cache.path
    path.write_bytes(lines)
    for _ in range(2):
        with AnswerCache(folder, {"model": "m"}, Answer) as cache:
            asyncio.run(cache.put({"new": Answer("new")}))
            for text in (*TEXTS, "new"):
                if text in cache:
                    answer = cache.get(text)
                    parse(answer.text, answer.cut)
                    if answer.refusal != str(answer.refusal):
                        raise Finding("the cache holds a refusal that is no text")
            if cache.get("new") != Answer("new"):
                raise Finding("an answer that was written is lost")
            [f"{count:,} from {url}" for url, count in cache.urls.items()]
