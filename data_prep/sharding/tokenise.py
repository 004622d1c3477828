"""Makes the token arrays of tokens.py: the ids of the texts of some rows.

- Tokenizers that split at spaces first (BERT's and byte-level ones, see spaces_between_words) give a text the ids of
  its words, one word after the other. So a word is tokenised once per process and its ids are cached.
- Other tokenizers get whole texts, and so do texts whose white space is not certain.
- Both ways give the trainer's ids; one text of every batch is tokenised both ways and compared.

Measured in one process on docstrings of the standard library (1.1 million tokens of all-MiniLM-L6-v2): 2.8 s with an
empty cache, 0.3 s with a full one, 4.3 s without. Ten thousand pairs gain nothing, as starting takes most of the time.
The cache is for millions of rows.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.common.console import say
from data_prep.common.errors import BadInput, collect, nearest
from data_prep.common.files import HashedFile, check, named_when_whole
from data_prep.sharding.spool import Part, Piece, batches_of, cut, save_arrays
from data_prep.shards.tokens import FILES, TokenFacts, tokenizer_hash
from data_prep.texts.prompts import SIDES, OwnPrompts, without_room
from data_prep.texts.row_prompts import Survey, read_row_prompt
from data_prep.texts.tokenizer_rules import TOKENIZER_FILES, TextRules, fetch, read_text_rules

COPY_BYTES = 4 << 20
TASK_ROWS = 20_000
WORDS = 200_000  # remembered at most by a process, about 40 MB
FLAT = str.maketrans("\t\n\r", "   ")
NORMALIZERS = {"BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD"}
DROPPING = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
# Patterns of byte-level tokenizers. In none can a match reach from a character into the space after it.
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
CL100K = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
LEADING = {GPT2, CL100K % "", CL100K % "{1,3}"}  # GPT-2 and RoBERTa; Qwen 2 and 3; Llama 3


@dataclass(frozen=True)
class TokenOptions:
    """The command line's options. None: the model folder's."""

    model: str
    query_prompt: str | None = None
    passage_prompt: str | None = None
    query_max_len: int | None = None
    passage_max_len: int | None = None
    own_prompts: OwnPrompts = field(default_factory=OwnPrompts)  # of sources and rows


class Loaded(NamedTuple):
    """A tokenizer that travels to workers."""

    facts: TokenFacts
    state: str  # its JSON
    before: list[int]  # special tokens before every text
    after: list[int]  # special tokens after every text


def check_options(options: TokenOptions | None) -> list[str]:
    """Returns the problems of the options that show without loading anything."""
    lengths = {side: getattr(options, f"{side}_max_len", None) for side in SIDES}
    short = {side: length for side, length in lengths.items() if length is not None and length < 4}
    problems = [f"--{side}-max-len {length}: must be 4 or more" for side, length in short.items()]
    of_rows = {side: getattr(options.own_prompts, f"row_{side}") for side in SIDES} if options else {}
    for side, text in of_rows.items():
        if text is not None:
            collect(problems, read_row_prompt, text, key=f"--row-{side}-prompt")
    return problems


def unknown_sources(options: TokenOptions | None, parts: list[Part]) -> list[str]:
    """Returns a problem for every source with a prompt that no row has."""
    names = sorted({name for part in parts for name in part.sources})
    prompts = {side: getattr(options.own_prompts, side) for side in SIDES} if options else {}
    return [
        f"--source-{side}-prompt {name}: no row has this source, but {', '.join(names)}.{nearest(name, names)}"
        for side, by_source in prompts.items()
        for name in by_source
        if name not in names
    ]


class Source(NamedTuple):
    """A tokenizer's folder, and the prompts and lengths of its texts."""

    model: str
    folder: Path
    sha256: str
    rules: TextRules
    own_prompts: OwnPrompts
    notes: list[str]  # lines to print once


def find(options: TokenOptions) -> Source:
    """Reads what a folder's files say, without loading the tokenizer. Raises BadInput."""
    folder = Path(fetch(options.model, TOKENIZER_FILES, "--tokenizer"))
    if not folder.is_dir():
        raise BadInput(f"--tokenizer {folder}: is not a folder")
    sha256 = tokenizer_hash(folder)
    rules, notes = read_text_rules(folder, options, lambda name: f"--{name.replace('_', '-')}")
    return Source(options.model, folder, sha256, rules, options.own_prompts, notes)


def load(source: Source) -> Loaded:
    """Loads the tokenizer as a run does, by transformers. Raises BadInput. Imports torch."""
    tokenizer, rules = _from_transformers(source.folder), source.rules
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    before, after = _special_tokens(backend)
    special = len(before) + len(after)
    if min(rules.query_max_len, rules.passage_max_len) <= special:
        raise BadInput(f"--query-max-len, --passage-max-len: must be above {special}, the special tokens of a text")
    check(_without_room(source, backend))
    facts = TokenFacts(
        model=source.model,
        sha256=source.sha256,
        rules=rules,
        leading=len(before),
        trailing=len(after),
        truncation_side=tokenizer.truncation_side,
        id_bytes=2 if max(backend.get_vocab(with_added_tokens=True).values()) < 1 << 16 else 4,
        own_prompts=source.own_prompts,
    )
    try:
        return Loaded(facts, backend.to_str(), before, after)
    except Exception as error:  # parts written in Python
        raise BadInput(f"--tokenizer {source.folder}: cannot be handed to other processes ({error})") from None


def _without_room(source: Source, backend: Any) -> list[str]:
    """Returns the problems of prompts that are as long as their texts may be."""
    problems = []
    for side in SIDES:
        stated, by_source = getattr(source.rules, f"{side}_prompt"), getattr(source.own_prompts, side)
        option = f"--source-{side}-prompt" if by_source else f"--{side}-prompt"
        limit, length = getattr(source.rules, f"{side}_max_len"), f"--{side}-max-len"
        problems += without_room([stated, *by_source.values()], limit, option, length, lambda t: len(backend.encode(t)))
    return problems


def _from_transformers(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever a damaged folder makes the library raise is the folder's fault
        raise BadInput(f"--tokenizer {folder}: cannot be loaded ({type(error).__name__}: {error})") from None
    if not tokenizer.is_fast:
        raise BadInput(f"--tokenizer {folder}: has no fast tokenizer; convert it with transformers")
    return tokenizer


def _special_tokens(backend: Any) -> tuple[list[int], list[int]]:
    """Returns the ids that every text gets before and after its own."""
    own = backend.encode("a", add_special_tokens=False).ids
    ids = backend.encode("a").ids
    starts = [i for i in range(len(ids) - len(own) + 1) if own and ids[i : i + len(own)] == own]
    if len(starts) != 1:
        raise BadInput("--tokenizer: cannot tell its special tokens from those of a text; leave --tokenizer out")
    return ids[: starts[0]], ids[starts[0] + len(own) :]


class Encoder:
    """Encodes texts as little-endian bytes of ids, without special tokens."""

    def __init__(self, loaded: Loaded):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(loaded.state)
        self.dtype = loaded.facts.dtype
        self.spaces = spaces_between_words(json.loads(loaded.state))
        self.first = _Words(self, "")
        self.others = _Words(self, " ") if self.spaces == "lead" else self.first

    def encode(self, texts: list[str]) -> list[bytes]:
        """Returns the ids of each text."""
        if self.spaces is None:
            return self.directly(texts)
        encoded = [self._by_words(text) for text in texts]
        plain = next((i for i, ids in enumerate(encoded) if ids is not None), None)
        assert plain is None or self.directly([texts[plain]]) == [encoded[plain]], texts[plain]
        others = [i for i, ids in enumerate(encoded) if ids is None]
        for i, ids in zip(others, self.directly([texts[i] for i in others])):
            encoded[i] = ids
        return encoded

    def directly(self, texts: list[str]) -> list[bytes]:
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(each.ids, self.dtype).tobytes() for each in encoded]

    def _by_words(self, text: str) -> bytes | None:
        """Returns the ids by the cache; None for a text with white space that the rule does not cover."""
        if self.spaces == "lead":
            if not text.isprintable() or "  " in text or text[:1] == " " or text[-1:] == " ":
                return None
            first, *others = text.split(" ")
            return self.first[first] + b"".join(map(self.others.__getitem__, others))
        if not text.isprintable():  # printable texts have no white space but the plain space
            text = text.translate(FLAT)
            if not text.isprintable():
                return None
        return b"".join(map(self.first.__getitem__, text.split()))


class _Words(dict):
    """Word -> its ids. A missing word is tokenised with `before` in front of it."""

    def __init__(self, encoder: Encoder, before: str):
        super().__init__()
        self.encoder, self.before = encoder, before

    def __missing__(self, word: str) -> bytes:
        (ids,) = self.encoder.directly([self.before + word])
        if len(self) < WORDS:
            self[word] = ids
        return ids


def spaces_between_words(state: dict[str, Any]) -> str | None:
    """Returns how the ids of a text follow from those of its words; None where that is not certain.

    "drop": spaces, tabs and line ends separate words and leave nothing. "lead": a word takes the single space before
    it. Certain means: the normalizer changes character by character and never joins across a space, the splitting is
    known here, and no added token holds white space or takes it from the next word. state: the tokenizer's JSON.
    """
    normalizer, pre_tokenizer, added = state["normalizer"], state["pre_tokenizer"], state["added_tokens"]
    parts = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    spaced = any(token["rstrip"] or any(map(str.isspace, token["content"])) for token in added)
    strange = any(part is not None and part["type"] not in NORMALIZERS for part in parts)
    if spaced or strange or pre_tokenizer is None or state["model"].get("dropout"):
        return None
    if pre_tokenizer["type"] in DROPPING:
        return "drop"
    splits = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *before, last = splits
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    patterns = [_pattern(split) for split in before] + ([GPT2] if last["use_regex"] else [])
    return "lead" if len(patterns) == 1 and patterns[0] in LEADING else None


def _pattern(split: dict[str, Any]) -> str | None:
    """Returns the pattern whose matches become words."""
    plain = split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
    return split["pattern"].get("Regex") if plain else None


class TokenTask(NamedTuple):
    """Train rows of the spool to tokenise."""

    number: int
    folder: Path
    pieces: list[Piece]
    tokenizer: Path  # written by token_tasks


class TokenPart(NamedTuple):
    """The result of a task: NNNNNN.tokens and NNNNNN.tokens.npz in the spool."""

    number: int
    rows: int
    texts: int
    tokens: int
    cut_queries: int  # truncated
    cut_passages: int  # truncated
    surveys: dict[str, Survey]  # by side, where rows state prompts


@lru_cache(maxsize=1)
def _read_tokenizer(path: Path) -> tuple[Loaded, Encoder]:
    facts, *rest = json.loads(path.read_text(encoding="utf-8"))
    loaded = Loaded(TokenFacts.of_manifest(facts), *rest)
    return loaded, Encoder(loaded)


def make_tokens(task: TokenTask) -> TokenPart:
    """Writes the tokens of some rows into the spool."""
    loaded, encoder = _read_tokenizer(task.tokenizer)
    facts, columns = loaded.facts, [[], [], []]
    tokens, cut_texts = 0, np.zeros(2, np.int64)
    surveys = {side: Survey(made) for side, made in facts.own_prompts.of_rows.items()}
    tokens_file = Path(_file(task.folder, task.number))
    with named_when_whole(tokens_file, task.folder) as name, open(name, "wb") as file:
        for batch, _ in batches_of(task.folder, "train", task.pieces):
            texts, texts_of = _texts(batch, facts, surveys)
            is_query = np.zeros(len(texts), bool)
            is_query[texts_of.cumsum() - texts_of] = True
            limits = np.where(is_query, facts.rules.query_max_len, facts.rules.passage_max_len)
            ids = encoder.encode(texts)
            lengths = np.fromiter(map(len, ids), np.int64, len(ids)) // facts.id_bytes + facts.leading + facts.trailing
            file.write(_laid(ids, lengths, limits, loaded))
            kept = np.minimum(lengths, limits)
            for column, values in zip(columns, (texts_of, lengths, kept)):
                column.append(values)
            tokens += int(kept.sum())
            cut_texts += [(lengths > limits)[is_query].sum(), (lengths > limits)[~is_query].sum()]
    texts_of, lengths, kept = map(np.concatenate, columns)
    save_arrays(tokens_file.with_suffix(".tokens.npz"), texts_of=texts_of, lengths=lengths, kept=kept)
    return TokenPart(task.number, len(texts_of), len(kept), tokens, *map(int, cut_texts), surveys)


def _texts(batch: Any, facts: TokenFacts, surveys: dict[str, Survey]) -> tuple[list[str], Any]:
    """Returns a batch's texts with prompts, row after row (query, positives, negatives), and the texts of each row."""
    names = ("query", "positives", "negatives", "source", "id", "metadata")
    texts, texts_of = [], []
    for query, positives, negatives, source, row, metadata in zip(*(batch.column(name).to_pylist() for name in names)):
        values = json.loads(metadata) if surveys else {}
        for survey in surveys.values():
            survey.add(row, values)
        # a prompt that is no text is reported when all rows are read
        values = {} if any(survey.wrong for survey in surveys.values()) else values
        prompts = facts.own_prompts.of(facts.rules, source, values)
        texts.append(prompts.query + query)
        texts += [prompts.passage + text for text in (*positives, *negatives)]
        texts_of.append(1 + len(positives) + len(negatives))
    return texts, np.array(texts_of)


def _laid(ids: list[bytes], lengths: Any, limits: Any, loaded: Loaded) -> bytes:
    """Returns the ids of all texts end to end, with special tokens, truncated to their limits."""
    facts = loaded.facts
    before, after = (np.array(some, facts.dtype).tobytes() for some in (loaded.before, loaded.after))
    parts = []
    for text, long, limit in zip(ids, (lengths > limits).tolist(), limits.tolist()):
        if long:
            kept = (limit - facts.leading - facts.trailing) * facts.id_bytes
            text = text[len(text) - kept :] if facts.truncation_side == "left" else text[:kept]
        parts += (before, text, after)
    return b"".join(parts)


def token_tasks(spool: Path, counts: list[int], loaded: Loaded) -> list[TokenTask]:
    """Returns the tasks for all train rows. counts: train rows in each part of the spool."""
    content = json.dumps([loaded.facts.for_manifest(), *loaded[1:]])
    # named by content, because _read_tokenizer caches by name
    tokenizer = spool / f"tokenizer-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
    tokenizer.write_text(content, encoding="utf-8")
    sizes = [TASK_ROWS] * -(-sum(counts) // TASK_ROWS)
    return [TokenTask(i, spool, pieces, tokenizer) for i, pieces in enumerate(cut(counts, sizes))]


def join_tokens(
    spool: Path, parts: list[TokenPart], loaded: Loaded, build: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Joins the parts into the files of tokens.py; returns the manifest's facts of them and of the files.

    Raises BadInput for prompts of rows that are no texts, and for keys that no row has."""
    surveys = _surveyed(parts)
    files = ids, starts, lengths, rows = [HashedFile(build / name) for name in FILES]
    for file in (starts, rows):
        file.write(np.zeros(1, "<i8"))
    texts = tokens = 0
    for part in parts:
        with open(_file(spool, part.number), "rb") as file:
            while block := file.read(COPY_BYTES):
                ids.write(block)
        with np.load(_file(spool, part.number) + ".npz") as arrays:
            rows.write((texts + arrays["texts_of"].cumsum()).astype("<i8"))
            lengths.write(arrays["lengths"].astype("<i4"))
            starts.write((tokens + arrays["kept"].cumsum()).astype("<i8"))
        texts += part.texts
        tokens += part.tokens
    for file in files:
        file.close()
    cut = {f"cut_{side}": sum(getattr(part, f"cut_{side}") for part in parts) for side in ("queries", "passages")}
    own = {"row_prompts": {side: survey.stated for side, survey in surveys.items()}} if surveys else {}
    facts = loaded.facts.for_manifest() | {"texts": texts, "tokens": tokens} | cut | own
    return facts, [file.entry(build) for file in files]


def _surveyed(parts: list[TokenPart]) -> dict[str, Survey]:
    """Joins the surveys of all parts, by side, and prints their notes. Raises BadInput with every problem."""
    surveys, *others = [part.surveys for part in parts]
    for side, survey in surveys.items():
        for other in others:
            survey.merge(other[side])
    options = {side: f"--row-{side}-prompt" for side in surveys}
    check([line for side, survey in surveys.items() for line in survey.problems(options[side])])
    for side, survey in surveys.items():
        for note in survey.notes(options[side]):
            say(f"note: {note}")
    return surveys


def _file(folder: Path, number: int) -> str:
    return str(folder / f"{number:06d}.tokens")
