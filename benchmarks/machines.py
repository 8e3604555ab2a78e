"""Is anything lost, or refused, where services and workers are machines of their own behind a pooler?

    python benchmarks/machines.py [--seconds 60] [--seed 7] [--keep FOLDER] [--json OUT]

A database and PgBouncer in transaction mode are one machine; two others have a service and a worker each. A
machine is a network namespace (Linux, as root, with ``ip`` and ``pgbouncer``): what it says to others goes
over a cable of its own. Clients search, click and store objects over HTTP, and write down what was
acknowledged. Halfway one machine's cable is pulled for a while; what stores objects at the other may then
wait for a transaction in which the first fell silent, and get a 503. At the end the log is compared with
what clients wrote down, and each user's state with one that is folded from the log in memory.
Exits with 1 if anything is not as it should be.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from chaos import (
    CLIENTS,
    OBJECTS,
    Client,
    D,
    Journal,
    Supervised,
    keep_clicking,
    keep_storing,
    still_open,
    violations,
)
from embedding_studio import SearchIndexInfo
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.postgres import PostgresStorage

MACHINES = 2
POOLED = 20
"""Connections to the database that all share."""
PORT, POOLER_PORT = 8000, 6432
PATIENCE_SECONDS = 90
KEY = "a key for machines that reach each other alone"
HEADERS = {"Authorization": f"Bearer {KEY}"}
TROUBLE = re.compile(r"Traceback|\b(?:ERROR|CRITICAL)\b")


def ip(*command: str) -> None:
    subprocess.run(["/usr/sbin/ip", *command], check=True)


@contextmanager
def machine(number: int) -> Iterator[tuple[str, str, str]]:
    """Yield the name of a network namespace, its address, and this one's as seen from there."""
    name, cable, end = (f"es-{os.getpid()}-{number}", f"es{number}-{os.getpid()}", f"ese{number}")
    ours, theirs = (f"10.213.{number}.{host}" for host in (1, 2))
    ip("netns", "add", name)
    try:
        ip("link", "add", cable, "type", "veth", "peer", "name", end, "netns", name)
        ip("address", "add", f"{ours}/24", "dev", cable)
        ip("link", "set", cable, "up")
        for command in (["address", "add", f"{theirs}/24", "dev", end], ["link", "set", end, "up"]):
            ip("-n", name, *command)
        ip("-n", name, "link", "set", "lo", "up")
        yield name, theirs, ours
    finally:
        ip("netns", "delete", name)  # and its end of the cable


@contextmanager
def pooler(folder: Path, database_url: str) -> Iterator[None]:
    """Run PgBouncer in transaction mode before a database, at all addresses of this machine."""
    data = folder / "data" / "postgres"
    owner = data.stat()
    socket_folder = database_url.partition("host=")[2].partition("&")[0].replace("%2F", "/")
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={socket_folder} port=5432 user=embedding_studio\n[pgbouncer]\n"
        f"listen_addr = *\nlisten_port = {POOLER_PORT}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = transaction\ndefault_pool_size = {POOLED}\nmax_client_conn = 500\n"
    )
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise SystemExit("there is no PgBouncer; on Debian: apt-get install pgbouncer")
    process = subprocess.Popen(
        [program, "-q", str(folder / "pgbouncer.ini")], user=owner.st_uid, group=owner.st_gid
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


class Machines:
    """A service and a worker on each of several machines, all before one pooler."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.names, self.urls, self.parts = [], [], []
        for number in range(1, MACHINES + 1):
            name, theirs, ours = stack.enter_context(machine(number))
            environment = {key: value for key, value in os.environ.items() if key != "DATABASE_URL"} | {
                "DATABASE_URL": f"postgresql://embedding_studio@{ours}:{POOLER_PORT}/embedding_studio",
                "EMBEDDER": "none",
                "HOST": theirs,
                "ADMIN_API_KEY": KEY,
                "PORT": str(PORT),
                "LEASE_SECONDS": "5",
            }
            self.names.append(name)
            self.urls.append(f"http://{theirs}:{PORT}")
            for what in (["serve", "--no-worker"], ["worker"]):
                log = folder / f"{what[0]} {number}.log"
                part = Supervised(what, environment, log, within=["/usr/sbin/ip", "netns", "exec", name])
                stack.callback(part.stop)
                self.parts.append(part)
        ends = time.monotonic() + PATIENCE_SECONDS
        while not all(part.ready_at for part in self.parts):
            time.sleep(0.05)
            if time.monotonic() > ends:
                raise SystemExit("\n".join(log.read_text()[-2_000:] for log in folder.glob("*.log")))

    def pull(self, number: int, seconds: float) -> None:
        """Let nothing reach a machine, nor come from it, for so long."""
        ip("-n", self.names[number], "link", "set", f"ese{number + 1}", "down")
        time.sleep(seconds)
        ip("-n", self.names[number], "link", "set", f"ese{number + 1}", "up")


def run(machines: Machines, journal: Journal, seconds: float, seed: int) -> Counter[str]:
    """Let clients be at work, each at one machine; return what they were answered instead, by machine."""
    is_over = threading.Event()
    filling = Client(machines.urls[0], journal, is_over, HEADERS)
    for start in range(0, OBJECTS, 500):
        filling.store(np.random.default_rng(start), [f"o{n}" for n in range(start, start + 500)], 0)
    clients, threads = [], []
    for number, work in enumerate([keep_storing, *[keep_clicking] * (CLIENTS * MACHINES)]):
        client = Client(machines.urls[number % MACHINES], journal, is_over, HEADERS)
        clients.append(client)
        threads.append(threading.Thread(target=work, args=(client, number, seed)))
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    before = sum((client.refusals for client in clients), Counter())
    machines.pull(MACHINES - 1, seconds / 6)
    time.sleep(seconds / 3)
    is_over.set()
    for thread in threads:
        thread.join()
    met: Counter[str] = Counter({f"before: {what}": number for what, number in before.items()})
    for number, client in enumerate(clients):
        where = "of the machine that was away" if number % MACHINES == MACHINES - 1 else "of the other"
        met.update({f"{where}: {what}": count for what, count in client.refusals.items()})
    return met


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        url = stack.enter_context(EmbeddedServer(folder / "data"))
        stack.enter_context(pooler(folder, url))
        with closing(PostgresStorage(url)) as storage:
            storage.collections.create("default", SearchIndexInfo(dimensions=D))
        machines = Machines(stack, folder)
        journal = Journal(folder / "journal.jsonl")
        met = run(machines, journal, given.seconds, given.seed)
        with closing(PostgresStorage(url)) as storage:
            wrong = {"orders stuck": still_open(storage)} | violations(storage, journal)
            orders = {status.value: number for status, number in storage.orders.counts().items()}
        for part in machines.parts:
            part.stop()
    logs = {log.stem: log.read_text() for log in sorted(folder.glob("*.log"))}
    wrong["requests refused before the cable was pulled"] = sum(
        number for what, number in met.items() if what.startswith("before: ")
    )
    if given.keep:
        shutil.copytree(folder, given.keep, dirs_exist_ok=True, ignore=shutil.ignore_patterns("data"))
    return {
        "seconds": given.seconds,
        "machines": MACHINES,
        "connections of the pooler": POOLED,
        "searches recorded": len(journal.sessions),
        "events acknowledged": len(journal.events),
        "objects stored": len(journal.objects),
        "orders": orders,
        "refused": dict(met),
        "errors in logs": {name: len(TROUBLE.findall(text)) for name, text in logs.items()},
        "wrong": wrong,
    }


def rows(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for what, figure in figures.items():
        if isinstance(figure, dict):
            aim = " (aim: 0)" if what == "wrong" else ""
            yield from ((f"{what}, {name}{aim}", f"{number:,}") for name, number in figure.items())
        else:
            yield what, f"{figure:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Services and workers on machines of their own.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs and journal there")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else machines would stay
    if os.getuid() != 0 or not sys.platform.startswith("linux"):
        raise SystemExit("network namespaces need Linux, and to be root")
    with tempfile.TemporaryDirectory(prefix="embedding-studio-machines-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server runs as somebody else, who must get in
        figures = measure(folder, given)
    table = Table("what", "figure", title="Machines")
    for what, figure in rows(figures):
        table.add_row(what, figure)
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    if any(figures["wrong"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
