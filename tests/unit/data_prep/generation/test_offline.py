"""From a vector store to pairs without a model: the sample, embedded Chroma, titles, inverse cloze, hidden names."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from data_prep.generation.offline import hide_name, make_pair
from data_prep.mining.keywords import Keywords
from data_prep.stores.base import Chunk
from data_prep.stores.open import write_chunks
from tests.unit.data_prep.helpers import read_chunks, read_jsonl, run

BODY = "It turns the handle first, then it pulls the frame towards the room."


def pair(text, *, hide=(), seed=0, **metadata):
    return make_pair(Chunk("c", text, metadata), hide, seed)


@pytest.mark.parametrize(
    "text, metadata, question",
    [
        (f"Open the window.\n\n{BODY}", {}, "Open the window."),
        (f"Open the\nwindow wide.\n   \n{BODY}", {}, "Open the window wide."),
        (f"# Opening the window #\n{BODY}", {}, "Opening the window"),
        (f"Opening the window\n******\n\n{BODY}", {}, "Opening the window"),
        (BODY, {"title": "How to open windows"}, "How to open windows"),
        (f"How to open windows\n{BODY}", {"title": "How to open windows"}, "How to open windows"),
        (f"## How to open windows\n\n{BODY}", {"title": "How to open windows"}, "How to open windows"),
        (f"open(window, wide=True) -> bool\n\n{BODY}", {}, "open(window, wide=True) -> bool"),
    ],
)
def test_a_title_asks_for_its_body(text, metadata, question):
    assert pair(text, **metadata) == {
        "chunk_id": "c",
        "question": question,
        "answer": BODY,
        "metadata": {**metadata, "rule": "title"},
    }


@pytest.mark.parametrize("text", ["", "Open it.", f"Open.\n\n{BODY}", "Open the window.\n\nIt is short.", BODY])
def test_too_short_a_chunk_gives_a_reason(text):
    assert isinstance(pair(text), str)


def test_a_title_too_short_for_a_question_gives_way_to_a_sentence():
    text = "Open.\n\nThe handle is turned first. Then the frame is pulled inward. Fresh air of the garden comes in."
    made = pair(text)
    assert made["metadata"]["rule"] == "inverse_cloze"
    assert made["question"] in re.split(r"(?<=[.])\s+", text)[1:]
    named = pair(text.replace("Open.", "Open the window."), name="window", hide=["name"])
    assert named["metadata"]["rule"] == "inverse_cloze"  # "Open the" is left of the title
    assert pair(text.replace("Open.", "Open the window."))["metadata"]["rule"] == "title"


def test_keywords_are_the_words_that_tell_a_text_from_the_others():
    texts = ["the valve opens the valve at pressure", "the boiler heats the water at night", "the night falls"]
    words = Keywords(texts)
    assert words.of(texts[0], 3) == ["valve", "opens", "pressure"]
    assert words.of("The WATER at night, the water", 9) == ["WATER", "at", "night"]
    assert Keywords(["same", "same"]).of("same", 3) == []


def test_a_chunk_without_another_pair_gets_keywords_where_asked_for():
    def keywords(text):
        return " ".join(text.split()[1:5])

    assert isinstance(pair(BODY), str)
    made = make_pair(Chunk("c", BODY, {}), keywords=keywords)
    assert (made["question"], made["answer"]) == ("turns the handle first,", BODY)
    assert made["metadata"] == {"rule": "keyword"}
    assert isinstance(make_pair(Chunk("c", "It is short.", {}), keywords=keywords), str)


words = st.text("abcdefghij", min_size=2, max_size=6)
sentences = st.lists(words, min_size=4, max_size=9, unique=True).map(lambda some: " ".join(some).capitalize() + ".")


@settings(deadline=None)
@given(st.lists(sentences, min_size=3, max_size=6, unique=True), st.integers(0, 50))
def test_an_inverse_cloze_pair_divides_the_text(some, seed):
    text = " ".join(some)
    made = pair(text, seed=seed)
    assert pair(text, seed=seed) == made
    if isinstance(made, str):
        return
    assert made["metadata"]["rule"] == "inverse_cloze"
    assert made["question"] in some
    if made["metadata"].get("sentence_kept"):
        assert made["answer"] == text
    else:
        assert made["question"] not in made["answer"]
        assert sorted(f"{made['question']} {made['answer']}".split()) == sorted(text.split())


def test_a_tenth_of_the_sentences_stays_in_the_answer():
    text = "The handle is turned first. Then the frame is pulled inward. Fresh air of the garden comes in."
    made = [make_pair(Chunk(str(i), text)) for i in range(2000)]
    kept = sum(one["metadata"].get("sentence_kept", False) for one in made)
    assert 150 < kept < 250  # 200 expected, standard deviation 13
    assert {one["question"] for one in made} == {f"{part}." for part in text.removesuffix(".").split(". ")}


def test_a_closing_bracket_or_quote_stays_with_its_sentence():
    text = 'The frame moves (if it is free.) "The handle turns (slowly)." Garden air comes in then.'
    made = {make_pair(Chunk(str(i), text), min_words=5)["question"] for i in range(50)}
    assert made == {"The frame moves (if it is free.)", '"The handle turns (slowly)."', "Garden air comes in then."}


def test_scripts_without_spaces_have_sentences_and_words():
    made = pair("これは最初の文です。次の文はもっと長いです！最後の文です。")
    assert made["question"] + made["answer"] or made["metadata"]["sentence_kept"]
    assert made["question"] in ("これは最初の文です。", "次の文はもっと長いです！", "最後の文です。")


THREE = {
    "Hindi": "दरवाज़े का हैंडल पहले घुमाया जाता है। फिर चौखट को अंदर खींचा जाता है। बगीचे की ताज़ी हवा अंदर आती है।",
    "lower case": "the handle is turned first. then the frame is pulled inward. fresh air of the garden comes in.",
    "Urdu": "پہلے دستہ گھمایا جاتا ہے۔ پھر چوکھٹ کو اندر کھینچا جاتا ہے۔ باغ کی تازہ ہوا اندر آتی ہے۔",
    "Russian in lower case": "сначала поворачивают ручку двери. потом тянут раму внутрь. свежий воздух входит в дом.",
    "Amharic": "መጀመሪያ እጀታው ይዞራል በቀስታ። ከዚያ ፍሬሙ ወደ ውስጥ ይጎተታል። ንጹህ አየር ከአትክልቱ ይገባል።",
    "Thai": "หมุนที่จับของหน้าต่างก่อนเสมอ แล้วดึงกรอบหน้าต่างเข้ามาด้านใน อากาศบริสุทธิ์จากสวนก็เข้ามา",
}


@pytest.mark.parametrize("language", THREE)
def test_every_sentence_of_every_script_can_be_drawn(language):
    text = THREE[language]
    made = [make_pair(Chunk(str(i), text), min_words=6) for i in range(60)]
    assert all(isinstance(one, dict) for one in made)
    parts = re.split(r"(?<=[।።۔.])\s+" if language != "Thai" else r"\s+", text)
    assert {one["question"] for one in made} == set(parts)
    assert len(parts) == 3


@pytest.mark.parametrize("end", ["\r\n", "\r", "\x85"])
def test_line_ends_of_every_system_divide_paragraphs_and_headings(end):
    for text in (f"Open the window.\n\n{BODY}", f"# Open the window.\n{BODY}", f"Open the window.\n=====\n{BODY}"):
        made = pair(text.replace("\n", end))
        assert (made["question"], made["answer"]) == ("Open the window.", BODY)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("Open it.", "shorter than 8 words (--min-words)"),
        ("Open.\n\nIt is short.", "shorter than 8 words (--min-words)"),
        (BODY, "no title, and one sentence only: no end of a sentence inside the text"),
        ("दरवाज़े का हैंडल पहले घुमाया जाता है और फिर चौखट", "no title, and one sentence only"),
        (
            "He goes in then. Now they open up.",
            "no title, and no sentence of 3 words whose rest has 8 words (--min-words)",
        ),
        (f"{BODY} {BODY}", "the drawn sentence stands twice in the text"),
    ],
)
def test_the_reason_is_the_one_that_holds(text, reason):
    assert pair(text).startswith(reason)


def test_a_hidden_name_that_leaves_no_question_is_the_reason():
    assert pair(f"Open the window.\n\n{BODY}", name="window", hide=["name"]).startswith("no title, and no sentence")


@pytest.mark.parametrize(
    "question, name, left",
    [
        ("Use `json.JSONDecoder()` to decode text", "JSONDecoder", "Use to decode text"),
        ("An ordered_dict, OrderedDict or ordered dict", "OrderedDict", "An, or"),
        ("add() finds no addition in x.add", "add", "finds no addition in"),
        ("Call FOO_BAR now.", "foo_bar", "Call now."),
        ("यह दरवाज़े का हैंडल है", "दरवाज़े", "यह का हैंडल है"),
        ("यह दरवाज़े है", "दरवा", "यह दरवाज़े है"),
        ("فتح مَرْحَبًا الآن", "مَرْحَبًا", "فتح الآن"),
        ("Le cafe\u0301 ouvre", "cafe\u0301", "Le ouvre"),
        ("Le cafe\u0301 ouvre", "cafe", "Le cafe\u0301 ouvre"),
        ("nothing to hide", "", "nothing to hide"),
        ("nothing to hide", "other", "nothing to hide"),
    ],
)
def test_hidden_names_go_in_every_spelling(question, name, left):
    assert hide_name(question, name) == left


identifiers = st.from_regex(r"\A_?[A-Za-z]{2,8}(_[a-z0-9]{1,4})?([A-Z][a-z]{1,5})?\Z")


@settings(deadline=None)
@given(identifiers, st.lists(words, min_size=3, max_size=6), st.sampled_from(["{}", "{}()", "a.b.{}", "`{}`", "{},"]))
def test_a_hidden_name_is_absent(name, around, form):
    question = f"{' '.join(around)} {form.format(name)} {form.format(name.upper())} end"
    left = hide_name(question, name)
    assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", left, re.IGNORECASE)
    assert left.endswith("end")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A store with the first 300 docstrings, made by the command."""
    from data_prep.composing.stdlib_sample import sample

    folder = tmp_path_factory.mktemp("stores") / "chroma"
    assert sample(folder, "stdlib", limit=300) == 300
    return folder


def test_the_sample_is_real_text_with_unique_ids_and_runs_again(sampled, capsys):
    chunks = read_chunks(sampled, "stdlib")
    assert len({chunk.id for chunk in chunks}) == len({chunk.text for chunk in chunks}) == 300
    for chunk in chunks:
        assert list(chunk.metadata) == ["kind", "module", "name", "qualname", "signature"]
        assert chunk.metadata["kind"] in ("module", "class", "function", "method", "topic")
        assert not chunk.metadata["name"].startswith("_")
        assert chunk.id.split(".")[0].split(":")[0] == chunk.metadata["module"]
    code, out, err = run(capsys, "sample", "--path", sampled, "--collection", "stdlib", "--limit", "300")
    assert code == 0
    assert "300 chunks" in out
    assert "already there, unchanged" in out
    assert "left out:" in err


def test_an_interrupted_sample_is_completed(sampled, tmp_path):
    chunks = read_chunks(sampled, "stdlib")
    assert write_chunks(tmp_path / "c", "docs", chunks, "digest")
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(str(tmp_path / "c"), settings=Settings(anonymized_telemetry=False))
    store = client.get_collection("docs", embedding_function=None)
    assert store.metadata["vectors"].startswith("none:")
    store.delete(ids=[chunk.id for chunk in chunks[200:]])
    assert write_chunks(tmp_path / "c", "docs", chunks, "digest")
    assert read_chunks(tmp_path / "c", "docs") == chunks
    assert not write_chunks(tmp_path / "c", "docs", chunks, "digest")


def test_pages_hold_every_chunk_once_in_order(sampled):
    whole = read_chunks(sampled, "stdlib", page=1000)
    assert read_chunks(sampled, "stdlib", page=7) == whole
    some = [chunk for chunk in whole if chunk.metadata["kind"] == "method"]
    assert 0 < len(some) < 300
    assert read_chunks(sampled, "stdlib", where={"kind": "method"}, page=7) == some


def test_chunks_without_text_are_refused_with_their_fields(tmp_path):
    write_chunks(tmp_path / "c", "docs", [Chunk("a", "text"), Chunk("b", " ", {"body": "the text stands here"})], "d")
    with pytest.raises(BadInput, match=r"1 chunks have no text, such as b \(metadata fields there: body\)"):
        read_chunks(tmp_path / "c", "docs")


def test_a_missing_store_is_not_created(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        read_chunks(tmp_path / "none", "docs")
    assert not (tmp_path / "none").exists()


def test_generate_to_shards_hides_names_and_is_repeatable(sampled, tmp_path, capsys):
    outputs = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for output in outputs:
        options = ("--offline", "--store", "chroma", "--path", sampled, "--collection", "stdlib", "--hide", "name")
        code, out, err = run(capsys, "generate", *options, "--output", output)
        assert code == 0
        assert "pairs from 300 chunks (inverse_cloze" in out
        assert "left out:" in err
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    made = read_jsonl(outputs[0])
    left_out = sum(int(n) for n in re.findall(r"left out: (\d+) chunks", err))
    assert len(made) + left_out == 300
    assert len(made) > 100
    texts = {chunk.id: " ".join(chunk.text.split()) for chunk in read_chunks(sampled, "stdlib")}
    for one in made:
        name = re.escape(one["metadata"]["name"])
        assert not re.search(rf"(?<!\w){name}(?!\w)", one["question"], re.IGNORECASE)
        if one["metadata"]["rule"] == "title":
            assert " ".join(one["answer"].split()) in texts[one["chunk_id"]]
        else:
            assert set(one["answer"].split()) <= set(texts[one["chunk_id"]].split())
    code, *_ = run(capsys, "compose", outputs[0], "--output", tmp_path / "r.jsonl", "--hard-k", "1")
    assert code == 0
    options = ("--eval-fraction", "0.3")
    code, _, err = run(capsys, "shard", tmp_path / "r.jsonl", "--output", tmp_path / "s", *options)
    assert code == 0, err
    code, out, _ = run(capsys, "inspect", tmp_path / "s", "--json")
    assert code == 0
    assert json.loads(out)["positives_as_negatives"] == 0


def test_limit_and_seed(sampled, tmp_path, capsys):
    def questions(*more):
        options = ("--offline", "--path", sampled, "--collection", "stdlib", "--output", tmp_path / "o.jsonl")
        assert run(capsys, "generate", *options, *more)[0] == 0
        return [one["question"] for one in read_jsonl(tmp_path / "o.jsonl")]

    every = questions()
    assert questions("--limit", "20") == every[:20]
    assert questions("--seed", "1") != every
    more = questions("--keywords", "5")
    assert len(every) < len(more) <= 300
    assert set(every) < set(more)


def test_a_failing_store_is_one_line(sampled, capsys, monkeypatch, tmp_path):
    from chromadb.errors import InternalError

    def broken(*_, **__):
        raise InternalError("database or disk is full")

    monkeypatch.setattr("chromadb.api.models.Collection.Collection.get", broken)
    options = ("--offline", "--path", sampled, "--collection", "stdlib", "--output", tmp_path / "o.jsonl")
    code, _, err = run(capsys, "generate", *options)
    assert (code, err) == (1, f"error: Chroma failed in {sampled}: database or disk is full\n")
    assert list(tmp_path.iterdir()) == []
