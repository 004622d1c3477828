"""Pictures of docs/start/tour.md, from the run of a quickstart: python -m tests.soak.tour [FOLDER] [--look FOLDER]

- FOLDER is what `bash launch/quickstart.sh` wrote (default quickstart/). The pictures go to docs/pictures/.
- --look writes every page, and some of the documentation, wide and narrow, light and dark, as PNG for a person to look
  at, and exits with code 1 where one is wider than its screen.
- Needs the extras dev and quickstart, and a Chromium.
"""

import argparse
import base64
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.common.console import result
from data_prep.common.errors import BadInput, Failed, guarded
from data_prep.common.files import check
from data_prep.common.parser import Parser
from tests.browser import MISSING, chromium
from tests.launching import ROOT

PICTURES = ROOT / "docs" / "pictures"
WIDE, NARROW = 1100, 390
PLAN = ("--gpus-per-node", "2", "--gpu", "L4", "output_dir=runs/next")
CHARTS = "?smoothing=0&tagFilter=train%2F(loss|positive|batch_acc)|nDCG#timeseries"  # of TensorBoard
READY = "scalar-card svg"
PATIENCE = 600_000  # milliseconds for a page to be drawn: each wait ends as soon as it is, also on a busy machine
TERMINAL = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<style>body {{ margin: 0; padding: 16px 20px; background: #1b2129; color: #e4e9ef }}
pre {{ margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 12px/1.45 "DejaVu Sans Mono", monospace }}
b {{ color: #7fd19b; font-weight: 400 }}</style><pre><b>$ {command}</b>
{output}</pre>"""
SITE = ("index.html", "start/tour/index.html", "start/from_pairs/index.html", "reference/run_file/index.html")


class Shot(NamedTuple):
    """One picture: a page, its width and scheme, and from where on how much of it. start: a selector, or the top."""

    name: str
    page: str
    width: int
    scheme: str
    height: int
    start: str = ""


SHOTS = (
    Shot("report", "report", WIDE, "light", 1240),
    Shot("report_queries", "report", WIDE, "light", 760, "section:has(h2:text-is('Queries that gained most'))"),
    Shot("report_phone", "report", NARROW, "dark", 1240),
    Shot("gate", "gate", WIDE, "light", 1000),
    Shot("gate_phone", "gate", NARROW, "dark", 1240),
    Shot("plan", "plan", WIDE, "light", 0),
    Shot("tensorboard", "tensorboard", WIDE, "light", 900),
)


def run_of(folder: Path) -> Path:
    """Returns the quickstart's finished run. Raises BadInput."""
    runs = [path.parent for path in sorted(folder.glob("run-*/report.html"))]
    if not runs or not (folder / "shards").is_dir():
        raise BadInput(f"{folder}: holds no finished quickstart; run it first: bash launch/quickstart.sh")
    return runs[0]


def output_of(folder: Path, *command: str) -> str:
    """Runs a command of ours in this folder and returns what it prints. Raises Failed."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"python -m {' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def write_pages(folder: Path, run: Path, pages: Path) -> dict[str, str]:
    """Writes the pages that the quickstart leaves out; returns the address of every page."""
    gate, plan = pages / "gate.html", pages / "plan.html"
    output_of(folder, "data_prep", "inspect", "shards", "--tokenizer", str(run / "final"), "--html", str(gate))
    command = ("launch", "plan", "--config", "run.yaml", *PLAN)
    shown = f"python -m {' '.join(command)}"
    text = TERMINAL.format(command=escape(shown), output=escape(output_of(folder, *command)))
    plan.write_text(text, encoding="utf-8")
    return {"report": (run / "report.html").as_uri(), "gate": gate.as_uri(), "plan": plan.as_uri()}


def serve_tensorboard(run: Path) -> str:
    """Serves the run's numbers in a thread of this process; returns the address."""
    from tensorboard import program

    board = program.TensorBoard()
    board.configure(argv=["tensorboard", "--logdir", str(run / "runs"), "--host", "127.0.0.1", "--port", "0"])
    return board.launch() + CHARTS


@contextmanager
def opened(browser: Any, url: str, width: int, scheme: str) -> Iterator[Any]:
    """Yields a page at this width and in this scheme, once it is drawn."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(url)
    if url.startswith("http"):
        page.wait_for_selector(READY)
        page.get_by_role("button", name="Toggle settings side pane").click()  # shuts it
        page.wait_for_load_state("networkidle")
    yield page
    context.close()


def take(browser: Any, shot: Shot, url: str) -> int:
    """Writes one picture as WebP; returns its bytes."""
    with opened(browser, url, shot.width, shot.scheme) as page:
        top = page.locator(shot.start).bounding_box()["y"] if shot.start else 0
        whole = page.evaluate("document.documentElement.scrollHeight")
        size = {"x": 0, "y": top, "width": shot.width, "height": min(shot.height or whole, whole - top), "scale": 1}
        asked = {"format": "webp", "quality": 75, "captureBeyondViewport": True, "clip": size}
        answer = page.context.new_cdp_session(page).send("Page.captureScreenshot", asked)
    data = base64.b64decode(answer["data"])
    (PICTURES / f"{shot.name}.webp").write_bytes(data)
    return len(data)


def take_all(browser: Any, urls: dict[str, str]) -> None:
    PICTURES.mkdir(exist_ok=True)
    sizes = [take(browser, shot, urls[shot.page]) for shot in SHOTS]
    result(f"{PICTURES}: {len(sizes)} pictures, {sum(sizes) / 1024:.0f} KiB")


def build_site(folder: Path) -> dict[str, str]:
    """Builds the documentation; returns the address of some of its pages."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise Failed(f"{' '.join(command)} failed")
    return {f"site_{Path(page).parent.name or 'index'}": (folder / page).as_uri() for page in SITE}


def look(browser: Any, urls: dict[str, str], output: Path) -> None:
    """Writes each page at both widths and in both schemes as PNG. Raises Failed where one is too wide."""
    output.mkdir(parents=True, exist_ok=True)
    wrong = []
    for name, url in urls.items():
        for width in (WIDE, NARROW):
            for scheme in ("light", "dark"):
                with opened(browser, url, width, scheme) as page:
                    page.screenshot(path=output / f"{name}_{width}_{scheme}.png", full_page=True)
                    needed = page.evaluate("document.documentElement.scrollWidth")
                if needed > width:
                    wrong.append(f"{name}: needs {needed} pixels, the screen has {width}")
    result(f"{output}: {4 * len(urls)} pictures")
    if wrong:
        raise Failed("\n".join(dict.fromkeys(wrong)))


def run(args: argparse.Namespace) -> None:
    folder = args.folder.resolve()
    done = run_of(folder)
    with tempfile.TemporaryDirectory() as pages, chromium() as browser:
        check([MISSING.format(browser)] if isinstance(browser, str) else [])
        urls = write_pages(folder, done, Path(pages)) | {"tensorboard": serve_tensorboard(done)}
        if args.look:
            look(browser, urls | build_site(Path(pages) / "site"), args.look)
        else:
            take_all(browser, urls)


def main(argv: list[str] | None = None) -> int:
    summary = "Takes the pictures of docs/start/tour.md from the run of a quickstart."
    parser = Parser("python -m tests.soak.tour", summary, "python -m tests.soak.tour quickstart")
    text = "folder that bash launch/quickstart.sh wrote (default quickstart)"
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "quickstart", metavar="FOLDER", help=text)
    text = "write all pages to this folder, wide and narrow, light and dark, to be looked at"
    parser.add_argument("--look", type=Path, metavar="FOLDER", help=text)
    return guarded(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
