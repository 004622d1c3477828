"""The process that tests/forked.py forks commands from: it has imported everything, and does nothing else.

- It imports only. Threads and warm caches of a library would not survive a fork whole.
- A child replaces its environment, folder, import path and output before the command sees any of them.
- What a child starts with sys.executable is forked as well: that is forked.TYPED, see forked.Server.
- It dies with the test process: then its channel closes, and it kills what is left of its children.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = [
    "transformers.models.bert.modeling_bert",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # which every engine looks for
    "torch.utils.tensorboard",
    "torch._dynamo",  # which an optimizer imports with its first step
    "peft",
    "sentence_transformers",
    "datasets",
    "chromadb",
    "openai",
]
PACKAGES = ("data_prep", "launch", "trainer")
LEFT_OUT = ("__main__", "dry_run_pages")  # of the product
POLL = 0.01  # seconds between two looks at a process that is about to end


def main(channel: socket.socket, address: str) -> None:
    """Answers one request a line on its channel and one a connection at its address, until the channel closes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(8)
    lines = channel.makefile("rw")
    lines.write("listening\n")
    lines.flush()
    preload()
    own = sys.path[1:]
    codes: dict[int, int | None] = {}
    typed: dict[int, tuple[socket.socket, int]] = {}  # by pid: who waits for it, and a pipe that closes with its end
    ending: dict[int, socket.socket] = {}  # whose pipe has closed: the process is about to end, or has become another
    while True:
        for pid in [pid for pid in ending if poll(pid, codes) is not None]:
            tell(ending[pid], codes[pid])
            ending.pop(pid).close()
        waiting = {at: pid for pid, pair in typed.items() for at in pair}
        ready = select.select([channel, listener, *waiting], [], [], POLL if ending else None)[0]
        for pid in {waiting[at] for at in ready if at in waiting}:
            ending[pid], pipe = typed.pop(pid)
            if pipe not in ready:  # who waited is gone
                os.kill(pid, signal.SIGKILL)
            os.close(pipe)
        if listener in ready:
            request = accept(listener)
        elif channel not in ready:
            continue
        elif line := lines.readline():
            request = json.loads(line)
        else:
            return end(codes)
        pipe, open_until_it_ends = os.pipe() if "typed" in request else (0, 0)
        answer = poll(request["poll"], codes) if "poll" in request else os.fork()
        if answer == 0 and "poll" not in request:
            break
        codes |= {} if "poll" in request else {answer: None}
        if "typed" in request:
            for number in request["streams"]:
                os.close(number)
            os.close(open_until_it_ends)
            tell(request["typed"], answer)
            typed[answer] = request["typed"], pipe
        else:
            lines.write(f"{json.dumps(answer)}\n")
            lines.flush()
    for one in (lines, channel, listener, *(connection for connection, _ in typed.values()), *ending.values()):
        one.close()
    if "typed" in request:
        request["typed"].close()
    sys.executable = str(Path(address).with_name("python"))
    run(request, own)


def accept(listener: socket.socket) -> dict:
    """A command that was started through forked.TYPED: it brings its own input and output."""
    connection, _ = listener.accept()
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("r") as lines:
        return json.loads(lines.readline()) | {"typed": connection, "streams": streams}


def tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(f"{number}\n".encode())


def preload() -> None:
    for name in [*LIBRARIES, *product(), "tests.multiprocess.worker"]:
        with contextlib.suppress(ImportError):  # an extra that is not installed
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children would copy what a collection touches


def product() -> list[str]:
    """Every module of the three packages but those that are commands only."""
    files = [path.relative_to(ROOT).with_suffix("") for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return [".".join(path.parts).removesuffix(".__init__") for path in sorted(files) if not {*path.parts} & {*LEFT_OUT}]


def poll(pid: int, codes: dict[int, int | None]) -> int | None:
    """The exit code of a child as subprocess has it, None while it runs."""
    if codes[pid] is None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes[pid]


def end(codes: dict[int, int | None]) -> None:
    """Nothing outlives the tests."""
    for pid in codes:
        if poll(pid, codes) is None:
            os.kill(pid, signal.SIGKILL)


def run(request: dict, path: list[str]) -> None:
    """In the child: becomes the command and ends the process with its exit code."""
    code = 1
    try:
        become(request, path)
        execute(request["argv"])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if code and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        threading._shutdown()  # as an interpreter ends: first other threads, then what was registered
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def become(request: dict, path: list[str]) -> None:
    """A session, environment, folder, import path and output of its own."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for number, file in enumerate(request.get("streams") or streams(request)):
        os.dup2(file, number)
        os.close(file)
    given = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    first = request["argv"][0]
    sys.path[:] = [request["cwd"] if first == "-m" else str(Path(first).parent), *given, *path]
    importlib.invalidate_caches()


def streams(request: dict) -> list[int]:
    names = (os.devnull, request["out"], request["err"])
    return [os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600) for name in names]


def execute(argv: list[str]) -> None:
    """`-m module …`, `script.py …`, or `module:function` with its arguments as one JSON list."""
    first, *rest = argv
    if first == "-m":
        name, *rest = rest
        if importlib.util.find_spec(name).submodule_search_locations:
            name += ".__main__"
        sys.modules.pop(name, None)  # an interpreter runs it anew, under another name
        sys.argv = [name, *rest]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif first.endswith(".py"):
        sys.argv = argv
        runpy.run_path(first, run_name="__main__")
    else:
        module, _, function = first.partition(":")
        getattr(importlib.import_module(module), function)(*json.loads(rest[0]))


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
