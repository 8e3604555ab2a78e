"""The other processes of one service (``serve --processes``), and what they tell of themselves."""

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client import Metric, generate_latest

logger = logging.getLogger(__name__)

SECONDS_TO_TELL = 2.0
"""A process that does not tell its numbers by then is left out of a scrape."""
LABEL = "process"


@dataclass(slots=True)
class Siblings:
    """What one process of a service knows of the others.

    Attributes:
        name: of this process.
        token: by which they know one another.
        limits: a file that all have in memory, in which it stands who asked how often.
        numbers: name -> where that process tells its numbers; replaced as a whole when one is restarted.
        is_first: whether this is the process that keeps the reports.
        first: where that one answers; None: it is being started.
    """

    name: str
    token: str
    limits: int
    numbers: Mapping[str, str] = field(default_factory=dict)
    is_first: bool = False
    first: str | None = None

    def told(self) -> dict[str, str]:
        """Return name -> the numbers of each other process that tells them."""
        others = {name: url for name, url in self.numbers.items() if name != self.name}
        with ThreadPoolExecutor(max(1, len(others))) as threads:
            told = dict(zip(others, threads.map(self._ask, others.values()), strict=True))
        return {name: numbers for name, numbers in told.items() if numbers is not None}

    def _ask(self, url: str) -> str | None:
        import httpx  # here, as below: most processes have no siblings

        try:
            answer = httpx.get(
                url,
                headers={"Authorization": f"Bearer {self.token}"},
                timeout=SECONDS_TO_TELL,
                trust_env=False,
            )
            answer.raise_for_status()
        except httpx.HTTPError as error:
            logger.warning("another process of this service does not tell its numbers: %r", error)
            return None
        return answer.text


@dataclass(frozen=True, slots=True)
class _Families:
    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def of_all(told: Mapping[str, str], *, once: Iterable[str]) -> bytes:
    r"""Return the numbers of some processes as one text, each with the process in a label.

    >>> told = {"1": "# HELP users All\n# TYPE users gauge\nusers 3\n"}
    >>> told["1"] += "# HELP seen_total Seen\n# TYPE seen_total counter\nseen_total 5\n"
    >>> told["2"] = told["1"].replace("5", "7")
    >>> print(of_all(told, once={"users"}).decode())
    # HELP users All
    # TYPE users gauge
    users 3.0
    # HELP seen_total Seen
    # TYPE seen_total counter
    seen_total{process="1"} 5.0
    seen_total{process="2"} 7.0
    <BLANKLINE>

    Args:
        told: name of the process -> its numbers.
        once: names of those that are the same whoever tells them; the first process does.
    """
    from prometheus_client.parser import text_string_to_metric_families

    families: dict[str, Metric] = {}
    shared = frozenset(once)
    for process, text in told.items():
        for family in text_string_to_metric_families(text):
            if family.name in shared:
                families.setdefault(family.name, family)
                continue
            family.samples = [
                each._replace(labels={**each.labels, LABEL: process}) for each in family.samples
            ]
            if (together := families.get(family.name)) is None:
                families[family.name] = family
            else:
                together.samples += family.samples
    return generate_latest(_Families(families.values()))
