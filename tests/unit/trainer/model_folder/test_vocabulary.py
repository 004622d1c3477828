"""Tokens without an embedding are found in every kind of tokenizer's files; what is never read is let be."""

import json

import pytest

from trainer.model_folder.vocabulary import unembedded

WORDS = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}


def written(folder, files: dict) -> str:
    for name, values in files.items():
        (folder / name).write_text(values if isinstance(values, str) else json.dumps(values))
    return str(folder)


def added(*names: str, first: int = 4) -> list[dict]:
    return [{"id": first + i, "content": name, "special": False} for i, name in enumerate(names)]


KINDS = {  # tokenizer's files -> the tokens that a model of four rows lacks
    "a token added": ({"tokenizer.json": {"model": {"vocab": WORDS}, "added_tokens": added("[NEW]")}}, ["[NEW]"]),
    "a special one": (
        {"tokenizer.json": {"model": {"vocab": WORDS}, "added_tokens": [added("[Q]")[0] | {"special": True}]}}, ["[Q]"],
    ),
    "unigram": ({"tokenizer.json": {"model": {"vocab": [[word, -1.0] for word in (*WORDS, "c")]}}}, ["c"]),
    "none": ({"tokenizer.json": {"model": {"vocab": WORDS}, "added_tokens": added("[UNK]", first=1)}}, []),
    "old files": ({"vocab.txt": "\n".join(WORDS), "added_tokens.json": {"[NEW]": 4}}, ["[NEW]"]),
    "the mask, which no text holds": (
        {
            "tokenizer.json": {"model": {"vocab": WORDS}, "added_tokens": added("<mask>")},
            "tokenizer_config.json": {"mask_token": {"content": "<mask>"}},
        },
        [],
    ),
    "many": (
        {"tokenizer.json": {"model": {"vocab": WORDS}, "added_tokens": added("z", "y", "x", "w")}}, ["z", "y", "x"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_tokens_beyond_the_embeddings_are_named(tmp_path, kind):
    files, beyond = KINDS[kind]
    problems = unembedded("model.path", written(tmp_path, files), {"vocab_size": 4})
    assert len(problems) == bool(beyond)
    if beyond:
        count = 4 if kind == "many" else 1
        named = ", ".join(map(repr, beyond))
        assert problems[0].startswith(f"model.path: the tokenizer in {tmp_path} has {count} token(s) without an")
        assert f"({named}): the model embeds 4, and ids go up to {3 + count}." in problems[0]
        assert f"model.resize_token_embeddings({4 + count})" in problems[0]
    assert unembedded("model.path", str(tmp_path), {"vocab_size": 4 + len(beyond) + 1}) == []
    assert unembedded("model.path", str(tmp_path), {}) == [], "a config without a size says nothing"
