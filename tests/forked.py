"""Commands of the product without an interpreter's start: processes forked from one that has imported everything.

- `start` gives a process like subprocess.Popen, with a real pid for signals, a session and output files of its own.
- `ranks` starts a process group as torchrun would, without torchrun.
- What a forked command starts by itself (a launcher, its ranks, a fresh load of a folder) is forked too.
- Real starts stay where they are what a test is about: `tests.launching.run(..., real=True)`.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

from tests.launching import ROOT, environment, free_port

PRODUCT = ("data_prep", "launch", "trainer")
POLL = 0.01  # seconds between two looks at a process
GRACE = 30.0  # seconds that ranks have to end after another failed, as under torchrun


class Server:
    """The preloaded process of this test process, and the channel to it."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        # what every test has; whatever a library reads while it is imported is read with it
        env = environment(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
        self.folder = tempfile.TemporaryDirectory(prefix="embedfleet-forked-")
        self.address = f"{self.folder.name}/socket"
        self.write_python(Path(self.folder.name))
        command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno()), self.address]
        fds = {"pass_fds": [theirs.fileno()], "stdin": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True, **fds)
        theirs.close()
        self.lines, self.lock = ours.makefile("rw"), threading.Lock()
        assert self.lines.readline(), "the fork server did not start"  # what connects from now on is answered
        self.count = 0
        atexit.register(self.close, ours)

    def write_python(self, folder: Path) -> None:
        values = {"python": sys.executable, "packages": PRODUCT, "launchers": LAUNCHERS, "address": self.address}
        (folder / "python").write_text(TYPED.format(**values))
        (folder / "python").chmod(0o755)
        (folder / "ninja").symlink_to(Path(sys.executable).with_name("ninja"))  # which DeepSpeed looks for beside it

    def ask(self, **request):
        with self.lock:
            self.lines.write(f"{json.dumps(request)}\n")
            self.lines.flush()
            answer = self.lines.readline()
        assert answer, "the fork server has died"
        return json.loads(answer)

    def files(self) -> tuple[Path, Path]:
        with self.lock:
            self.count += 1
            return tuple(Path(self.folder.name, f"{self.count}.{name}") for name in ("out", "err"))

    def close(self, channel: socket.socket) -> None:
        self.lines.close()
        channel.close()
        self.process.wait()
        self.folder.cleanup()


@cache
def server() -> Server:
    """Started with the first command."""
    return Server()


# `python` for a shell, and for what a forked command starts itself: commands that need not start an interpreter are
# forked, all else is the real one. It passes signals on, and ends as the forked one does.
TYPED = """#!{python} -IS
import json, os, signal, socket, sys
argv = [word for word in sys.argv[1:] if word != "-u"] if sys.argv[1:2] == ["-u"] else sys.argv[1:]
if argv[:1] == ["-m"] and (argv[1].partition(".")[0] in {packages} or argv[1] in {launchers}):
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect({address!r})
        socket.send_fds(channel, [b"x"], [0, 1, 2])
        channel.sendall(json.dumps(dict(argv=argv, env=dict(os.environ), cwd=os.getcwd())).encode() + b"\\n")
        lines = channel.makefile("r")
        pid = int(lines.readline())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: os.kill(pid, number))
        code = int(lines.readline() or 1)
        if code < 0:
            signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
            os.kill(os.getpid(), -code)
        os._exit(code)
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""
LAUNCHERS = ("accelerate.commands.launch", "torch.distributed.run")


def python() -> str:
    """An executable in place of sys.executable: what it starts of the product and of LAUNCHERS is forked."""
    return f"{server().folder.name}/python"


def path_for_a_shell(folder: Path) -> str:
    """A PATH on which `python -m data_prep …` and `python -m trainer…` are forked. folder: a new one."""
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(python())
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


class Forked:
    """A running command, as subprocess.Popen has it; what it writes goes to files that can be read meanwhile."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: Path | None, merged: bool):
        self.args, self.returncode = argv, None
        self.out, self.err = server().files()
        self.err = self.out if merged else self.err
        where = {"out": str(self.out), "err": str(self.err), "cwd": str(cwd or Path.cwd())}
        self.pid: int = server().ask(argv=argv, env=env, **where)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = server().ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + timeout if timeout else None
        while self.poll() is None:
            if end and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout, self.stdout, self.stderr)
            time.sleep(POLL)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.stdout, self.stderr

    def wait_until_it_says(self, text: str, seconds: float = 60) -> None:
        """text: of stderr."""
        end = time.monotonic() + seconds
        while text not in self.stderr:
            assert self.poll() is None and time.monotonic() < end, self.stderr
            time.sleep(POLL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @property
    def stdout(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""

    @property
    def stderr(self) -> str:
        return self.err.read_text(errors="replace") if self.err.exists() else ""


def start(argv: list[str], cwd: Path | None = None, merged: bool = False, **extra: str) -> Forked:
    """argv: `-m module …`, `script.py …` or `module:function`, see fork_server.execute. merged: stderr into stdout."""
    return Forked([str(part) for part in argv], environment(OMP_NUM_THREADS="1") | extra, cwd, merged)


def run(*argv: str, timeout: float = 240, cwd: Path | None = None, **extra: str) -> subprocess.CompletedProcess:
    """The command's end, as tests.launching.run gives it."""
    return _ended([start([*argv], cwd, **extra)], timeout)


def ranks(world: int, argv: list[str], cwd: Path | None = None, merged: bool = False, **extra: str) -> list[Forked]:
    """`world` ranks of one group, with the variables that torchrun gives them."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    group |= {"LOCAL_WORLD_SIZE": str(world)}
    return [start(argv, cwd, merged, **group, RANK=str(rank), LOCAL_RANK=str(rank), **extra) for rank in range(world)]


def run_ranks(
    world: int, *argv: str, timeout: float = 240, cwd: Path | None = None, **extra: str
) -> subprocess.CompletedProcess:
    """The end of a group; output in the order of ranks. Once one fails the others are asked to stop, then killed."""
    return _ended(ranks(world, [*argv], cwd, **extra), timeout)


def _ended(group: list[Forked], timeout: float) -> subprocess.CompletedProcess:
    code = wait_for_all(group, timeout)
    streams = ["".join(getattr(one, name) for one in group) for name in ("stdout", "stderr")]
    done = subprocess.CompletedProcess(group[0].args, code, *streams)
    done.both = done.stdout + done.stderr
    return done


def wait_for_all(group: list[Forked], timeout: float, grace: float = GRACE) -> int:
    """0 once every rank ended well, else the code of the first that failed, when all have ended.

    grace: seconds that the others then have to end by themselves.
    """
    end, code = time.monotonic() + timeout, 0
    try:
        while running := [one for one in group if one.poll() is None]:
            failed = [one.returncode for one in group if one.returncode]
            if failed and not code:
                code, end = failed[0], time.monotonic() + grace
                for one in running:
                    one.terminate()
            if time.monotonic() > end:
                if code:
                    break
                said = "\n".join(one.stderr[-2000:] for one in group)
                raise subprocess.TimeoutExpired(group[0].args, timeout, said)
            time.sleep(POLL)
    finally:
        for one in group:
            one.kill()
            one.wait()
    return code or next((one.returncode for one in group if one.returncode), 0)
