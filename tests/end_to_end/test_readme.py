"""README.md and docs/start, typed from top to bottom: the commands run as they stand, on a tiny model and sixty chunks.

The commands that need a network, a server, other hosts or several starts of an interpreter are left to the tests of
their own; tests/unit/test_documents.py reads the flags of every one.
"""

import json
import re
import subprocess
from dataclasses import replace

import pytest

from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_store
from tests import tiny
from tests.forked import path_for_a_shell
from tests.language_model import chunk
from tests.launching import ROOT, environment
from trainer.config.sections import ModelConfig
from trainer.inference.text_encoder import TextEncoder

ELSEWHERE = (
    "pip ", "bash ", "export ", "torchrun ", "accelerate ", "ACCELERATE_USE_CPU=true ", "python -m launch run ",
    "python -m launch doctor ", "python -m data_prep crawl --source ",
)  # fmt: skip
# a language model, or vectors of an API: test_generation.py and test_query_vectors.py
ASKING = re.compile(r"python -m data_prep generate --store |.* --endpoint-model ")


# Pages that a reader types one after the other, and folders and files that they make.
START = "docs/start/"
PATHS = {
    "README": (
        ["README.md"],
        ["runs/first/final/modules.json", "run.sbatch", "adapted/query_adapter.json", "generated.jsonl"],
    ),
    "pairs": (
        [f"{START}{page}.md" for page in ("from_pairs", "more_ranks", "scores_and_losses")],
        [
            *(f"runs/{name}/final/modules.json" for name in ("first", "scored", "taught", "mix", "own")),
            *("all.jsonl", "mined.jsonl", "runs/first/report.html", "two_nodes.sbatch", "big.yaml"),
        ],
    ),
    "store": ([f"{START}from_a_store.md"], ["runs/store/final/modules.json", "from_store.jsonl"]),
}  # fmt: skip


def commands(pages: list[str]) -> str:
    """The shell's part of the pages, without the commands of ELSEWHERE."""
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in pages]
    text = "\n".join(re.findall(r"^```bash\n(.*?)^```", "\n".join(texts), re.M | re.S))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return "\n".join(line for line in lines if not line.startswith(ELSEWHERE) and not ASKING.match(line))


@pytest.fixture
def here(tmp_path, tiny_bert):
    """Folder of the reader: models, pairs in their own files, a collection, a loss."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("MODEL", "BASE", "MODEL_FOLDER_OR_HUB_ID"):
        (folder / name).symlink_to(tiny_bert)
    rows = tiny.rows(160)
    pairs = [{"question": row["query"], "answer": row["positives"][0]} for row in rows]
    scored = [[pair["question"], pair["answer"], (i % 5) / 4] for i, pair in enumerate(pairs)]
    taught = [row | {"negatives": ["w1 w2"], "teacher_scores": [0.9, 0.1]} for row in rows]
    for name, lines in (("pairs", pairs), ("scored", scored), ("taught", taught)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    document = (ROOT / "docs/reference/run_file.md").read_text(encoding="utf-8")
    (own,) = (block for block in re.findall(r"^```python\n(.*?)^```", document, re.M | re.S) if "def triplet" in block)
    (folder / "my_losses.py").write_text(own, encoding="utf-8")
    with open_store(StoreConfig("chroma", "NAME", path=folder / "CHROMA_FOLDER"), create=True) as store:
        chunks = [replace(chunk(n), metadata={}) for n in range(60)]
        vectors = TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu").passages([chunk.text for chunk in chunks])
        rows = [replace(chunk, embedding=vector) for chunk, vector in zip(chunks, vectors)]
        store.create("NAME", vectors.shape[1], {}).upsert(rows)
    return folder


@pytest.mark.parametrize("path", PATHS)
def test_the_commands_run_as_they_stand(here, tmp_path, path):
    pages, written = PATHS[path]
    text = commands(pages)
    assert text.count("python -m") >= 4, text
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", text],
        cwd=here,
        env=environment(PATH=path_for_a_shell(tmp_path / "bin"), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    for name in written:
        assert (here / name).stat().st_size, name
    if path == "pairs":
        assert "nDCG@10" in done.stdout
