"""Commands of the program, run as processes of their own."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

PROGRAM = str(Path(sys.executable).with_name("embedding-studio"))
KEPT = {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH"}


def environment_of(database_url):
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    return kept | {"DATABASE_URL": database_url, "PORT": "0"}


@contextmanager
def running(environment, *arguments, ready: str):
    """Start a command, and go on when it has said on stderr that it is ready; yield what it said there."""
    process = subprocess.Popen(
        [PROGRAM, *arguments], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        for line in process.stderr:
            if ready in line:
                yield process, line
                break
        else:
            raise AssertionError(f"{arguments} ended with {process.wait()} before it was ready")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.stderr.close()
        process.wait(timeout=60)


def command(environment, *arguments, stdin=None):
    return subprocess.run(
        [PROGRAM, *arguments], env=environment, input=stdin, capture_output=True, text=True, check=False
    )


def url_in(line: str) -> str:
    return next(word for word in line.split() if word.startswith("http://"))


def eventually(seconds, condition):
    deadline = time.monotonic() + seconds
    while not (seen := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return seen
