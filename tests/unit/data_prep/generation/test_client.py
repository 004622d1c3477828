"""One model behind a real HTTP server that fails on purpose: what is repeated, how patiently, and when asking ends."""

import asyncio
import random
import time
from email.utils import formatdate

import pytest

from data_prep.common.errors import BadInput, Failed
from data_prep.generation.answer_parser import PAIRS_FORMAT
from data_prep.generation.client import Model, Retry, Stopped, Unanswered, _wait_of, messages
from data_prep.generation.endpoint import endpoint
from tests import language_model
from tests.language_model import FAULTS, KEY, MODEL, TOKENS_IN, TOKENS_OUT, LanguageModel, chunk, content, serving
from tests.launching import free_port

FAST = Retry(attempts=4, first=0.01, longest=0.05)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """The key of the test server, and no .env of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_BASE_URL", "YC_OPENAI_API_KEY", "YC_OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


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
            await asking
        with pytest.raises(Stopped):
            await model.ask(messages(None, chunk(2).text))
        await model.close()

    with serving(server) as url:
        more = {"temperature": None, "response_format": PAIRS_FORMAT, "timeout": 5}
        began = time.monotonic()
        asyncio.run(run(Model(endpoint(url), MODEL, retry=Retry(first=100), **more)))
        assert time.monotonic() - began < 5
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


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": formatdate(time.time() - 60, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_as_seconds_or_date(headers, seconds):
    assert _wait_of(headers) == seconds


def test_retry_after_as_a_date_to_come():
    assert 50 < _wait_of({"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60


OURS, OPEN, YC = "http://ours:1/v1", "https://open.example/v1", "https://yc.example/v1"


@pytest.mark.parametrize(
    "environment, base_url, url, key",
    [
        ({"OPENAI_API_KEY": "o"}, None, "https://api.openai.com/v1", "o"),
        ({"OPENAI_API_KEY": "o", "OPENAI_BASE_URL": OPEN}, None, OPEN, "o"),
        ({"YC_OPENAI_API_KEY": "y", "YC_OPENAI_API_BASE": YC}, None, YC, "y"),
        ({"OPENAI_API_KEY": "o", "YC_OPENAI_API_BASE": YC}, None, "https://api.openai.com/v1", "o"),
        ({"OPENAI_BASE_URL": OURS, "YC_OPENAI_API_KEY": "y", "YC_OPENAI_API_BASE": YC}, None, OURS, None),
        ({"OPENAI_API_KEY": "o", "YC_OPENAI_API_KEY": "y", "YC_OPENAI_API_BASE": YC}, f"{YC}/", f"{YC}/", "y"),
        ({"OPENAI_API_KEY": "o", "YC_OPENAI_API_KEY": "y", "YC_OPENAI_API_BASE": YC}, OURS, OURS, "o"),
        ({}, OURS, OURS, None),
    ],
)
def test_a_key_goes_to_its_own_address_only(monkeypatch, environment, base_url, url, key):
    monkeypatch.delenv("OPENAI_API_KEY")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = endpoint(base_url)
    assert (found.url, found.key) == (url, key)
    assert key is None or repr(key) not in repr(found)


def test_keys_and_address_from_dotenv(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY")
    (tmp_path / ".env").write_text(f'OPENAI_API_KEY="{KEY}"\nOPENAI_BASE_URL={OURS}\n')
    found = endpoint()
    assert (found.url, found.key, str(found)) == (OURS, KEY, f"{OURS} (key from OPENAI_API_KEY)")


@pytest.mark.parametrize(
    "environment, base_url, reason",
    [
        ({}, None, "no key for https://api.openai.com/v1: put OPENAI_API_KEY into the environment or .env"),
        ({"YC_OPENAI_API_KEY": "y"}, None, "YC_OPENAI_API_BASE: is not set, but YC_OPENAI_API_KEY is"),
        ({"OPENAI_BASE_URL": "ours:1"}, None, "OPENAI_BASE_URL ours:1: must look like http://localhost:8000/v1"),
        ({}, "http://me:word@ours:1/v1", "--base-url: holds a user, password or query; the key belongs into"),
        ({}, "http://ours:port/v1", "--base-url: Port could not be cast"),
        ({"OPENAI_API_KEY": "two words"}, OURS, "OPENAI_API_KEY: holds a space"),
    ],
)
def test_what_is_wrong_with_key_or_address(monkeypatch, environment, base_url, reason):
    monkeypatch.delenv("OPENAI_API_KEY")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput) as error:
        endpoint(base_url)
    assert reason in str(error.value)
    assert "word" not in str(error.value).replace("password", "")


def test_only_one_file_imports_openai():
    from tests.launching import ROOT

    files = [path for package in ("data_prep", "trainer", "launch") for path in (ROOT / package).rglob("*.py")]
    assert [path.name for path in files if "import openai" in path.read_text()] == ["client.py"]
