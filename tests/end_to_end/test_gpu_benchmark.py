"""The command for a GPU runs through all its phases on a CPU, with tiny models."""

import json

from tests.launching import ROOT, run

COMMAND = ("-m", "benchmarks.gpu", "--dry-run", "--minutes", "60", "--output")


def test_every_phase_of_the_gpu_benchmark_runs_without_a_gpu(tmp_path):
    report = tmp_path / "gpu.json"
    done = run(*COMMAND, str(report), cwd=ROOT, real=True, timeout=600)
    found = json.loads(report.read_text())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(found) == 13 and not [name for name, phase in found.items() if "error" in phase or "left_out" in phase]
    assert max(value for name, value in found["gradients"].items() if "fp32" in name or "loss" in name) < 1e-5
    assert found["engines"]["cpu"]["exit_code"] == 0 and found["plan"]["exit_code"] == 0
    assert found["resume"]["same_bytes"] and all(found["deterministic"].values())
    assert found["eight_bits"]["8 bits"] < 1e-6
