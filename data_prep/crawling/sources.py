"""Sources of `crawl`: glossaries of Wikipedia, addresses, saved pages, and lists of these."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from data_prep.common.errors import BadInput, nearest

WIKIPEDIA = "https://{lang}.wikipedia.org/w/api.php"
GLOSSARIES = "Category:Wikipedia glossaries"  # of the English Wikipedia; its language links name those of the others
HTML, MARKDOWN, LIST = (".html", ".htm", ".xhtml"), (".md", ".markdown"), (".txt",)
FORMS = "wikipedia_glossary, wikipedia_glossary:TITLE, an http(s) address, a saved page (.html, .md) or a list (.txt)"

_WIKIMEDIA = re.compile(
    r"(?P<host>[a-z-]+)(?:\.m)?\.(?P<project>wikipedia|wiktionary|wikibooks|wikiversity|wikinews|wikiquote|wikisource|"
    r"wikivoyage|wikimedia)\.org"
)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to crawl: a page, a saved page, or a title of a wiki (exactly one of url, file and api is set)."""

    name: str  # as the user wrote it
    url: str = ""
    file: Path | None = None
    api: str = ""  # address of the api.php of a MediaWiki
    title: str | None = None  # a page or category of the wiki; None: the wiki's category of glossaries in `language`
    language: str = ""

    @property
    def target(self) -> tuple:
        """A key that is equal for two sources of the same pages."""
        return (self.url, self.file and self.file.resolve(), self.api, self.title, self.language)


def read_sources(names: Iterable[str], language: str) -> list[Source]:
    """Returns the sources in order. Raises BadInput with every name that is no source, or is repeated."""
    problems, sources = [], []
    if not _LANGUAGE.fullmatch(language):
        problems.append(f"--lang {language}: is no language code such as en, de or zh-yue")
    for name, position in _listed(list(names), problems):
        source = _source(name, language)
        if isinstance(source, str):
            problems.append(f"{position}{source}")
        elif any(source.target == other.target for other in sources):
            problems.append(f"{position}{name}: is given twice; name it once")
        else:
            sources.append(source)
    if not sources and not problems:
        problems.append(f"--source: nothing to crawl; name {FORMS}")
    if problems:
        raise BadInput(problems)
    return sources


def _listed(names: list[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (name, "FILE:LINE: " if it comes from a list). A list has one name per line; # begins a comment."""
    for name in names:
        path = Path(name)
        if path.suffix.lower() not in LIST or not path.is_file():
            yield name.strip(), ""
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (UnicodeDecodeError, OSError) as error:
            problems.append(f"{name}: cannot be read as UTF-8 text: {error}")
            continue
        listed = [(line, number) for number, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"]
        if not listed:
            problems.append(f"{name}: the list is empty; write one source per line")
        for line, number in listed:
            if Path(line.strip()).suffix.lower() in LIST and "://" not in line:
                problems.append(f"{name}:{number}: {line.strip()}: a list cannot name another list")
            else:
                yield line.strip(), f"{name}:{number}: "


def _source(name: str, language: str) -> Source | str:
    """Returns the source of this name, or what is wrong with it."""
    if name == "wikipedia_glossary" or name.startswith("wikipedia_glossary:"):
        title = name.partition(":")[2].strip() or None
        if title is None and ":" in name:
            return f"{name}: the title is missing; write wikipedia_glossary:Glossary of botany, or wikipedia_glossary"
        return Source(name, api=WIKIPEDIA.format(lang=language), title=title, language=language)
    if re.match(r"[a-z][a-z0-9+.-]+:", name, re.I) and not Path(name).exists():
        return _address(name, language)
    return _file(name)


def _address(name: str, language: str) -> Source | str:
    try:
        url = urlsplit(name)
        host, _ = url.hostname or "", url.port
    except ValueError as error:
        return f"{name}: is no valid address: {error}"
    if url.username or url.password:
        return f"{url.scheme}://…@{host}: holds a user name or password; only open pages are crawled"
    if url.scheme.lower() not in ("http", "https"):
        hint = "; name a local file by its path" if url.scheme.lower() == "file" else ""
        return f"{name}: only http and https are fetched, not {url.scheme}:{hint}"
    if not host:
        return f"{name}: the address has no host"
    if url.path.endswith("/api.php"):
        title = parse_qs(url.query).get("title", [""])[0]
        if not title:
            return f"{name}: which page of this wiki? Write {name.partition('?')[0]}?title=Glossary"
        return Source(name, api=name.partition("?")[0], title=title, language=language)
    if (wiki := _WIKIMEDIA.fullmatch(host)) and url.path.startswith("/wiki/") and len(url.path) > 6:
        api = f"https://{wiki['host']}.{wiki['project']}.org/w/api.php"
        return Source(name, api=api, title=unquote(url.path[6:]).replace("_", " "), language=language)
    return Source(name, url=name, language=language)


def _file(name: str) -> Source | str:
    path = Path(name)
    if path.is_dir():
        return f"{name}: is a folder; name the pages in it"
    if not path.exists():
        return f"{name}: no such file{_meant(path)}; a source is {FORMS}"
    if path.suffix.lower() not in HTML + MARKDOWN:
        return f"{name}: cannot tell the format of {path.suffix or 'a file without ending'!r}; a source is {FORMS}"
    return Source(name, file=path)


def _meant(path: Path) -> str:
    """Returns a hint for a file that does not exist, or ""."""
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    if hint := nearest(path.name, ["wikipedia_glossary", *siblings]):
        return f".{hint}"
    return f" (an address? then write https://{path})" if "." in path.parts[0].strip(".") else ""
