"""An export goes to a hub whole, and the token nowhere else."""

import json
from pathlib import Path

import pytest

from tests.hub import TOKEN, Hub, serving_hub
from tests.launching import run
from tests.unit.trainer.exporting.test_export_folder import write_checkpoint
from trainer.export import main
from trainer.exporting import export_folder
from trainer.reporting.model_card import _head

PUSH = """
import sys
from pathlib import Path
from data_prep.common.errors import guarded
from trainer.exporting.hub import Hub
sys.exit(guarded(lambda: print("pushed to", Hub(sys.argv[1]).push(Path(sys.argv[2])))))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """The names decide how a file travels."""
    made = tmp_path / "exported"
    (made / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "1_Pooling/config.json"):
        (made / name).write_text(f"{{}} {name}")
    (made / "README.md").write_text(_head("owner/base"))
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return made


def command(*argv: str, hub: Hub, token: str = TOKEN):
    """In a process of its own, as its user runs it: huggingface_hub reads its variables when it is imported."""
    variables = {"HF_ENDPOINT": hub.address, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return run(*argv, timeout=480, real=True, **variables)


def push(hub: Hub, folder: Path, token: str):
    return command("-c", PUSH, hub.repository, str(folder), hub=hub, token=token)


def test_a_folder_is_pushed_whole_and_the_token_is_never_shown(folder):
    with serving_hub("someone/model") as hub:
        done = push(hub, folder, TOKEN)
        assert done.returncode == 0, done.both
        assert f"pushed to {hub.address}/someone/model/commit/c0ffee" in done.stdout
        here = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        assert hub.files == {name: path.read_bytes() for name, path in here.items()}
        assert hub.created["visibility"] == "private" and hub.created["name"] == "model"
        assert [call for call in hub.requests if call[0] == "PUT"], "weights go by git-lfs"
        assert TOKEN not in done.both

        wrong = push(hub, folder, "hf_another_secret")
        assert wrong.returncode == 1 and "the hub did not take it" in wrong.stderr
        assert "hf_another_secret" not in wrong.both and "Traceback" not in wrong.both


def test_a_push_without_token_or_name_is_refused_before_any_work(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main([str(folder), "--output", str(tmp_path / "out"), "--push", "model"]) == 2
    said = capsys.readouterr().err
    assert "is not of the form OWNER/NAME" in said and "HF_TOKEN is not set" in said
    assert not (tmp_path / "out").exists()


def test_a_run_is_exported_and_pushed_in_one_command(tmp_path, tiny_bert):
    final, out = write_checkpoint(tmp_path / "run" / "final", tiny_bert), tmp_path / "out"
    with serving_hub("someone/model") as hub:
        done = command("-m", "trainer.export", str(final), "--output", str(out), "--push", hub.repository, hub=hub)
        assert done.returncode == 0, done.both
        assert (
            f"{out}: exported" in done.stdout and f"pushed to {hub.address}/someone/model/commit/c0ffee" in done.stdout
        )
    assert hub.files.keys() >= {
        "model.safetensors",
        "tokenizer.json",
        "1_Pooling/config.json",
        "README.md",
        "probe.json",
    }
    assert hub.files == {name: (out / name).read_bytes() for name in hub.files}
    assert not [name for name, data in hub.files.items() if str(tiny_bert).encode() in data], "a path of this machine"


def test_an_adapter_of_a_folder_here_is_pushed_under_the_id_of_its_base_or_not_at_all(
    tmp_path, tiny_bert, monkeypatch, capsys
):
    final, out = write_checkpoint(tmp_path / "run" / "final", tiny_bert, finetune="lora"), tmp_path / "out"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pushed = []
    monkeypatch.setattr("trainer.exporting.hub.Hub.push", lambda hub, folder: pushed.append(folder))
    argv = [str(final), "--output", str(out), "--push", "someone/adapter"]
    for base in ([], ["--base", str(tiny_bert)]):
        assert main([*argv, *base]) == 2
        said = capsys.readouterr().err
        assert f"an adapter of {tiny_bert}, a folder of this machine; give --base HUB_ID" in said and "--merge" in said
        assert not out.exists() and not pushed
    monkeypatch.setattr(export_folder, "fetch", lambda path, with_code=False: str(tiny_bert))  # what the hub would give
    monkeypatch.setattr(export_folder, "prove", lambda *args: [])
    assert main([*argv, "--base", "someone/base"]) == 0
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/base"
    assert pushed == [out]
