"""The command for a GPU runs through all its phases on a CPU, with tiny models."""

import json

from benchmarks.gpu import __main__ as benchmark
from benchmarks.gpu import commands
from tests import forked


def test_every_phase_of_the_gpu_benchmark_runs_without_a_gpu(tmp_path, monkeypatch, capsys):
    """Its commands are forked: what they print is what the benchmark reads."""
    monkeypatch.setattr(commands, "start", lambda *argv: forked.start(["-m", *argv], cwd=commands.ROOT))
    report = tmp_path / "gpu.json"
    code = benchmark.main(["--dry-run", "--minutes", "60", "--output", str(report)])
    found = json.loads(report.read_text())
    assert code == 0, capsys.readouterr().out[-2000:]
    assert len(found) == 13 and not [name for name, phase in found.items() if "error" in phase or "left_out" in phase]
    assert max(value for name, value in found["gradients"].items() if "fp32" in name or "loss" in name) < 1e-5
    assert found["engines"]["cpu"]["exit_code"] == 0 and found["plan"]["exit_code"] == 0
    assert found["resume"]["same_bytes"] and all(found["deterministic"].values())
    assert found["eight_bits"]["8 bits"] < 1e-6
