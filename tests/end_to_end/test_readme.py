"""README.md, typed from top to bottom: its commands run as they stand, on a tiny model and forty chunks.

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
from tests.end_to_end.test_help_examples import CLICKS
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


def commands() -> str:
    """The shell's part of README, without the commands of ELSEWHERE."""
    text = "\n".join(re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return "\n".join(line for line in lines if not line.startswith(ELSEWHERE) and not ASKING.match(line))


@pytest.fixture
def here(tmp_path, tiny_bert):
    """Folder of the reader: models, pairs in their own files, a collection, a loss."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("MODEL", "MODEL_FOLDER", "MODEL_FOLDER_OR_HUB_ID"):
        (folder / name).symlink_to(tiny_bert)
    rows = tiny.rows(160)
    pairs = [{"question": row["query"], "answer": row["positives"][0]} for row in rows]
    scored = [[pair["question"], pair["answer"], (i % 5) / 4] for i, pair in enumerate(pairs)]
    taught = [row | {"negatives": ["w1 w2"], "teacher_scores": [0.9, 0.1]} for row in rows]
    for name, lines in (("pairs", pairs), ("scored", scored), ("taught", taught)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "clicks.csv").write_text(CLICKS, encoding="utf-8")
    document = (ROOT / "docs" / "run_file.md").read_text(encoding="utf-8")
    (own,) = (block for block in re.findall(r"^```python\n(.*?)^```", document, re.M | re.S) if "def triplet" in block)
    (folder / "my_losses.py").write_text(own, encoding="utf-8")
    with open_store(StoreConfig("chroma", "NAME", path=folder / "CHROMA_FOLDER"), create=True) as store:
        chunks = [replace(chunk(n), metadata={}) for n in range(40)]
        vectors = TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu").passages([chunk.text for chunk in chunks])
        rows = [replace(chunk, embedding=vector) for chunk, vector in zip(chunks, vectors)]
        store.create("NAME", vectors.shape[1], {}).upsert(rows)
    return folder


def test_the_commands_of_readme_run_as_they_stand(here, tmp_path):
    text = commands()
    assert text.count("python -m trainer ") >= 9 and text.count("python -m") >= 25, text
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", text],
        cwd=here,
        env=environment(PATH=path_for_a_shell(tmp_path / "bin"), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    for name in ("first", "flags", "lora", "qlora", "scored", "taught", "mix", "own"):
        assert (here / "runs" / name / "final" / "modules.json").is_file(), name
    for name in (
        "merged/model.safetensors",
        "adapted/query_adapter.json",
        "exported/probe.json",
        "terms.csv",
        "augmented.jsonl",
        "run.sbatch",
    ):
        assert (here / name).stat().st_size, name
    assert "nDCG@10" in done.stdout
