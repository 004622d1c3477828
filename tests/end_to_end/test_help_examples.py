"""The examples that `--help` of data_prep and launch ends with, run as they are, one after the other."""

import json
import shlex
from dataclasses import replace

import pytest

from data_prep.__main__ import main
from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_store
from launch.__main__ import main as launch
from tests import tiny
from tests.language_model import KEY, MODEL, LanguageModel, chunk, serving

CLICKS = "query,item,position,count,impressions\n" + "".join(
    f"{query},{item},{place},{8 - 2 * place},20\n"
    for query, items in {"kitchen tap": "ABC", "chimney pipe": "BCD", "garden hose": "CDA"}.items()
    for place, item in enumerate(items, 1)
)
PRODUCTS = "id,text\nA,Kitchen tap with a spray\nB,Chimney pipe 115 mm\nC,Garden hose 20 m\nD,Pipe clamp\n"


def examples(command: str, capsys, package: str = "data_prep") -> list[list[str]]:
    with pytest.raises(SystemExit) as stop:
        {"data_prep": main, "launch": launch}[package]([command, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.strip().splitlines()
    shown = [line.strip() for line in lines[lines.index("example:") + 1 :]]
    assert shown and all(line.startswith(f"python -m {package} {command} ") for line in shown), shown
    return [shlex.split(line)[3:] for line in shown]


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_bert):
    """A folder with what the examples name but no other command makes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clicks.csv").write_text(CLICKS)
    (tmp_path / "products.csv").write_text(PRODUCTS)
    for name in ("MODEL", "MODEL_FOLDER"):
        (tmp_path / name).symlink_to(tiny_bert)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("EMBEDFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    chunks = [replace(chunk(n), metadata={"name": f"valve {n}", "module": f"part {n % 8}"}) for n in range(40)]
    with open_store(StoreConfig("chroma", "docs", path=tmp_path / "chroma"), create=True) as store:
        store.create("docs", None, {}).upsert(chunks)
    return tmp_path


def test_every_example_of_help_runs(here, capsys):
    made = ["sample", "generate", "crawl", "logs", "compose", "augment", "mine", "shard", "inspect"]
    with serving(LanguageModel()) as url:
        given = {"http://localhost:8000/v1": url, "M": MODEL}
        for command in made:
            for argv in examples(command, capsys):
                argv = [given.get(part, part) for part in argv]
                if command == "sample":
                    argv += ["--limit", "120"]
                assert main(argv) == 0, (argv, capsys.readouterr().err)
    assert list((here / "cache" / "answers").glob("*.jsonl")) and not (here / "user" / "embedfleet").exists()
    for name in ("pairs.jsonl", "glossary.csv", "scored.jsonl", "records.jsonl", "augmented.jsonl", "mined.jsonl"):
        assert (here / name).stat().st_size, name
    assert (here / "shards" / "manifest.json").is_file() and (here / "report.html").is_file()


def test_every_example_of_the_launcher_that_starts_no_ranks_runs(here, capsys):
    """`launch run` as a dry run; doctor starts ranks (test_doctor.py)."""
    pytest.importorskip("deepspeed")
    tiny.shards(here / "shards", 40)
    for command in ("init", "plan", "slurm", "run"):
        for argv in examples(command, capsys, "launch"):
            argv += ["--dry-run"] if command == "run" else []
            assert launch(argv) == 0, (argv, capsys.readouterr().err)
            if command == "init":  # for the GPUs of its example
                values = {"output_dir": "out", "model": {"path": "MODEL"}, "data": {"train": "shards"}}
                (here / "run.yaml").write_text(json.dumps(values | {"train": {"batch_size": 16}}))
    assert "#SBATCH --nodes=2" in (here / "F.sbatch").read_text()
