"""One model behind a real HTTP server that fails on purpose: what is repeated, how patiently, and when asking ends."""

import asyncio
import random
import socket
import threading
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from data_prep.common.errors import BadInput, Failed
from data_prep.generation.answer_parser import PAIRS_FORMAT
from data_prep.generation.client import Model, messages
from data_prep.model_server.client import Retry, Stopped, Unanswered, _wait_of
from data_prep.model_server.endpoint import endpoint
from tests import language_model
from tests.language_model import (
    FAULTS,
    KEY,
    MODEL,
    TOKENS_IN,
    TOKENS_OUT,
    LanguageModel,
    chunk,
    content,
    serving,
    use_own_key,
)
from tests.launching import free_port

FAST = Retry(attempts=4, first=0.01, longest=0.05)
_WHOLE = language_model._Handler._completion


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """The key of the test server, and no .env of whoever runs the tests."""
    use_own_key(monkeypatch, tmp_path)


def ask(url, *numbers, name=MODEL, retry=FAST, timeout=5.0, temperature=None, model=None):
    """Answers or errors about these chunks, one after the other, and the model that was asked."""
    settings = {"temperature": temperature, "response_format": PAIRS_FORMAT, "timeout": timeout, "retry": retry}
    model = model or Model(endpoint(url), name, **settings)

    async def run():
        found = []
        for number in numbers:
            try:
                found.append(await model.ask(messages("Be brief.", f"Ask about this: {chunk(number).text}")))
            except Exception as error:
                found.append(error)
        await model.close()
        return found

    return asyncio.run(run()), model


def test_an_answer_and_what_is_sent_for_it():
    server = LanguageModel()
    with serving(server) as url:
        (answer,), model = ask(url, 1, temperature=0.5)
    assert (answer.text, answer.finish, answer.refusal) == (content("c1", "plain"), "stop", "")
    assert (answer.tokens_in, answer.tokens_out, answer.url) == (TOKENS_IN, TOKENS_OUT, url)
    assert not model.retries
    (call,) = server.calls
    assert call.body == {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Ask about this: {chunk(1).text}"},
        ],
        "temperature": 0.5,
        "response_format": PAIRS_FORMAT,
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_every_passing_fault_is_repeated_by_us_and_counted(fault):
    server = LanguageModel(script={"c1": [fault, fault, "answered"]}, slow=5.0)
    with serving(server) as url:
        (answer,), model = ask(url, 1, timeout=1.0)
    assert answer.text == content("c1", "plain")
    assert len(server.calls) == 3
    assert model.retries.total() == 2


@pytest.mark.parametrize("status", ["429", "503"])
def test_retry_after_holds_every_call_back(status):
    server = LanguageModel(script={"c0": [status, "answered"]}, retry_after="0.4")

    async def both(model):
        first = asyncio.create_task(model.ask(messages(None, chunk(0).text)))
        while model.retries.total() == 0:
            await asyncio.sleep(0.005)
        await asyncio.gather(first, model.ask(messages(None, chunk(1).text)))
        await model.close()

    with serving(server) as url:
        model = Model(
            endpoint(url), MODEL, temperature=None, response_format=PAIRS_FORMAT, timeout=5, retry=Retry(first=9)
        )
        asyncio.run(both(model))
    refused, *later = server.calls
    assert len(later) == 2
    assert min(call.at for call in later) - refused.at > 0.39
    assert max(call.at for call in later) - refused.at < 2  # the server's wait, not our own of 4.5 s and more


def test_pauses_grow_and_vary(monkeypatch):
    """Without Retry-After: between half and all of first * 2^n, at most `longest`."""
    pauses = []

    async def sleep(self, seconds):
        pauses.append(seconds)

    monkeypatch.setattr(Model, "_sleep", sleep)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    with serving(LanguageModel(script={"*": ["500"]})) as url:
        (error,), _ = ask(url, 1, retry=Retry(attempts=7, first=1.0, longest=10.0))
    assert pauses == [1, 2, 4, 8, 10, 10]
    assert isinstance(error, Unanswered)
    assert str(error) == "no answer after 7 calls: the server answers 500: 500 for key [hidden]"


@pytest.mark.parametrize(
    "outcome, kind, reason",
    [
        ("401", BadInput, "answers 401: 401 for key [hidden]; OPENAI_API_KEY is not accepted"),
        ("403", BadInput, f"answers 403: 403 for key [hidden]; the key may not use {MODEL!r}, or not from here"),
        ("404", BadInput, f"answers 404: 404 for key [hidden]; --model {MODEL}: the server has {MODEL}."),
        ("402", Failed, "answers 402: 402 for key [hidden]"),
        ("429 insufficient_quota", Failed, "the account has no quota left"),
        ("html", Failed, "answers with text/html that is no JSON; is --base-url right (it mostly ends in /v1)?"),
    ],
)
def test_what_does_not_pass_ends_at_the_first_call(outcome, kind, reason):
    server = LanguageModel(script={"*": [outcome]})
    with serving(server) as url:
        (error,), _ = ask(url, 1)
    assert type(error) is kind
    assert reason in str(error)
    assert url in str(error)
    assert KEY not in str(error)
    assert len(server.calls) == 1


@pytest.mark.parametrize("elsewhere", ["404", "200 error"])
@pytest.mark.parametrize("path", ["", "/", "/chat/completions", "/api", "/v2"])
def test_a_wrong_base_url_is_named_with_the_right_one_at_the_first_call(path, elsewhere):
    server = LanguageModel(elsewhere=elsewhere)
    with serving(server) as url:
        (error,), _ = ask(url.removesuffix("/v1") + path, 1, retry=Retry())
    assert type(error) is BadInput
    assert f"models are listed at {url}: give --base-url {url}" in str(error)
    assert len(server.calls) == 1


def test_a_base_url_with_the_path_of_a_call_is_named_too():
    server = LanguageModel()
    with serving(server) as url:
        (error,), _ = ask(f"{url}/chat/completions", 1, retry=Retry())
    assert str(error).endswith(f"models are listed at {url}: give --base-url {url}")


@pytest.mark.parametrize("body", ['{"status": "ok"}', "[]", "null", '"pong"', '{"message": {"content": "hi"}}'])
def test_a_server_without_models_that_answers_something_else_is_at_no_right_url(body, monkeypatch):
    monkeypatch.setattr(Model, "_models_at", nothing)
    server = LanguageModel(script={"*": [f"200 {body}"]})
    with serving(server) as url:
        (error,), _ = ask(url, 1, retry=Retry())
    assert type(error) is BadInput
    assert "answer holds no message" in str(error)
    assert str(error).endswith("; is --base-url right (it mostly ends in /v1)?")
    assert len(server.calls) == 1


async def nothing(self, url):
    return []


@pytest.mark.parametrize(
    "body, kind, reason",
    [
        ('{"error": {"message": "no such model", "code": 404}}', BadInput, "answers 404: no such model; --model"),
        ('{"error": {"message": "key?", "code": 401}}', BadInput, "answers 401: key?; OPENAI_API_KEY is not accepted"),
        ('{"error": {"message": "too long", "code": 400}}', Unanswered, "refused by the server: 400: too long"),
    ],
)
def test_a_status_inside_a_200_counts_as_that_status(body, kind, reason):
    with serving(LanguageModel(script={"*": [f"200 {body}"]})) as url:
        (error,), _ = ask(url, 1)
    assert type(error) is kind
    assert reason in str(error)


def test_an_error_in_a_200_of_a_server_that_lists_models_passes(capsys):
    with serving(LanguageModel(script={"c1": ['200 {"error": "the model is being loaded"}', "answered"]})) as url:
        (answer,), model = ask(url, 1)
    assert (answer.text, model.retries) == (content("c1", "plain"), {"no choices": 1})
    line = capsys.readouterr().err
    assert line == (
        f"note: {url}: the server's answer holds no message: the model is being loaded; asking again, up to 4 times\n"
    )


def test_an_address_that_lets_nobody_in_ends_the_run_at_the_first_call(monkeypatch):
    class ConnectTimeout(Exception):
        """The error of the client's HTTP library."""

    async def create(self, *_, **__):
        import openai

        raise openai.APITimeoutError(request=None) from ConnectTimeout("timed out")

    monkeypatch.setattr("openai.resources.chat.completions.AsyncCompletions.create", create)
    (error,), _ = ask("http://127.0.0.1:9/v1", 1)
    assert isinstance(error, Failed)
    assert "cannot connect to http://127.0.0.1:9/v1: timed out" in str(error)


def test_a_port_that_speaks_no_http_ends_the_run_at_the_first_call():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=greet, args=(listener,), daemon=True).start()
        (error,), _ = ask(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", 1, retry=Retry())
    assert isinstance(error, Failed)
    assert "answers with something that is no HTTP (" in str(error)


def greet(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(b"-ERR unknown command\r\n\r\n")


def test_a_wrong_model_name_gets_the_nearest():
    with serving(LanguageModel()) as url:
        (error,), _ = ask(url, 1, name="tiny-aksel")
    assert f"--model tiny-aksel: the server has {MODEL}. Did you mean {MODEL!r}?" in str(error)


def test_no_server_at_that_port():
    url = f"http://127.0.0.1:{free_port()}/v1"
    (error,), _ = ask(url, 1)
    assert isinstance(error, Failed)
    assert f"cannot connect to {url}" in str(error)


def test_a_server_that_wants_too_long_a_wait_ends_the_run():
    server = LanguageModel(script={"*": ["429"]}, retry_after="86400")
    with serving(server) as url:
        (error,), _ = ask(url, 1)
    assert isinstance(error, Failed)
    assert "asks to wait 86,400 s" in str(error)


def test_a_bad_request_is_the_chunks_own_unless_all_are():
    script = {"c1": ["400 context_length"], **{f"c{number}": ["422"] for number in range(10, 30)}}
    with serving(LanguageModel(script=script)) as url:
        found, _ = ask(url, 0, 1, 2, *range(10, 22))
    assert [type(one) for one in found[3:]] == [Unanswered] * 9 + [Failed] * 3
    assert "no answer for 10 chunks in a row: 422" in str(found[12])
    assert isinstance(found[1], Unanswered)
    assert not found[1].again
    assert "refused by the server: 400: 400 for key [hidden] context_length" in str(found[1])
    assert found[0].text and found[2].text


def test_a_silent_server_ends_the_run_but_a_silent_chunk_does_not():
    script = {f"c{number}": ["500"] for number in (1, 3, 4, 5)}
    with serving(LanguageModel(script=script)) as url:
        found, _ = ask(url, 0, 1, 2, 3, 4, 5)
    assert [type(one).__name__ for one in found] == [
        "Answer",
        "Unanswered",
        "Answer",
        "Unanswered",
        "Unanswered",
        "Failed",
    ]
    assert found[1].again
    assert "no answer for 3 chunks in a row: the server answers 500" in str(found[5])


def test_structured_output_falls_back_once_and_says_so(capsys):
    server = LanguageModel(structured="refuse")
    with serving(server) as url:
        found, _ = ask(url, 1, 2, 3)
    assert [one.text for one in found] == [content(f"c{n}", "plain") for n in (1, 2, 3)]
    assert [call.structured for call in server.calls] == [True, False, False, False]
    (line,) = capsys.readouterr().err.splitlines()
    assert "takes no response_format json_schema (400: 400 for key [hidden] response_format)" in line


@pytest.mark.parametrize("reason", ["json_schema", "grammar", "response_format"])
def test_a_500_that_names_the_schema_is_a_refusal_of_it(reason, capsys):
    server = LanguageModel(structured=f"crash {reason}")
    with serving(server) as url:
        found, model = ask(url, 1, 2, 3, retry=Retry())
    assert [one.text for one in found] == [content(f"c{n}", "plain") for n in (1, 2, 3)]
    assert [call.structured for call in server.calls] == [True, False, False, False]
    assert not model.retries
    (line,) = capsys.readouterr().err.splitlines()
    assert f"takes no response_format json_schema (500: 500 for key [hidden] {reason})" in line


def test_a_500_without_a_reason_is_tried_without_the_schema_and_believed_the_second_time(capsys):
    server = LanguageModel(structured="crash")
    with serving(server) as url:
        found, model = ask(url, 1, 2, 3)
    assert [one.text for one in found] == [content(f"c{n}", "plain") for n in (1, 2, 3)]
    assert [call.structured for call in server.calls] == [True, False, True, False, False]
    assert model.known
    err = capsys.readouterr().err
    assert "the server answers 500: 500 for key [hidden]; asking again, up to 4 times" in err
    assert "takes no response_format json_schema (the server answers 500" in err


@pytest.mark.parametrize("fault", ["500", "dropped", "half-closed"])
def test_one_passing_fault_does_not_cost_the_schema(fault, capsys):
    server = LanguageModel(script={"c1": [fault, "answered"]})
    with serving(server) as url:
        ask(url, 1, 2, 3)
    assert [call.structured for call in server.calls] == [True, False, True, True]
    assert "json_schema" not in capsys.readouterr().err


def test_a_busy_server_keeps_the_schema():
    server = LanguageModel(script={"c1": ["503", "429", "answered"]})
    with serving(server) as url:
        ask(url, 1, 2)
    assert [call.structured for call in server.calls] == [True] * 4


def test_a_server_that_never_answered_gets_fewer_calls_about_the_next_chunks(capsys):
    server = LanguageModel(script={"*": ["500"]})
    with serving(server) as url:
        found, _ = ask(url, 1, 2, 3)
    assert [type(one) for one in found] == [Unanswered, Unanswered, Failed]
    assert [len(server.of(f"c{n}")) for n in (1, 2, 3)] == [4, 3, 3]
    assert "asking again, up to 4 times" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "reasoning_details"])
def test_a_thought_in_a_field_of_its_own_is_not_read(monkeypatch, name, capsys):
    thought = {name: content("c9", "plain")}
    with serving(answering(monkeypatch, thought)) as url:
        (answer,), _ = ask(url, 1)
    assert answer.text == content("c1", "plain")
    with serving(answering(monkeypatch, {**thought, "content": None})) as url:
        (answer, again), _ = ask(url, 1, 2)
    assert (answer.text, again.text) == ("", "")
    (line,) = capsys.readouterr().err.splitlines()
    assert f"answers with a thought ({name}) and no text" in line


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": [{"type": "text", "text": "wrong"}]},
        {"type": "thinking", "text": "wrong"},
        {"type": "reasoning", "text": "wrong"},
        {"type": "reasoning_text", "text": "wrong"},
        {"type": "text", "thought": True, "text": "wrong"},
    ],
)
def test_a_thought_among_the_parts_of_the_content_is_not_read(monkeypatch, part):
    with serving(answering(monkeypatch, {"content": [part, {"type": "text", "text": "right"}]})) as url:
        (answer,), _ = ask(url, 1)
    assert answer.text == "right"


def answering(monkeypatch, more: dict) -> LanguageModel:
    """A server with these values in its messages."""

    def changed(self, server, name):
        made = _WHOLE(self, server, name)
        made["choices"][0]["message"] |= more
        return made

    monkeypatch.setattr(language_model._Handler, "_completion", changed)
    return LanguageModel()


def test_structured_output_stays_where_a_chunk_is_refused_with_and_without(capsys):
    server = LanguageModel(script={"c1": ["400"]})
    with serving(server) as url:
        found, _ = ask(url, 1, 2)
    assert [type(one).__name__ for one in found] == ["Unanswered", "Answer"]
    assert [call.structured for call in server.calls] == [True, False, True]
    assert capsys.readouterr().err == ""


def test_stop_ends_a_pause_and_further_calls():
    server = LanguageModel(script={"*": ["500"]})

    async def run(model):
        asking = asyncio.create_task(model.ask(messages(None, chunk(1).text)))
        while not model.retries.total():
            await asyncio.sleep(0.005)
        model.stop()
        with pytest.raises(Stopped):
            await asyncio.wait_for(asking, 60)  # the pause is of an hour
        with pytest.raises(Stopped):
            await model.ask(messages(None, chunk(2).text))
        await model.close()

    with serving(server) as url:
        more = {"temperature": None, "response_format": PAIRS_FORMAT, "timeout": 5}
        asyncio.run(run(Model(endpoint(url), MODEL, retry=Retry(first=3600, longest=3600), **more)))
    assert len(server.calls) == 1


def test_a_key_that_a_server_echoes_does_not_get_into_the_answer(monkeypatch):
    echo = f"your key is {KEY}"
    monkeypatch.setattr("tests.language_model.content", lambda name, form: echo)
    with serving(LanguageModel()) as url:
        (answer,), _ = ask(url, 1)
    assert answer.text == "your key is [hidden]"


def test_a_key_in_a_refusal_does_not_get_into_the_answer_either(monkeypatch):
    whole = language_model._Handler._completion

    def echoing(self, server, name):
        made = whole(self, server, name)
        made["choices"][0]["message"]["refusal"] = f"not with {KEY}"
        return made

    monkeypatch.setattr(language_model._Handler, "_completion", echoing)
    with serving(LanguageModel(forms=("refusal",))) as url:
        (answer,), _ = ask(url, 1)
    assert answer.refusal == "not with [hidden]"


NOW = 1_800_000_000.0  # whatever the clock says


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": formatdate(NOW - 60, usegmt=True)}, 0.0),
        ({"retry-after": formatdate(NOW + 60, usegmt=True)}, 60.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_as_seconds_or_date(headers, seconds, monkeypatch):
    monkeypatch.setattr("data_prep.common.retry_after.time", SimpleNamespace(time=lambda: NOW))
    assert _wait_of(headers) == seconds


def test_only_one_file_imports_openai():
    from tests.launching import ROOT

    files = [path for package in ("data_prep", "trainer", "launch") for path in (ROOT / package).rglob("*.py")]
    assert [path.name for path in files if "import openai" in path.read_text()] == ["client.py"]
