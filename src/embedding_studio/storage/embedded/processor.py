"""Whether the embedded database runs on this processor.

The wheel's ``vector.so`` is compiled for x86-64-v3 (AVX2, BMI2, F16C, FMA) and, on Linux arm64, for SVE. On
another processor the first vector would end the server with SIGILL, so it is reported before the start.
"""

import platform
import subprocess
from pathlib import Path

from embedding_studio.errors import UnsupportedDatabaseError

USE_A_SERVER = (
    "Set DATABASE_URL to a PostgreSQL server (15 or later) with pgvector (0.8 or later) to use that instead."
)

NEEDED = {
    ("Linux", "x86_64"): frozenset({"avx2", "bmi2", "f16c", "fma"}),
    ("Darwin", "x86_64"): frozenset({"avx2", "bmi2", "f16c", "fma"}),
    ("Linux", "aarch64"): frozenset({"sve"}),
    ("Darwin", "arm64"): frozenset[str](),
}
"""(system, machine) -> features, by the names that Linux and macOS give them, in small letters."""


def require_supported_processor(
    system: str | None = None, machine: str | None = None, description: str | None = None
) -> None:
    """Return if the embedded database can run here.

    Args:
        system: as ``platform.system()`` names it; None for the present one, as with the others.
        machine: as ``platform.machine()`` names it.
        description: what the system tells of its processor: ``/proc/cpuinfo``, or the features that
            ``sysctl`` lists.

    Raises:
        UnsupportedDatabaseError: it cannot; the message names what the processor lacks.
    """
    system = platform.system() if system is None else system
    machine = platform.machine() if machine is None else machine
    needed = NEEDED.get((system, machine))
    if needed is None:
        raise UnsupportedDatabaseError(
            f"The embedded database does not exist for {system} on {machine}. {USE_A_SERVER}"
        )
    if not needed:
        return
    description = _describe_processor(system) if description is None else description
    missing = needed - set(description.lower().split())
    if missing:
        raise UnsupportedDatabaseError(
            f"The embedded database needs a processor with {', '.join(sorted(missing)).upper()}, "
            f"which this one lacks. {USE_A_SERVER}"
        )


def _describe_processor(system: str) -> str:
    if system == "Linux":
        return Path("/proc/cpuinfo").read_text()
    names = ["machdep.cpu.features", "machdep.cpu.leaf7_features"]
    return subprocess.run(  # noqa: S603, a constant command
        ["/usr/sbin/sysctl", "-n", *names], capture_output=True, text=True, check=False
    ).stdout
