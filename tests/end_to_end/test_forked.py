"""Forked commands behave as started ones: what the other tests rest on."""

import signal
import subprocess

import pytest

from tests import forked
from tests.launching import environment, run

SCRIPT = """
import atexit, json, os, sys, threading
atexit.register(lambda: print("at the end"))
last = threading.Event()
threading.Thread(target=lambda: last.wait() and print("a thread")).start()
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("ONLY_HERE"), "RANK" in os.environ, __name__]))
print("an error", file=sys.stderr)
last.set()
{end}
"""
ENDS = {"pass": 0, "sys.exit(7)": 7, "sys.exit('a reason')": 1, "raise ValueError('a bug')": 1}


@pytest.mark.parametrize("end", ENDS)
def test_a_script_ends_as_under_an_interpreter(tmp_path, monkeypatch, end):
    monkeypatch.setenv("RANK", "3")
    (tmp_path / "script.py").write_text(SCRIPT.format(end=end))
    argv = [str(tmp_path / "script.py"), "one", "two"]
    here, real = (start(*argv, cwd=tmp_path, ONLY_HERE="yes") for start in (forked.run, run))
    assert here.returncode == real.returncode == ENDS[end]
    assert here.stdout == real.stdout and '"yes", false, "__main__"' in here.stdout
    assert here.stderr.splitlines()[0] == "an error" and here.stderr.splitlines()[-1] == real.stderr.splitlines()[-1]


def test_a_command_prints_what_the_real_one_prints():
    for words in ("trainer --help", "data_prep nothing", "launch doctor --nnodes 2"):
        argv = ["-m", *words.split()]
        here, real = run(*argv, COLUMNS="80"), run(*argv, real=True, COLUMNS="80")
        assert (here.returncode, here.stdout, here.stderr) == (real.returncode, real.stdout, real.stderr)


def test_a_signal_reaches_it_and_a_limit_ends_it(tmp_path):
    (tmp_path / "waits.py").write_text("import sys, time\nprint('ready', file=sys.stderr)\ntime.sleep(600)\n")
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, -signal.SIGTERM)):
        process = forked.start([str(tmp_path / "waits.py")])
        process.wait_until_it_says("ready")
        process.send_signal(number)
        assert process.wait(30) == code
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run(str(tmp_path / "waits.py"), timeout=0.2)


def test_a_rank_that_fails_ends_the_others(tmp_path):
    (tmp_path / "rank.py").write_text(
        "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(5)\ntime.sleep(600)\n"
    )
    assert forked.run_ranks(2, str(tmp_path / "rank.py"), timeout=60).returncode == 5


def test_a_shell_types_python_and_gets_either(tmp_path):
    env = environment(PATH=forked.path_for_a_shell(tmp_path / "bin"))
    typed = "python -m data_prep nothing; echo $?; python -c 'import sys; print(sys.argv)' x; python -V | wc -l"
    done = subprocess.run(["bash", "-c", typed], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "2\n['-c', 'x']\n1\n" and "invalid choice: 'nothing'" in done.stderr
