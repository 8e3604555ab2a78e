"""A streaming replica of the tests' server, made by PostgreSQL's own ``pg_basebackup``."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import psycopg

PATIENCE_SECONDS = 60


class Replica:
    """A server that repeats what another one writes."""

    def __init__(self, server_url: str) -> None:
        self._primary = server_url
        cluster = Path(parse_qs(urlsplit(server_url).query)["host"][0])
        server = (cluster / "postmaster.pid").read_text().split("\n")[0]
        self._programs = Path(f"/proc/{server}/exe").readlink().parent
        owner = cluster.stat()
        self._as_owner: Any = {"user": owner.st_uid, "group": owner.st_gid} if os.getuid() == 0 else {}
        self._folder = Path(tempfile.mkdtemp(prefix="embedding-studio-replica-"))
        if os.getuid() == 0:
            os.chown(self._folder, owner.st_uid, owner.st_gid)
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        copy = [str(self._programs / "pg_basebackup"), "--checkpoint=fast", "--wal-method=stream", "-R"]
        copy += ["-D", str(self._data), "-d", server_url]
        subprocess.run(copy, check=True, cwd="/", **self._as_owner)
        self.start()

    def url_of(self, database_url: str) -> str:
        """Return the address of the replica of a database."""
        query = f"host={quote(str(self._folder), safe='')}&port=5432"
        return urlsplit(database_url)._replace(query=query).geturl()

    def start(self) -> None:
        command = [str(self._programs / "postgres"), "-D", str(self._data)]
        command += ["-c", f"unix_socket_directories={self._folder}"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self._as_owner)
        self._until(lambda: self._asked("SELECT pg_is_in_recovery()"))

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # which ends who is connected, too
            self._process.wait(timeout=PATIENCE_SECONDS)
            self._process = None

    def pause(self) -> None:
        """Let it know nothing newer than what it knows."""
        self._asked("SELECT pg_wal_replay_pause()")
        self._until(lambda: self._asked("SELECT pg_get_wal_replay_pause_state() = 'paused'"))

    def go_on(self) -> None:
        self._asked("SELECT pg_wal_replay_resume()")

    def lag(self, seconds: float) -> None:
        """Let it know what others know so much later."""
        self._asked(f"ALTER SYSTEM SET recovery_min_apply_delay = {round(1000 * seconds)}")
        self._asked("SELECT pg_reload_conf()")

    def catch_up(self) -> None:
        """Return when it knows all that was written before the call."""
        with psycopg.connect(self._primary) as primary:
            [(place,)] = primary.execute("SELECT pg_current_wal_flush_lsn()::text")
        self._until(lambda: self._asked(f"SELECT pg_last_wal_replay_lsn() >= '{place}'"))

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _asked(self, statement: str) -> Any:
        with psycopg.connect(self.url_of(self._primary), autocommit=True) as connection:
            rows = connection.execute(statement)
            return rows.fetchall()[0][0] if rows.description else None

    def _until(self, holds: Any) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if holds():
                    return
            except psycopg.OperationalError:
                pass  # it starts
            assert time.monotonic() < deadline, (self._folder / "server.log").read_text()
            time.sleep(0.02)
