"""`python -m data_prep crawl` against real HTTP servers on loopback: good ones, hostile ones, wikis; and killed."""

import csv
import datetime
import gzip
import html
import json
import re
import signal
import ssl
import subprocess
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests import forked
from tests.launching import free_port, run
from tests.web import GLOSSARY, page, serving

for needed in ("httpx", "protego", "w3lib", "lxml", "selectolax", "mdit_py_plugins", "cryptography"):
    pytest.importorskip(needed)
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402

DAY = datetime.timedelta(days=1)


BOMB = gzip.compress(b"<p>0" * 10**7)  # 40 MB in 39 kB
RUSSIAN = "<dl class=glossary><dt>задвижка<dd>Пластина, которой закрывают дымоход, когда печь протоплена.</dl>"


def command(tmp_path: Path, sources: list[str], *flags: str, output: str = "out.csv") -> list[str]:
    kept = ["--output", str(tmp_path / output), "--cache", str(tmp_path / "cache")]
    return ["-m", "data_prep", "crawl", "--source", *sources, *kept, *flags]


def crawl(tmp_path: Path, sources: list[str], *flags: str, output: str = "out.csv") -> subprocess.CompletedProcess:
    return run(*command(tmp_path, sources, *flags, output=output), timeout=120)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_real_glossary_pages(real_data, tmp_path):
    """20 pages of three documentation tools in 18 languages: every expected term with its definition, no other term."""
    folder = real_data / "glossary_pages"
    expected = json.loads((folder / "expected_terms.json").read_text(encoding="utf-8"))
    routes = {f"/{name}": _file(folder / name) for name in expected}
    with serving(routes) as web:
        done = crawl(tmp_path, [f"{web.address}/{name}" for name in expected], "--delay", "0")
    assert done.returncode == 0, done.both
    found = rows(tmp_path / "out.csv")
    terms = {name: Counter(row["term"] for row in found if row["url"].endswith(name)) for name in expected}
    wanted = {name: Counter(names) for name, names in expected.items()}
    assert sum((terms[name] - wanted[name]).total() for name in expected) == 0, "false terms"
    assert sum((wanted[name] - terms[name]).total() for name in expected) == 0, "missed terms"
    assert len(found) == 603 and all(row["definition"].strip() for row in found)
    known = _definitions(folder, real_data / "glossaries" / "okfn.jsonl")
    right = Counter(_is_right(row, known.get(row["url"].removeprefix(f"{web.address}/"), {})) for row in found)
    # no: a colon that begins a definition is cut; a reference whose target the extraction lacks
    assert right == {"yes": 481, "resolved": 69, "unknown": 51, "no": 2}
    by_term = {row["term"]: row["definition"] for row in found if "/okfn_opendatahandbook/en/" in row["url"]}
    assert by_term["API"] == by_term["Application Programming Interface"]  # "See Application Programming Interface."
    assert "have its definition: 83\n" in done.stderr and "keep their text as written: 42\n" in done.stderr


def _file(path: Path):
    return lambda request: request.send(path.read_bytes())


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _definitions(folder: Path, extracted: Path) -> dict[str, dict[str, str]]:
    """page -> term -> definition without white space, from elsewhere: an extraction made by others, the source of a
    page in reStructuredText, and the cells of a table by a regular expression."""
    found: dict[str, dict[str, str]] = {}
    for row in map(json.loads, extracted.read_text(encoding="utf-8").splitlines()):
        page = found.setdefault(f"okfn_opendatahandbook/{row['lang']}/glossary.html", {})
        page[row["term"]] = _squeeze(row["definition"])
    source = (folder / "tfm" / "glossary.rst.txt").read_text(encoding="utf-8").partition(":sorted:")[2]
    blocks = re.findall(r"((?:^    \S.*\n)+)((?:^     +\S.*\n)+)", source, re.M)
    plain = [(terms, _squeeze(re.sub(r"`(.*?)`_", r"\1", text, flags=re.S))) for terms, text in blocks]
    found["tfm/glossary.html"] = {term.strip(): text for terms, text in plain for term in terms.splitlines()}
    table = (folder / "rustc_guide" / "glossary.html").read_text(encoding="utf-8")
    cells = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", table)
    strip = [(html.unescape(term).strip(), re.sub("<.*?>", "", text)) for term, text in cells]
    found["rustc_guide/glossary.html"] = {term: _squeeze(html.unescape(text)) for term, text in strip}
    return found


def _is_right(row: dict[str, str], known: dict[str, str]) -> str:
    """Compares the definition with the known one, or, where that refers to another term, with the other one's."""
    if row["term"] not in known:
        return "unknown"
    said, theirs = _squeeze(row["definition"]), known[row["term"]]
    refers = len(theirs) < 60 and said in known.values()
    return "yes" if said == theirs else "resolved" if refers else "no"


def test_hostile_servers_cost_no_page_of_the_others(tmp_path):
    """One crawl over 26 pages, most of them bad in their own way; each is handled, and named in the one error."""
    flaky = Counter()
    routes = {
        "/robots.txt": lambda request: request.send("User-agent: *\nDisallow: /private/\n", "text/plain"),
        "/good": page("good"),
        "/private/a": page("secret"),
        "/to-private": lambda request: request.redirect("/private/a"),
        "/loop": lambda request: request.redirect("/loop"),
        "/ping": lambda request: request.redirect("/pong"),
        "/pong": lambda request: request.redirect("/ping", 301),
        "/to-file": lambda request: request.redirect("file:///etc/passwd"),
        "/to-ftp": lambda request: request.redirect("ftp://127.0.0.1/x"),
        "/to-script": lambda request: request.redirect("javascript:alert(1)"),
        "/refresh": lambda request: request.send('<meta http-equiv=refresh content="0;url=file:///etc/passwd">'),
        "/moved": lambda request: request.redirect("/good2", 308),
        "/good2": page("moved"),
        "/endless": _endless,
        "/declared": _declared,
        "/bomb": lambda request: request.send(BOMB, Content_Encoding="gzip"),
        "/500-then-ok": lambda request: _after(request, flaky, 2, 500),
        "/503-then-ok": lambda request: _after(request, flaky, 1, 503, Retry_After="0"),
        "/come-back": lambda request: request.send("", status=429, Retry_After="3600"),
        "/500": lambda request: request.send("", status=500),
        "/cut": _cut_short,
        "/pdf": lambda request: request.send(b"%PDF", "application/pdf"),
        "/empty": lambda request: request.send(""),
        "/news": lambda request: request.send("<h1>News</h1><p>Today."),
        "/wrong-charset": lambda request: request.send(RUSSIAN.encode("cp1251")),
        "/broken": lambda request: request.send(
            "<dl class=glossary><dt>torn<b><dd>One <i>two<dt>c</b><dd>three</dl></p>"
        ),
    }
    failing = {"/robots.txt": lambda request: request.send("", status=503), "/page": page("unseen")}
    with serving(routes) as web, serving(failing) as closed, serving({"/x": page("forged")}) as forged:
        forged.socket = _self_signed(tmp_path).wrap_socket(forged.socket, server_side=True)
        ours = [web.address + path for path in routes if path not in ("/robots.txt", "/good2")]
        secure = forged.address.replace("http:", "https:") + "/x"
        others = [secure, f"{closed.address}/page", f"http://127.0.0.1:{free_port()}/x", f"{web.address}/absent"]
        done = crawl(tmp_path, ours + others, "--delay", "0")
    found = {(row["term"], row["definition"]) for row in rows(tmp_path / "out.csv")}
    good = {(term, f"What {term} means.") for term in ("good", "moved", "/500-then-ok", "/503-then-ok")}
    plate = ("задвижка", "Пластина, которой закрывают дымоход, когда печь протоплена.")
    assert found == {*good, plate, ("torn", "One two"), ("c", "three")}
    assert done.returncode == 1 and "Traceback" not in done.both
    said = _reasons(done.stderr, web.address)
    assert said.pop(f"{closed.address}/page").startswith("robots.txt cannot be read (HTTP 503 Service Unavailable)")
    assert "certificate verify failed" in said.pop(others[0]) and "refuses the connection" in said.pop(others[2])
    assert said == {
        "/private/a": "robots.txt forbids it",
        "/to-private": f"redirects to {web.address}/private/a: robots.txt forbids it",
        "/loop": f"redirects more than 5 times: {' -> '.join([web.address + '/loop'] * 6)}",
        "/ping": f"redirects more than 5 times: {' -> '.join([f'{web.address}/ping', f'{web.address}/pong'] * 3)}",
        "/pong": f"redirects more than 5 times: {' -> '.join([f'{web.address}/pong', f'{web.address}/ping'] * 3)}",
        "/to-file": "redirects to file:///etc/passwd; only http and https are fetched",
        "/to-ftp": "redirects to ftp://127.0.0.1/x; only http and https are fetched",
        "/to-script": "redirects to javascript:alert(1); only http and https are fetched",
        "/refresh": "redirects to file:///etc/passwd; only http and https are fetched",
        "/endless": "is larger than 10 MiB; it was not read further",
        "/declared": "is larger than 10 MiB; it was not read further",
        "/bomb": "is larger than 10 MiB; it was not read further",
        "/come-back": "HTTP 429 Too Many Requests; it asks to wait 3,600 s; try again later",
        "/500": "HTTP 500 Internal Server Error, 4 times",
        "/cut": "the answer was cut short",
        "/pdf": "is application/pdf; only HTML and Markdown pages are read",
        "/empty": "no term found (the page is empty)",
        "/news": said["/news"],
        "/absent": "HTTP 404 Not Found",
    }
    assert said["/news"].startswith("no term found (no DefinedTerm, definition list or table of terms; ")
    asked = web.counts()
    assert asked["/private/a"] == 0 and closed.counts() == {"/robots.txt": 4} and asked["/robots.txt"] == 1
    assert asked["/500"] == 4 and asked["/come-back"] == asked["/absent"] == 1
    assert {"/endless", "/declared"} <= set(web.hung_up) and max(web.sent.values()) < 64 * 2**20  # of 2 GiB
    assert "1 terms (1 by dl.glossary); HTTP header (utf-8) says utf-8; read as cp1251 (guessed)" in done.stderr


def _reasons(stderr: str, address: str) -> dict[str, str]:
    """path -> reason, of the error that ends a crawl."""
    head, *lines = stderr[stderr.index("error: ") :].splitlines()
    assert head.startswith(f"error: {len(lines)} problems with the sources; ")
    parted = [re.match(rf"  - (?:{re.escape(address)})?(\S+): (.*)", line).groups() for line in lines]
    return dict(parted)


def _self_signed(folder: Path) -> ssl.SSLContext:
    """TLS with a certificate for 127.0.0.1 that nobody vouches for."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + DAY)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "own.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.pem")
    return context


def _endless(request) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.end_headers()
    _send_2_gib(request)


def _declared(request) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.send_header("Content-Length", str(2 * 2**30))
    request.end_headers()
    _send_2_gib(request)


def _send_2_gib(request) -> None:
    block = b"<p>x</p>" * 2**13
    for at in range(0, 2 * 2**30, len(block)):
        request.wfile.write(block)
        request.server.sent[request.path] = at + len(block)


def _after(request, times: Counter, bad: int, status: int, **headers: str) -> None:
    times[request.path] += 1
    if times[request.path] <= bad:
        request.send("", status=status, **headers)
    else:
        request.send(GLOSSARY.format(request.path))


def _cut_short(request) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"<p>cut")


class Gate:
    """A page that is not answered before `open`; `asked` is set when somebody waits for it."""

    def __init__(self, term: str):
        self.asked, self.open, self.term = threading.Event(), threading.Event(), term

    def __call__(self, request) -> None:
        self.asked.set()
        self.open.wait(120)
        request.send(GLOSSARY.format(self.term))


def test_a_killed_crawl_goes_on_and_asks_for_no_page_twice(tmp_path):
    """SIGKILL during the fourth of seven pages, Ctrl-C during the last: the same command goes on, and ends as if never
    stopped. Only the page that was under way is asked for again; and a host gets one request at a time."""
    gates = {"/3": Gate("term 3"), "/6": Gate("term 6")}
    routes = {f"/{i}": page(f"term {i}") for i in range(7)} | gates
    with serving(routes) as web:
        argv = command(tmp_path, [web.address + path for path in routes], "--delay", "0")
        assert _stop(argv, gates["/3"], signal.SIGKILL) == (-signal.SIGKILL, "")
        assert [path for _, path, _ in web.requests] == ["/robots.txt", "/0", "/1", "/2", "/3"]
        gates["/3"].open.set()
        code, said = _stop(argv, gates["/6"], signal.SIGINT)
        assert code == 130 and said.endswith("and the same command goes on from there\nstopped by Ctrl-C\n")
        assert not (tmp_path / "out.csv").exists()
        gates["/6"].open.set()
        done = run(*argv)
        assert done.returncode == 0 and done.stderr.count("; from the cache\n") == 6, done.both
        assert web.counts() == {**dict.fromkeys(routes, 1), "/robots.txt": 1, "/3": 2, "/6": 2}
    assert [row["term"] for row in rows(tmp_path / "out.csv")] == [f"term {i}" for i in range(7)]


def _stop(argv: list[str], gate: Gate, with_signal: int) -> tuple[int, str]:
    """Exit code of the command that gets the signal while it waits for this page, and what it says from then on."""
    process = forked.start(argv)
    line = f"{int(gate.term.split()[1])} of 7 sources done\n"
    process.wait_until_it_says(line)
    assert gate.asked.wait(60)
    process.send_signal(with_signal)
    _, said = process.communicate(timeout=60)
    return process.returncode, said.partition(line)[2]


def test_a_server_that_trickles_is_given_up(tmp_path):
    stop = threading.Event()
    with serving({"/slow": lambda request: _trickle(request, stop)}) as web:
        done = crawl(tmp_path, [f"{web.address}/slow"], "--delay", "0", "--timeout", "0.5")
        stop.set()
    assert done.returncode == 1 and not (tmp_path / "out.csv").exists()
    assert "nothing was written" in done.stderr
    assert done.stderr.endswith("/slow: no whole answer in time, 4 times (--timeout)\n")
    assert web.counts()["/slow"] == 4


def _trickle(request, stop: threading.Event) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.end_headers()
    while not stop.wait(0.1):
        request.wfile.write(b"<p>")


def test_manners(tmp_path):
    """Requests are apart by the delay or the longer Crawl-delay of robots.txt, and say who asks for what language."""
    routes = {
        f"/{i}": lambda request, i=i: request.send(GLOSSARY.format(i), Set_Cookie="a=b; path=/") for i in range(3)
    }
    routes["/robots.txt"] = lambda request: request.send("User-agent: embedfleet\nCrawl-delay: 0.5\n", "text/plain")
    with serving(routes) as web:
        sources = [f"{web.address}/{i}" for i in range(3)]
        done = crawl(tmp_path, sources, "--delay", "0.2", "--contact", "me@example.org", "--lang", "fr")
        assert done.returncode == 0, done.both
        times = [at for at, _, _ in web.requests]
        assert all(later - earlier > 0.45 for earlier, later in pairwise(times[1:])), times
        headers = web.requests[-1][2]
        assert re.fullmatch(r"embedfleet/[\d.]+ \(glossary crawler; me@example\.org\)", headers["User-Agent"])
        assert headers["Accept-Language"] == "fr,en;q=0.5" and "Cookie" not in headers


def wiki(answers: dict[str, object], log: list[dict]):
    """A handler for api.php: the first answer whose key is in the query string."""

    def answer(request) -> None:
        asked = {key: value[0] for key, value in parse_qs(urlsplit(request.path).query).items()}
        log.append(asked)
        if len(log) == 2:  # behind with its databases, once
            error = {"error": {"code": "maxlag", "info": "Waiting for a database server: 7 seconds lagged"}}
            lagging = {"MediaWiki_API_Error": "maxlag", "Retry_After": "0"}
            request.send(json.dumps(error), "application/json", **lagging)
            return
        for key, found in answers.items():
            if key in request.path:
                request.send(json.dumps(found), "application/json; charset=utf-8")
                return
        request.send(json.dumps({"error": {"code": "missingtitle", "info": "No."}}), "application/json")

    return answer


PARSED = "<div class='mw-parser-output'><dl class=glossary><dt id='{0}'><dfn>{0}</dfn></dt><dd>{1}</dd></dl></div>"


def test_wikipedia_in_another_language_by_its_api(tmp_path):
    """`wikipedia_glossary --lang de`: the English wiki names the category, which is walked with continuation, in either
    format version, through a subcategory; references lead from page to page; robots.txt is for pages, not for the API;
    a page that is gone costs no other."""
    category, more = "list=categorymembers&cmtitle=Kategorie%3AGlossar&", {"cmcontinue": "page|2", "continue": "-||"}
    german, english = [], []
    answers = {
        f"{category}cmprop=ids%7Ctitle&cmlimit=max&cmcontinue": {
            "query": {"categorymembers": [{"ns": 14, "title": "Kategorie:Glossar (Sport)"}]}
        },
        category: {
            "continue": more,
            "query": {"categorymembers": [{"ns": 0, "title": "Weg"}, {"ns": 1, "title": "X"}]},
        },
        "Glossar+%28Sport%29": {
            "query": {"categorymembers": [{"ns": 0, "title": "Segeln"}, {"ns": 0, "title": "Ofenbau"}]}
        },
        "page=Ofenbau": {"parse": {"title": "Ofenbau", "text": {"*": PARSED.format("Zug", "Der Weg des Rauchs.")}}},
        "page=Segeln": {
            "parse": {"title": "Segeln", "text": PARSED.format("Kanal", "Siehe <a href='/wiki/Ofenbau#Zug'>Zug</a>.")}
        },
        "siprop": {
            "query": {
                "general": {"articlepath": "/wiki/$1"},
                "pages": {"7": {"ns": 14, "title": "Kategorie:Glossar"}},
            }
        },
    }
    links = {"query": {"pages": {"1": {"title": "C", "langlinks": [{"lang": "de", "*": "Kategorie:Glossar"}]}}}}
    routes = {
        "/de/w/api.php": wiki(answers, german),
        "/en/w/api.php": wiki({"lllang=de": links}, english),
        "/robots.txt": lambda request: request.send("User-agent: *\nDisallow: /\n", "text/plain"),
    }
    with serving(routes) as web:
        code = (
            "import sys; from data_prep import __main__; from data_prep.crawling import crawl, sources\n"
            f"crawl.WIKIPEDIA = sources.WIKIPEDIA = '{web.address}/{{lang}}/w/api.php'\n"
            "sys.exit(__main__.main(sys.argv[1:]))"
        )
        (tmp_path / "german.py").write_text(code)
        argv = command(tmp_path, ["wikipedia_glossary"], "--lang", "de", "--delay", "0", output="out.jsonl")[2:]
        done = forked.run(str(tmp_path / "german.py"), *argv)
    assert done.returncode == 1, done.both
    pairs = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert pairs == [
        {
            "anchor": term,
            "positive": "Der Weg des Rauchs.",
            "metadata": {"url": f"{web.address}/wiki/{title}", "source": "wikipedia_glossary"},
        }
        for term, title in (("Kanal", "Segeln"), ("Zug", "Ofenbau"))
    ]
    assert len(english) == 1 and len(german) == 8 and all(asked["maxlag"] == "5" for asked in german)
    assert "wikipedia_glossary: pages that are no articles (portals, talk, files): 1\n" in done.stderr
    assert "\n  - wikipedia_glossary: Weg: the wiki says missingtitle: No.\n" in done.stderr
    assert "Wikimedia asks crawlers to name a contact" not in done.stderr  # this is none of theirs


def test_dry_run_goes_the_whole_way_offline(tmp_path, capsys):
    """The sources are checked and not asked; the shipped pages of every structure become terms that shard reads."""
    from data_prep.__main__ import main

    sources = ["wikipedia_glossary", "https://example.invalid/glossary"]
    done = crawl(tmp_path, sources, "--dry-run", "--limit_per_source", "4")
    assert done.returncode == 0 and "dry run: 2 sources are well-formed and not asked" in done.stderr, done.both
    found = rows(tmp_path / "out.csv")
    assert len(found) == 25 and "terms left out by --limit-per-source: 2\n" in done.stderr
    for structure in ("dl.glossary", "table with headings", "headings", "DefinedTerm", "definition list", "lead of"):
        assert f" by {structure}" in done.stderr, structure
    by_term = {row["term"]: row["definition"] for row in found}
    assert by_term["вьюшка"] == by_term["задвижка"] and by_term["leaven"] == by_term["levain"]
    assert "\n\n" in by_term["autolyse"] and not re.search(r"\[\d|¶|edit", " ".join(by_term.values()))
    rejected = (tmp_path / "out.csv.rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["reason"] for line in rejected].count("no definition") == 1
    assert main(["compose", "--input", str(tmp_path / "out.csv"), "--output", str(tmp_path / "all.jsonl")]) == 0
    assert main(["compose", "--output", str(tmp_path / "all.jsonl")]) == 2
    assert main(["shard", str(tmp_path / "out.csv"), "--output", str(tmp_path / "shards"), "--eval-fraction", "0"]) == 0
    said = capsys.readouterr()
    assert "all.jsonl: 25 records" in said.out and "train 25 rows" in said.out and "compose: no input" in said.err


def test_mistakes_are_one_error_before_anything_is_asked(tmp_path, capsys):
    from data_prep.__main__ import main

    with serving({}) as web:
        sources = [f"{web.address}/x", "ftp://x.org/a", "nowhere.html"]
        flags = ["--delay", "-1", "--timeout", "0", "--limit-per-source", "0", "--output", str(tmp_path / "o.txt")]
        assert main(["crawl", "--sources", *sources, *flags]) == 2
        assert not web.requests
    said = capsys.readouterr().err
    assert said.startswith("error: 6 problems\n")
    for problem in (
        "must end in .csv or .jsonl",
        "--delay -1:",
        "--timeout 0:",
        "--limit-per-source 0:",
        "ftp:",
        "no such",
    ):
        assert problem in said


def test_saved_pages_need_no_network(tmp_path):
    (tmp_path / "saved.html").write_text(GLOSSARY.format("saved"), encoding="utf-8")
    (tmp_path / "saved.md").write_text("# Glossary\n\nant\n: An insect.\n", encoding="utf-8")
    done = crawl(tmp_path, [str(tmp_path / "saved.html"), str(tmp_path / "saved.md")])
    assert done.returncode == 0, done.both
    assert [(row["term"], row["url"]) for row in rows(tmp_path / "out.csv")] == [
        ("saved", (tmp_path / "saved.html").as_uri()),
        ("ant", (tmp_path / "saved.md").as_uri()),
    ]


def test_a_fault_of_ours_costs_one_source_and_is_said(tmp_path, monkeypatch, capsys):
    from data_prep.__main__ import main
    from data_prep.glossary import page as glossary

    def faulty(text, url, language=""):
        assert "ant" in text, "cannot read this"
        return read(text, url, language)

    read = glossary.from_html
    monkeypatch.setattr(glossary, "from_html", faulty)
    for term in ("ant", "bee"):
        (tmp_path / f"{term}.html").write_text(GLOSSARY.format(term), encoding="utf-8")
    sources = [str(tmp_path / "bee.html"), str(tmp_path / "ant.html")]
    assert main(["crawl", "--source", *sources, "--output", str(tmp_path / "out.csv")]) == 1
    assert [row["term"] for row in rows(tmp_path / "out.csv")] == ["ant"]
    assert "bee.html: AssertionError: cannot read this" in capsys.readouterr().err
