"""What one session, event, user and object cost, and what that makes of many: the page docs/scaling.md.

    python benchmarks/scaling.py [--quick] [--json OUT] [--markdown docs/scaling.md]

Constants are measured on the embedded PostgreSQL: bytes are those of tables with their indexes and what is
out of line; processor time is that of this process and of all processes of the server. Tables are
multiplications of them, which the page says. Its words stand in scaling.md, beside this file.

Axes: N objects · D dimensions.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import psycopg

from embedding_studio import MetricType, SearchIndexInfo, SessionEvent
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.embeddings.coder import Coder
from embedding_studio.embeddings.codes import Codes
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.ports import RECALL_TARGET
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.postgres.nearest import FEWEST, margin_for

SHOWN = 10
SECONDS_A_TICK = 1 / os.sysconf("SC_CLK_TCK")
LOG = ("sessions", "session_events", "sessions_for_improvement")
SEARCHES_A_MONTH, SHARE_CLICKED, MONTHS_KEPT, PEAK = 10, 0.4, 12, 4
"""Of the tables: searches of a user in a month, how many of them have a click, months that the log is kept,
and how many times the mean the busiest hour has."""
BYTES = "SELECT sum(pg_total_relation_size(name::regclass))::bigint FROM unnest(%s::text[]) AS given(name)"
COUNTS = "SELECT (SELECT count(*) FROM {schema}.personal_parts), (SELECT count(*) FROM {schema}.query_memory)"
LONG = round(SEARCHES_A_MONTH * SHARE_CLICKED * MONTHS_KEPT)
"""Sessions that such a user has in the end."""
MONTH_SECONDS = 30 * 24 * 3600


@dataclass
class Constants:
    """What was measured. Bytes on disk but for ``code_bytes``; milliseconds of processor time."""

    at: str = ""
    objects: int = 0
    users: int = 0
    bytes_of_object_384: float = 0
    bytes_of_object_768: float = 0
    code_bytes_384: float = 0
    code_bytes_768: float = 0
    session_bytes: float = 0
    event_bytes: float = 0
    moved_of_session: float = 0
    memory_bytes: float = 0
    copy_bytes: float = 0
    search_ms_few: float = 0
    search_ms_many: float = 0
    few: int = 0
    coded: int = 0
    codes_ms: float = 0
    personal_ms_many: float = 0
    record_ms: float = 0
    click_ms: float = 0
    learn_ms: float = 0
    long_users: int = 0
    long_learn_ms: float = 0
    long_copies: float = 0


class Bench:
    """An embedded server with nothing in it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.storage = PostgresStorage(url)
        self.connection = psycopg.connect(url, autocommit=True)
        self._postmaster = int((folder / "postgres" / "postmaster.pid").read_text().split("\n")[0])
        self.rng = np.random.default_rng(7)

    def close(self) -> None:
        self.connection.close()
        self.storage.close()

    def vectors(self, count: int, dimensions: int) -> np.ndarray:
        """Return unit vectors around 50 subjects, [count, D]."""
        subjects = np.random.default_rng(1).standard_normal((50, dimensions))
        drawn = subjects[self.rng.integers(50, size=count)] + 0.8 * self.rng.standard_normal(
            (count, dimensions)
        )
        return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)

    def load(self, collection: Collection, count: int, first: int = 0) -> None:
        vectors = self.vectors(count, collection.index.dimensions or 0)
        payload = {"title": "a title of some forty characters in all"}
        objects = [
            CatalogueObject(f"object {first + n:07}", vector[None], payload)
            for n, vector in enumerate(vectors)
        ]
        self.storage.objects.upsert(collection, objects)

    def bytes_of(self, schema: str, *tables: str) -> int:
        names = [f"{schema}.{table}" for table in tables]
        [(size,)] = self.connection.execute(BYTES, [names])
        return int(size)

    def milliseconds(self, work: Callable[[], object], count: int) -> float:
        """Return the processor time of one of ``count`` in this process and the server's."""
        before = self._processor_seconds()
        for _ in range(count):
            work()
        return 1000 * (self._processor_seconds() - before) / count

    def _processor_seconds(self) -> float:
        """Of processes of the server that ended, their parent tells."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # it has ended
            if int(stat.parent.name) == self._postmaster:
                ticks += sum(map(int, fields[11:15]))
            elif int(fields[1]) == self._postmaster:
                ticks += sum(map(int, fields[11:13]))
        return time.process_time() + ticks * SECONDS_A_TICK


def schema_of(collection: Collection) -> str:
    return f"collection_{collection.collection_id}"


def measure(bench: Bench, *, few: int, many: int, users: int, turns: int, long_users: int) -> Constants:
    storage = bench.storage
    found = Constants(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", few=few, objects=many, users=users, long_users=long_users
    )
    found.coded = 100 * few

    measure_wide(bench, found)
    things = storage.collections.create("default", SearchIndexInfo(dimensions=384))
    search = SearchService(storage)

    def searching(user_id: str | None = None) -> float:
        queries = iter(bench.vectors(turns + 5, 384))
        for _ in range(5):
            search.search(next(queries), user_id=user_id, limit=SHOWN)
        return bench.milliseconds(lambda: search.search(next(queries), user_id=user_id, limit=SHOWN), turns)

    bench.load(things, few)
    bench.connection.execute("VACUUM ANALYZE")
    found.search_ms_few = searching()
    bench.load(things, many - few, first=few)
    bench.connection.execute("VACUUM ANALYZE")
    found.bytes_of_object_384 = bench.bytes_of(schema_of(things), "objects", "parts", "codes") / many
    found.code_bytes_384 = storage.objects.codes(things).bytes_in_memory / many
    found.search_ms_many = searching()

    before = bench.bytes_of("embedding_studio", *LOG)
    pages = []
    queries = iter(bench.vectors(users, 384))
    names = iter(range(users))
    plain_ms = found.search_ms_many

    def record() -> None:
        name = f"user {next(names):07}"
        pages.append(search.search(next(queries), user_id=name, limit=SHOWN, create_session=True))

    found.record_ms = max(0.0, bench.milliseconds(record, users) - plain_ms)
    shown = iter(pages)

    def click() -> None:
        page = next(shown)
        assert page.session_id is not None
        event = SessionEvent(session_id=page.session_id, object_id=page.results[3].object_id)
        storage.clickstream.push_events([event])

    found.click_ms = bench.milliseconds(click, users)
    found.session_bytes = (bench.bytes_of("embedding_studio", *LOG) - before) / users
    before = bench.bytes_of("embedding_studio", "session_events")
    views = [
        SessionEvent(session_id=page.session_id or "", object_id=result.object_id, event_type="view")
        for page in pages
        for result in page.results
    ]
    for start in range(0, len(views), 1000):
        storage.clickstream.push_events(views[start : start + 1000])
    found.event_bytes = (bench.bytes_of("embedding_studio", "session_events") - before) / len(views)

    improver = Improver(storage, PassiveAggressiveAdjuster)
    found.learn_ms = bench.milliseconds(lambda: drain(improver), 1) / users
    schema = schema_of(things)
    [(copies, memories)] = bench.connection.execute(COUNTS.format(schema=schema))
    found.moved_of_session = copies / memories
    found.copy_bytes = bench.bytes_of(schema, "personal_parts") / copies
    found.memory_bytes = bench.bytes_of(schema, "query_memory") / memories
    found.personal_ms_many = searching("user 0000001")
    measure_long(bench, things, search, improver, found)
    measure_codes(bench, found, turns)
    return found


def measure_wide(bench: Bench, found: Constants) -> None:
    storage, few = bench.storage, found.few
    wide = storage.collections.create("wide", SearchIndexInfo(dimensions=768))
    bench.load(wide, few)
    found.bytes_of_object_768 = bench.bytes_of(schema_of(wide), "objects", "parts", "codes") / few
    found.code_bytes_768 = storage.objects.codes(wide).bytes_in_memory / few
    storage.collections.drop("wide")


def measure_long(
    bench: Bench, collection: Collection, search: SearchService, improver: Improver, found: Constants
) -> None:
    """Measure users with as many sessions as one has in the end."""
    longs = [f"long {number}" for number in range(found.long_users)]
    for user_id in longs:
        for query in bench.vectors(LONG, 384):
            page = search.search(query, user_id=user_id, limit=SHOWN, create_session=True)
            event = SessionEvent(session_id=page.session_id or "", object_id=page.results[3].object_id)
            bench.storage.clickstream.push_events([event])
    found.long_learn_ms = bench.milliseconds(lambda: drain(improver), 1) / len(longs)
    states = [bench.storage.personal.state(collection, user_id) for user_id in longs]
    found.long_copies = sum(len(state.vectors) for state in states) / len(longs)


def measure_codes(bench: Bench, found: Constants, turns: int) -> None:
    """Measure the pass over codes, of vectors that are drawn once and stand there many times."""
    drawn = bench.vectors(found.few, 384)
    codes = Codes(Coder(MetricType.COSINE, drawn.mean(axis=0)))
    records = codes.coder.encode(drawn)
    for start in range(0, found.coded, len(drawn)):
        codes.add(np.arange(start, start + len(drawn)), records)
    view = codes.view()
    queries = iter(bench.vectors(turns + 1, 384))

    def look() -> None:
        view.ranking(next(queries)[None], margin_for(RECALL_TARGET)).likeliest(FEWEST)

    look()
    found.codes_ms = bench.milliseconds(look, turns)


def drain(improver: Improver) -> None:
    while improver.improve_once(users=100).users:
        pass


def size(count: float) -> str:
    """Return a number of bytes as people read it.

    >>> size(1_530), size(2_500_000_000_000)
    ('1.5 kB', '2.5 TB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count / 1000:,.3g} PB"


def many(count: int) -> str:
    return f"{count // 1_000_000:,} M"


def rows(lines: Sequence[tuple[object, ...]]) -> str:
    head, *body = (" | ".join(str(cell) for cell in line) for line in lines)
    rule = " | ".join("---" for _ in lines[0])
    return "\n".join(f"| {line} |" for line in (head, rule, *body))


def page(found: Constants, command: str) -> str:
    """Return the page; every number in it is measured, or a multiplication that stands there."""
    slope = found.codes_ms / found.coded
    base = max(0.0, found.search_ms_few - slope * found.few)
    user_bytes = LONG * found.memory_bytes + found.long_copies * found.copy_bytes
    state_bytes = found.memory_bytes + found.moved_of_session * found.copy_bytes
    constants = rows(
        [
            ("what", "measured"),
            ("an object of one part, 384 dimensions, on disk", size(found.bytes_of_object_384)),
            ("the same of 768", size(found.bytes_of_object_768)),
            ("its code, in the memory of each process that searches, 384", size(found.code_bytes_384)),
            ("the same of 768", size(found.code_bytes_768)),
            (f"a session with {SHOWN} results, a click and its order, on disk", size(found.session_bytes)),
            ("one event more", size(found.event_bytes)),
            ("state of a learnt session: a query remembered", size(found.memory_bytes)),
            ("objects that it moved (copies), each", f"{found.moved_of_session:.1f}"),
            ("a copy, 384", size(found.copy_bytes)),
            ("state of a learnt session, together", size(state_bytes)),
            (f"processor, a plain search among {found.few:,}", f"{found.search_ms_few:.2f} ms"),
            (f"the same among {found.objects:,}", f"{found.search_ms_many:.2f} ms"),
            (f"the same for a user with a past, among {found.objects:,}", f"{found.personal_ms_many:.2f} ms"),
            (f"of a search the pass over {found.coded:,} codes, alone", f"{found.codes_ms:.1f} ms"),
            ("to record the session of a search", f"{found.record_ms:.2f} ms"),
            ("to take a click", f"{found.click_ms:.2f} ms"),
            ("to learn a user with one session, in batches of 100", f"{found.learn_ms:.2f} ms"),
            (f"the same with {LONG} sessions", f"{found.long_learn_ms:.2f} ms"),
            (f"copies that a user of {LONG} sessions has", f"{found.long_copies:.0f}"),
        ]
    )
    objects = [
        (
            "objects",
            "on disk",
            "codes in each searching process",
            "processor of one search",
            "as many as were measured",
        )
    ]
    for count in (1_000_000, 10_000_000, 100_000_000):
        search_ms = base + slope * count
        objects.append(
            (
                many(count),
                size(count * found.bytes_of_object_384),
                size(count * found.code_bytes_384),
                f"{search_ms:,.0f} ms",
                f"{max(1, count / found.coded):,.3g} times the codes, {count / found.objects:,.0f} the rest",
            )
        )
    users = [
        (
            "users",
            "searches a second, mean and peak",
            "log",
            "state",
            "cores for record and clicks",
            "cores to learn",
        )
    ]
    for count in (1_000_000, 10_000_000, 100_000_000):
        sessions = count * SEARCHES_A_MONTH
        rate = PEAK * sessions / MONTH_SECONDS
        users.append(
            (
                many(count),
                f"{rate / PEAK:,.0f}, {rate:,.0f}",
                size(MONTHS_KEPT * sessions * found.session_bytes),
                size(count * user_bytes),
                f"{rate * (found.record_ms + SHARE_CLICKED * found.click_ms) / 1000:,.1f}",
                f"{rate * SHARE_CLICKED * found.long_learn_ms / 1000:,.1f}",
            )
        )
    return PAGE.read_text().format(
        results_shown=SHOWN,
        long=LONG,
        command=command,
        at=found.at,
        cores=os.cpu_count(),
        constants=constants,
        objects=rows(objects),
        users=rows(users),
        searches=SEARCHES_A_MONTH,
        clicked=f"{SHARE_CLICKED:.0%}".replace("%", " %"),
        months=MONTHS_KEPT,
        peak=PEAK,
        measured=f"{found.objects:,}",
        few=f"{found.few:,}",
        coded=f"{found.coded:,}",
        people=f"{found.users:,}",
    )


PAGE = Path(__file__).with_suffix(".md")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer objects, users and turns")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the constants here")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the page here")
    given = parser.parse_args()
    few, many_objects, users, turns, long_users = (
        (4_000, 8_000, 200, 40, 3) if given.quick else (10_000, 40_000, 2_000, 200, 20)
    )
    with tempfile.TemporaryDirectory(prefix="embedding-studio-scaling-") as folder:
        Path(folder).chmod(0o755)
        with EmbeddedServer(Path(folder)) as url, closing(Bench(url, Path(folder))) as bench:
            found = measure(
                bench, few=few, many=many_objects, users=users, turns=turns, long_users=long_users
            )
    for name, value in asdict(found).items():
        print(f"{name}: {value}")
    if given.json:
        given.json.write_text(json.dumps(asdict(found), indent=1) + "\n")
    if given.markdown:
        command = "python benchmarks/scaling.py" + " --quick" * given.quick + f" --markdown {given.markdown}"
        given.markdown.write_text(page(found, command))


if __name__ == "__main__":
    main()
