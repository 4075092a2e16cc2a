"""The command `eab` without the half second that Python needs to import it, for tests that type it hundreds of times.

A process that has everything imported forks one for each command; the command that is typed hands it its arguments,
folder, environment and open files, passes signals on, and ends with its status. `test_install` types the installed one.

    python zygote.py serve SOCKET      and, as it is typed:     python -I -S zygote.py SOCKET ARGUMENT...
"""

import json
import os
import signal
import socket
import struct
import sys
from contextlib import suppress

FILES = 3  # standard input, output and error
LONG = struct.Struct("<q")


def typed(path: str, arguments: list[str]) -> int:
    """As it is typed: hands everything over, and answers the status."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        here = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109 - no pathlib
        order = json.dumps(here).encode()
        socket.send_fds(connection, [LONG.pack(len(order))], list(range(FILES)))
        connection.sendall(order)
        (process,) = LONG.unpack(connection.recv(LONG.size, socket.MSG_WAITALL))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: os.kill(process, number))
        status = int(LONG.unpack(connection.recv(LONG.size, socket.MSG_WAITALL))[0])
    if status < 0:  # killed, as this one is then
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def serve(path: str) -> None:
    """Forks a command for each connection, and one that waits for it."""
    from enhanced_agent_bus import open_bus  # noqa: F401, PLC0415 - what this process is for
    from enhanced_agent_bus.authoring import backtest  # noqa: F401, PLC0415
    from enhanced_agent_bus.cli import app  # noqa: PLC0415
    from enhanced_agent_bus.cli.reading import export, messages, recorded  # noqa: F401, PLC0415

    for name in app.ALL:
        app.commands((name,))
    app.commands()

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        os.write(1, b"ready\n")
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os._exit(_wait_for_one(connection))
            connection.close()


def _wait_for_one(connection: socket.socket) -> int:
    length, files, _, _ = socket.recv_fds(connection, LONG.size, FILES)
    order = json.loads(connection.recv(LONG.unpack(length)[0], socket.MSG_WAITALL))
    process = os.fork()
    if process == 0:
        connection.close()
        _run(order, files)
    for file in files:
        os.close(file)
    connection.sendall(LONG.pack(process))
    _, status = os.waitpid(process, 0)
    connection.sendall(LONG.pack(os.waitstatus_to_exitcode(status)))
    return 0


def _run(order: dict[str, object], files: list[int]) -> None:
    """The command, in a process that looks as if it had been started for it."""
    from enhanced_agent_bus.cli import main  # noqa: PLC0415

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(str(order["folder"]))
    os.environ.clear()
    os.environ.update(order["environment"])  # type: ignore[call-overload]
    sys.argv = ["eab", *order["arguments"]]  # type: ignore[misc]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    status = 1
    try:
        main()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(typed(sys.argv[1], sys.argv[2:]))
