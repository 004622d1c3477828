"""docs/how_to/catalogue.md, typed into an empty folder: CSV -> records -> variants -> shards -> a run with cosent."""

import json
import re
import subprocess

from tests.forked import path_for_a_shell
from tests.launching import ROOT, environment


def test_every_command_of_the_catalogue_document_runs(tmp_path, minilm):
    text = (ROOT / "docs/how_to/catalogue.md").read_text(encoding="utf-8")
    commands = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S))
    assert commands.count("python -m") == 7
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=here,
        env=environment(PATH=path_for_a_shell(tmp_path / "bin"), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--balance category: at most 6 rows of each of 3 values" in done.stderr
    rows = [json.loads(line) for line in (here / "augmented.jsonl").read_text(encoding="utf-8").splitlines()]
    variants = [row for row in rows if "parent" in row["metadata"]]
    assert (len(rows) - len(variants), len(variants)) == (18, 54)
    parents = {row["id"]: row for row in rows}
    for row in variants:
        parent = parents[row["metadata"]["parent"]]
        assert (row["positives"], row["score"]) == (parent["positives"], parent["score"] * 0.95)
    assert (here / "runs" / "catalogue" / "final" / "model.safetensors").is_file()
    assert "nDCG@10" in done.stdout
    for search in ("kichen tap", "sauna stov"):
        table = done.stdout.split(f"{search} ", 1)[1].split("└")[0]
        assert "base" in table and "tuned" in table
        ranks = re.findall(r"│ (\d+) *│ cosine -?\d\.\d{3} .*│ cosine -?\d\.\d{3} ", table)
        assert ranks == ["1", "2", "3"], table
