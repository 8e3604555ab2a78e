"""The embedded database server, with real processes, real signals, and as root also another user's.

No server outlives its test: the fixture ``folder`` looks after it.
"""

import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from embedding_studio.errors import StorageError, StorageUnavailableError, UnsupportedDatabaseError
from embedding_studio.storage.embedded import server as embedded
from embedding_studio.storage.embedded.processor import require_supported_processor
from embedding_studio.storage.embedded.server import EmbeddedServer

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel as only Linux is asked")

CLIENT = """
import sys
from pathlib import Path
from embedding_studio.storage.embedded.server import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]))
print(server.start(), flush=True)
sys.stdin.readline()
server.stop()
"""

AS_NOBODY = f"""
import os, pwd
import embedding_studio.storage.embedded.server, psycopg  # the interpreter may be hidden from that user
try:
    psycopg.connect("host=/nowhere")
except psycopg.OperationalError:
    pass
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
{CLIENT}"""


# In memory where there is room: to sync a server's files takes longer than all else here.
MEMORY = Path("/dev/shm")  # noqa: S108, the folders in it are made by mkdtemp
PLACE = MEMORY if MEMORY.exists() and shutil.disk_usage(MEMORY).free > 2**30 else None


@contextmanager
def open_folder(place=PLACE):
    """A folder that other users can enter, unlike pytest's own; short, as a socket's path must be."""
    path = Path(tempfile.mkdtemp(prefix="es-", dir=place))
    path.chmod(0o755)
    try:
        yield path
    finally:
        left_over = postmasters(path)
        for process_id in left_over:
            os.kill(process_id, signal.SIGQUIT)
        shutil.rmtree(path)
    assert left_over == []


@pytest.fixture
def folder():
    """A folder whose servers have to be gone when its test is over."""
    with open_folder() as path:
        yield path


@pytest.fixture(scope="module")
def template():
    """A data directory with an empty database; to copy it is faster than to make another."""
    with open_folder() as path:
        with EmbeddedServer(path / "data"):
            pass
        yield path / "data"


@pytest.fixture
def data_dir(folder, template):
    return copy_of(template, folder / "data")


def copy_of(template, path):
    subprocess.run(["cp", "-a", template, path], check=True)
    return path


@pytest.fixture
def client(folder):
    """A function that starts a process that uses the data directory until it reads a line."""
    processes = []

    def start(script, data_dir):
        process = subprocess.Popen(
            [sys.executable, "-c", script, data_dir],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def postmasters(folder):
    """The living servers whose data is below the folder."""
    found = []
    for pid_file in folder.rglob("postmaster.pid"):
        process_id = int(pid_file.read_text().split()[0])
        if "postgres" in embedded._command_line(process_id):
            found.append(process_id)
    return found


def leave(process):
    """Let a client stop its server and end."""
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def kill(process_id):
    """Kill a process and wait until nothing of it runs; it may stay as a zombie."""
    os.kill(process_id, signal.SIGKILL)
    while embedded._command_line(process_id):
        time.sleep(0.01)


def kill_postmaster(data_dir):
    kill(postmasters(data_dir)[0])


def write_row(url):
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (row int)")
        connection.execute("INSERT INTO kept VALUES (7)")


def rows(url):
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT row FROM kept").fetchall()


def ask(url, statement):
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchone()


def test_a_fresh_folder_becomes_a_database_with_pgvector(folder):
    with EmbeddedServer(folder / "new" / "data") as url, psycopg.connect(url) as connection:
        connection.execute("CREATE EXTENSION vector")
        distance = connection.execute("SELECT '[1,2]'::vector <-> '[4,6]'").fetchone()
        version = connection.execute(
            "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()

    assert distance == (5.0,)
    assert version == ("0.8.5",)


def test_the_database_is_as_promised(data_dir):
    with EmbeddedServer(data_dir) as url:
        names = ask(
            url,
            "SELECT current_database(), current_user, current_setting('server_encoding'), datlocprovider, "
            "datlocale, lower('ÄÖ'), 'É' ILIKE 'é' FROM pg_database WHERE datname = current_database()",
        )
        settings = {
            name: ask(url, f"SHOW {name}")[0]
            for name in ("fsync", "synchronous_commit", "listen_addresses", "jit", "shared_buffers")
        }
        shared_memory = ask(url, "SHOW dynamic_shared_memory_type")
        socket = data_dir / "postgres" / ".s.PGSQL.5432"
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (socket.parent, socket)]

    assert names == ("embedding_studio", "embedding_studio", "UTF8", "b", "C.UTF-8", "äö", True)
    assert settings == {
        "fsync": "on",
        "synchronous_commit": "on",
        "listen_addresses": "",
        "jit": "off",
        "shared_buffers": "256MB",
    }
    # With "posix" an HNSW build of 20,000 x 384 died of DiskFull in the 64 MB /dev/shm of a container.
    assert shared_memory == ("sysv" if sys.platform == "linux" else "posix",)
    assert modes == [0o700, 0o700]


def test_a_setting_that_a_user_altered_stays(data_dir):
    with EmbeddedServer(data_dir) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET work_mem = '31MB'")

    with EmbeddedServer(data_dir) as url:
        assert ask(url, "SHOW work_mem") == ("31MB",)


def test_only_its_account_can_reach_cluster_and_socket(data_dir):
    with EmbeddedServer(data_dir):
        socket = data_dir / "postgres" / ".s.PGSQL.5432"
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (data_dir / "postgres", socket)]

    assert modes == [0o700, 0o700]


def test_rows_are_there_after_a_stop_and_a_start(data_dir):
    with EmbeddedServer(data_dir) as url:
        write_row(url)

    assert postmasters(data_dir) == []
    with EmbeddedServer(data_dir) as url:
        assert rows(url) == [(7,)]


def test_the_last_of_several_objects_stops_the_server(data_dir):
    first, second = EmbeddedServer(data_dir), EmbeddedServer(data_dir)

    urls = first.start(), second.start()
    first.stop()
    first.stop()

    assert urls[0] == urls[1]
    assert ask(urls[1], "SELECT 3") == (3,)
    second.stop()
    assert postmasters(data_dir) == []


def test_a_start_that_is_repeated_needs_one_stop(data_dir):
    server = EmbeddedServer(data_dir)

    assert server.start() == server.start()

    server.stop()
    assert postmasters(data_dir) == []


def test_processes_that_start_together_share_one_server(folder, client):
    data_dir = folder / "new"
    processes = [client(CLIENT, data_dir) for _ in range(3)]

    urls = {process.stdout.readline().strip() for process in processes}

    assert len(urls) == 1
    assert ask(urls.pop(), "SELECT 3") == (3,)
    running = postmasters(data_dir)
    leave(processes[1])
    leave(processes[0])
    assert postmasters(data_dir) == running
    leave(processes[2])
    assert postmasters(data_dir) == []


def test_a_process_that_ends_without_a_stop_stops_its_server(data_dir):
    script = CLIENT.replace("sys.stdin.readline()\nserver.stop()", "")
    assert script != CLIENT

    subprocess.run([sys.executable, "-c", script, data_dir], check=True, stdout=subprocess.DEVNULL)

    assert (data_dir / "postgres" / "PG_VERSION").exists()
    assert postmasters(data_dir) == []


def test_the_end_of_a_fork_leaves_its_parents_server(data_dir):
    script = CLIENT.replace(
        "sys.stdin.readline()",
        """
import os
child = os.fork()
if child == 0:
    server.stop()
    sys.exit(0)
os.waitpid(child, 0)
print(sum(1 for _ in server.data_dir.glob("postgres/postmaster.pid")))
""",
    )

    done = subprocess.run(
        [sys.executable, "-c", script, data_dir], check=True, capture_output=True, text=True
    )

    assert done.stdout.splitlines()[1] == "1"
    assert postmasters(data_dir) == []


def test_a_server_left_by_a_killed_client_is_adopted_and_stopped_by_its_next_user(data_dir, client):
    killed = client(CLIENT, data_dir)
    write_row(killed.stdout.readline().strip())
    kill(killed.pid)
    left_over = postmasters(data_dir)

    server = EmbeddedServer(data_dir)
    url = server.start()

    assert len(left_over) == 1
    assert postmasters(data_dir) == left_over
    assert rows(url) == [(7,)]
    server.stop()
    assert postmasters(data_dir) == []


def test_a_killed_backend_loses_no_committed_row(data_dir):
    with EmbeddedServer(data_dir) as url:
        write_row(url)
        with psycopg.connect(url) as connection:
            kill(connection.info.backend_pid)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 3")
        with EmbeddedServer(data_dir) as again:
            assert rows(again) == [(7,)]


def test_a_killed_server_is_brought_back_with_every_committed_row(data_dir):
    with EmbeddedServer(data_dir) as url:
        write_row(url)
        kill_postmaster(data_dir)

        again = EmbeddedServer(data_dir)

        assert again.start() == url
        assert rows(url) == [(7,)]
        again.stop()
        assert rows(url) == [(7,)]


def test_a_second_start_of_the_same_object_brings_a_killed_server_back(data_dir):
    server = EmbeddedServer(data_dir)
    write_row(server.start())
    kill_postmaster(data_dir)

    assert rows(server.start()) == [(7,)]

    server.stop()


def test_client_and_server_killed_together_lose_no_committed_row(data_dir, client):
    killed = client(CLIENT, data_dir)
    write_row(killed.stdout.readline().strip())
    kill_postmaster(data_dir)
    kill(killed.pid)

    with EmbeddedServer(data_dir) as url:
        assert rows(url) == [(7,)]


@needs_linux
@pytest.mark.parametrize("what", ["all", "postmaster.pid and socket"])
def test_who_removes_the_files_under_a_running_server_can_start_anew_at_once(folder, template, what):
    data_dir = copy_of(template, folder / "data")
    killed = EmbeddedServer(data_dir)
    killed.start()
    (stray,) = postmasters(data_dir)
    if what == "all":
        shutil.rmtree(data_dir, ignore_errors=True)  # in which the server makes files
        shutil.rmtree(data_dir, ignore_errors=True)
    else:
        for name in ("postmaster.pid", ".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
            (data_dir / "postgres" / name).unlink()

    with EmbeddedServer(data_dir) as url:
        write_row(url)
        (running,) = postmasters(data_dir)
        killed.stop()
        kept = rows(url)

    assert kept == [(7,)]
    assert running != stray
    assert embedded._command_line(stray) == ""


@needs_linux
def test_a_server_whose_files_were_removed_is_stopped_all_the_same(folder, template):
    data_dir = copy_of(template, folder / "data")
    server = EmbeddedServer(data_dir)
    server.start()
    (process_id,) = postmasters(data_dir)
    while data_dir.exists():  # the server writes, too
        shutil.rmtree(data_dir, ignore_errors=True)

    server.stop()

    assert embedded._command_line(process_id) == ""


def test_a_stop_does_not_wait_for_a_start_that_waits(data_dir, monkeypatch):
    monkeypatch.setattr(embedded, "STOP_SECONDS", 1)
    server = EmbeddedServer(data_dir)
    server.start()
    (postmaster,) = postmasters(data_dir)
    os.kill(postmaster, signal.SIGSTOP)  # it lives, and answers nobody
    told = []

    def start():
        try:
            server.start()
        except StorageUnavailableError as error:
            told.append(str(error))

    waiting = threading.Thread(target=start)
    waiting.start()
    time.sleep(0.2)
    began = time.monotonic()

    with pytest.raises(StorageError, match="was told to stop and has not"):
        server.stop()
    seconds = time.monotonic() - began
    waiting.join(30)

    assert seconds < 15
    assert not waiting.is_alive()
    assert "did not answer before the end" in told[0]
    os.kill(postmaster, signal.SIGCONT)
    while embedded._command_line(postmaster):
        time.sleep(0.02)


def test_a_stop_after_the_server_was_killed_harms_no_process_that_took_its_number(data_dir):
    server = EmbeddedServer(data_dir)
    server.start()
    kill_postmaster(data_dir)
    with bystander(data_dir) as process:
        server.stop()

        assert process.poll() is None
    with EmbeddedServer(data_dir) as url:
        assert ask(url, "SELECT 3") == (3,)


def test_a_process_that_took_the_number_of_a_killed_server_is_not_taken_for_it(data_dir):
    server = EmbeddedServer(data_dir)
    write_row(server.start())
    kill_postmaster(data_dir)
    with bystander(data_dir) as process:
        assert rows(server.start()) == [(7,)]
        server.stop()

        assert process.poll() is None


class bystander:  # noqa: N801, used like a function
    """A process of the cluster's account whose number stands in ``postmaster.pid``."""

    def __init__(self, data_dir):
        self.pid_file = data_dir / "postgres" / "postmaster.pid"

    def __enter__(self):
        owner = self.pid_file.parent.stat().st_uid if os.geteuid() == 0 else None
        self.process = subprocess.Popen(["sleep", "600"], user=owner)
        lines = self.pid_file.read_text().split("\n")
        self.pid_file.write_text("\n".join([str(self.process.pid), *lines[1:]]))
        return self.process

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


@needs_linux
def test_a_killed_server_that_nobody_buries_does_not_stand_in_the_way(data_dir, client):
    # A container's first process is the parent of all orphans, and most never wait for them.
    script = f"""
import ctypes
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
{CLIENT}"""
    parent = client(script, data_dir)
    url = parent.stdout.readline().strip()
    write_row(url)
    dead = postmasters(data_dir)[0]
    kill(dead)
    while ") Z " not in Path(f"/proc/{dead}/stat").read_text():
        time.sleep(0.01)

    with EmbeddedServer(data_dir) as again:
        assert rows(again) == [(7,)]
        leave(parent)
        assert rows(again) == [(7,)]


def test_an_interrupted_beginning_is_begun_anew(folder):
    (folder / "postgres.new" / "base").mkdir(parents=True)
    (folder / "postgres.new" / "PG_VERSION").write_text("18\n")

    with EmbeddedServer(folder) as url:
        assert ask(url, "SELECT 3") == (3,)
    assert not (folder / "postgres.new").exists()


@pytest.mark.parametrize("name", ["d" * 100, "a,b", """it's a "$HOME" \\ 100%&?#"""])
def test_any_name_of_a_folder_will_do(folder, template, name):
    with EmbeddedServer(copy_of(template, folder / name)) as url:
        assert ask(url, "SELECT 3") == (3,)


def test_a_socket_whose_path_would_be_too_long_gets_a_private_folder_of_its_own(folder, template):
    long = copy_of(template, folder / ("d" * 100))

    with EmbeddedServer(long) as url, psycopg.connect(url) as connection:
        socket_folder = Path(connection.info.host)
        cluster = long / "postgres"
        mode = stat.S_IMODE(socket_folder.stat().st_mode)
        owners = socket_folder.stat().st_uid, cluster.stat().st_uid

    assert socket_folder != cluster
    assert mode == 0o700
    assert owners[0] == owners[1]
    assert not socket_folder.exists()


def test_a_socket_folder_that_others_can_enter_is_refused(folder, template):
    long = copy_of(template, folder / ("d" * 100))
    with EmbeddedServer(long) as url, psycopg.connect(url) as connection:
        socket_folder = Path(connection.info.host)
    socket_folder.mkdir(mode=0o755)
    owner = (long / "postgres").stat()
    os.chown(socket_folder, owner.st_uid, owner.st_gid)

    with pytest.raises(StorageUnavailableError, match="somebody else's"):
        EmbeddedServer(long).start()

    socket_folder.rmdir()


def test_data_of_another_postgresql_version_is_refused_in_a_sentence(folder):
    (folder / "postgres").mkdir()
    (folder / "postgres" / "PG_VERSION").write_text("16\n")

    with pytest.raises(UnsupportedDatabaseError) as told:
        EmbeddedServer(folder).start()

    assert "made by PostgreSQL 16, and this is PostgreSQL 18" in str(told.value)
    assert re.findall("embedding-studio (?:backup|restore) FILE", str(told.value)) == [
        "embedding-studio backup FILE",
        "embedding-studio restore FILE",
    ]


def test_the_reason_why_postgresql_does_not_start_is_told_and_the_lock_is_let_go(data_dir):
    with EmbeddedServer(data_dir) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'")
    altered = data_dir / "postgres" / "postgresql.auto.conf"

    with pytest.raises(StorageUnavailableError, match="no_such_library"):
        EmbeddedServer(data_dir).start()

    altered.write_text("")
    with EmbeddedServer(data_dir) as url:
        assert ask(url, "SELECT 3") == (3,)


@needs_root
def test_an_ordinary_user_starts_and_stops_it(folder, client):
    nobody = pwd.getpwnam("nobody")
    data_dir = folder / "data"
    data_dir.mkdir()
    os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)

    process = client(AS_NOBODY, data_dir)
    url = process.stdout.readline().strip()

    assert ask(url, "SELECT 3") == (3,)
    (postmaster,) = postmasters(data_dir)
    assert Path(f"/proc/{postmaster}").stat().st_uid == nobody.pw_uid
    leave(process)
    assert postmasters(data_dir) == []


@needs_root
def test_root_and_the_owner_of_a_folder_share_its_server(folder, client):
    nobody = pwd.getpwnam("nobody")
    data_dir = folder / "data"
    data_dir.mkdir()
    os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)
    with EmbeddedServer(data_dir) as url:
        write_row(url)
        running = postmasters(data_dir)

        process = client(AS_NOBODY, data_dir)

        assert process.stdout.readline().strip() == url
    assert postmasters(data_dir) == running
    leave(process)


@needs_root
def test_a_user_without_the_right_is_told_so_in_a_sentence(folder):
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, folder], check=False, capture_output=True, text=True
    )

    assert done.returncode == 1
    assert "StorageUnavailableError" in done.stderr.splitlines()[-1]
    assert "set DATA_DIR to another folder" in done.stderr.splitlines()[-1]


@needs_root
def test_a_data_directory_that_the_account_cannot_reach_holds_a_link_to_one_it_can(
    folder, monkeypatch, caplog
):
    monkeypatch.setattr(embedded, "STATE_FOLDER", folder / "state")
    private = folder / "private"
    private.mkdir(mode=0o700)
    before = [path.stat().st_mode for path in (private, folder)]

    with EmbeddedServer(private / "data") as url:
        write_row(url)
    with EmbeddedServer(private / "data") as url:
        kept = rows(url)

    link = private / "data" / "postgres"
    assert kept == [(7,)]
    assert [path.stat().st_mode for path in (private, folder)] == before
    assert link.is_symlink()
    assert link.resolve().is_relative_to(folder / "state")
    assert str(link.resolve().parent) in caplog.text


def test_a_link_whose_data_is_gone_is_not_begun_anew_in_silence(folder):
    (folder / "postgres").symlink_to(folder / "gone")

    with pytest.raises(StorageUnavailableError, match="which is gone"):
        EmbeddedServer(folder).start()


@needs_root
def test_binaries_that_the_account_cannot_reach_are_copied_beside_the_data(folder, data_dir, monkeypatch):
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        pytest.skip("programs in this folder cannot be run")
    package = embedded._installed_package()
    private = folder / "private"
    private.mkdir(mode=0o700)
    for source in (package, package.with_name(f"{package.name}.libs")):
        (private / source.name).symlink_to(source)
    monkeypatch.syspath_prepend(private)

    with EmbeddedServer(data_dir) as url, psycopg.connect(url) as connection:
        connection.execute("CREATE EXTENSION vector")
        (postmaster,) = postmasters(data_dir)
        command = embedded._command_line(postmaster)

    assert command.startswith(str(data_dir / "bundle-"))
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("system", "machine", "description"),
    [
        ("Linux", "x86_64", "flags\t\t: fpu sse4_2 fma avx f16c avx2 bmi2 rdseed"),
        ("Linux", "aarch64", "Features\t: fp asimd sve bf16"),
        ("Darwin", "x86_64", "FPU FMA F16C AVX1.0\nAVX2 BMI1 BMI2"),
        ("Darwin", "arm64", None),
    ],
)
def test_a_processor_with_the_vector_instructions_will_do(system, machine, description):
    require_supported_processor(system, machine, description)


@pytest.mark.parametrize(
    ("system", "machine", "description", "missing"),
    [
        ("Linux", "x86_64", "flags\t\t: fpu sse4_2 fma avx f16c bmi2", "AVX2"),
        ("Linux", "x86_64", "flags\t\t: fpu sse4_2 avx avx2_of_another_kind", "AVX2, BMI2, F16C, FMA"),
        ("Linux", "aarch64", "Features\t: fp asimd svebf16", "SVE"),
        ("Darwin", "x86_64", "FPU FMA F16C AVX1.0\nBMI1 BMI2", "AVX2"),
        ("Linux", "riscv64", "", "riscv64"),
    ],
)
def test_a_processor_without_them_is_refused_with_the_way_out(system, machine, description, missing):
    with pytest.raises(UnsupportedDatabaseError) as refused:
        require_supported_processor(system, machine, description)

    assert f" {missing}" in str(refused.value)
    assert "Set DATABASE_URL to a PostgreSQL server (15 or later)" in str(refused.value)
