"""Prompt files: placeholders, literal braces, and every mistake with its line, before any call."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from data_prep.generation.prompt import EXAMPLE, read_prompt


def prompt(tmp_path, text, **variables):
    path = tmp_path / "prompt.txt"
    path.write_text(text, encoding="utf-8")
    return read_prompt(path, variables)


def test_placeholders_are_filled_and_doubled_braces_literal(tmp_path):
    made = prompt(tmp_path, '{n} for {who}: {{"q": "{{{who}}}"}}\n{context}\n{context}', n="3", who="{us}")
    assert made.render("a {chunk} }{") == '3 for {us}: {"q": "{{us}}"}\na {chunk} }{\na {chunk} }{'


@given(st.text(), st.text())
def test_escaped_text_comes_out_as_it_is(tmp_path_factory, text, context):
    path = tmp_path_factory.mktemp("prompts") / "p.txt"
    text = text.encode(errors="ignore").decode().replace("\r", "").removeprefix("\ufeff")
    path.write_text(text.replace("{", "{{").replace("}", "}}") + "{context}", encoding="utf-8")
    assert read_prompt(path, {}).render(context) == text + context


def test_every_mistake_is_listed_with_its_line(tmp_path):
    with pytest.raises(BadInput) as error:
        prompt(tmp_path, 'Ask {number}.\n{"question": 1}\n{\n{topik}\n', topic="valves")
    path = tmp_path / "prompt.txt"
    assert error.value.problems == [
        f"{path}:1: unknown placeholder {{number}}; known: {{context}}, {{topic}} (more with --var NAME=TEXT)."
        " Literal braces are written twice: {{ }}",
        f'{path}:2: unknown placeholder {{"question": 1}}; known: {{context}}, {{topic}} (more with --var NAME=TEXT).'
        " Literal braces are written twice: {{ }}",
        f"{path}:3: a single '{{'; write a literal brace twice: {{{{",
        f"{path}:4: unknown placeholder {{topik}}; known: {{context}}, {{topic}} (more with --var NAME=TEXT)."
        " Did you mean 'topic'? Literal braces are written twice: {{ }}",
        f"{path}: has no {{context}}, the place of the chunk's text; put it in",
        f"--var topic: {path} has no {{topic}}; put it in or leave the variable out",
    ]


def test_context_is_no_variable(tmp_path):
    with pytest.raises(BadInput, match="--var context: is the chunk's text; choose another name"):
        prompt(tmp_path, "{context}", context="mine")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        read_prompt(tmp_path / "none.txt", {})
    (tmp_path / "latin.txt").write_bytes(b"\xe9 {context}")
    with pytest.raises(BadInput, match="is not valid UTF-8"):
        read_prompt(tmp_path / "latin.txt", {})


def test_the_shipped_prompt_reads():
    assert '{"pairs": [{"question": "…", "answer": "…"}]}' in read_prompt(EXAMPLE, {}).render("TEXT")
