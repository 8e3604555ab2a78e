"""Show that a test notices every place that stops listening to its setting; ``make mutants`` runs it.

Each read of a setting in ``src`` is replaced by the setting's default, one at a time, in a copy of the
working tree. Then the cases of that setting in ``tests/test_settings_act.py`` run, and where they pass, the
test file that is named like the module. A mutant that passes these, too, survives, and that is a failure,
unless ``EQUIVALENT`` says why no test can see a difference.
"""

import argparse
import ast
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from embedding_studio.api.presets import TOLD
from embedding_studio.settings import KNOBS, Settings

ROOT = Path(__file__).resolve().parent.parent
CASES = "tests/test_settings_act.py"
SECONDS = 300
"""So long a setting's tests may take with a mutant; beyond, it counts as one that no test noticed."""

READ_BY_NAME: Mapping[str, Iterable[str]] = {
    "api/presets.py: _setting": TOLD,
    "settings.py: _warn_outside_the_documented_range": KNOBS,
    "tuned_settings.py: tune_settings": (
        *("adjustment_rate", "gate_threshold", "learn_own_past", "query_shift", "shared_min_users"),
    ),
}
"""``file: function`` -> the settings that it reads with ``getattr``."""

EQUIVALENT: Mapping[str, str] = {
    "tuned_settings.py: tune_settings: learn_own_past": "it is tried only where it is on, as by default",
}
"""``file: function: setting`` -> why a mutant there does what the original does."""


@dataclass(frozen=True)
class Mutant:
    """One read of a setting, unplugged.

    Attributes:
        path: of the file, from the root.
        start, end: of the read, in bytes.
        named: the code that names the setting, where it is read by name: other names are read as before.
    """

    path: str
    function: str
    setting: str
    line: int
    start: int
    end: int
    named: str | None

    @property
    def name(self) -> str:
        return f"{_place(self.path, self.function)}: {self.setting}"

    def of(self, source: bytes) -> bytes:
        settings = '__import__("embedding_studio.settings", fromlist=["Settings"]).Settings'
        default = f'{settings}.model_fields["{self.setting}"].get_default(call_default_factory=True)'
        if self.named is not None:
            read = source[self.start : self.end].decode()
            default = f'({default} if {self.named} == "{self.setting}" else {read})'
        return source[: self.start] + default.encode() + source[self.end :]


def mutants() -> Iterator[Mutant]:
    for file in sorted((ROOT / "src").rglob("*.py")):
        source = file.read_bytes()
        starts = [0]
        for line in source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        path = str(file.relative_to(ROOT))
        for function, read in _reads(ast.parse(source), "the module", is_own=file.name == "settings.py"):
            named = None if isinstance(read, ast.Attribute) else ast.unparse(read.args[1])
            for setting in [read.attr] if isinstance(read, ast.Attribute) else _by_name(path, function):
                yield Mutant(
                    path=path,
                    function=function,
                    setting=setting,
                    line=read.lineno,
                    start=starts[read.lineno - 1] + read.col_offset,
                    end=starts[(read.end_lineno or 0) - 1] + (read.end_col_offset or 0),
                    named=named,
                )


def _place(path: str, function: str) -> str:
    return f"{path.removeprefix('src/embedding_studio/')}: {function}"


def _by_name(path: str, function: str) -> Iterable[str]:
    if (place := _place(path, function)) not in READ_BY_NAME:
        raise SystemExit(f"{place} reads settings by their names; say which in READ_BY_NAME")
    return READ_BY_NAME[place]


def _reads(node: ast.AST, function: str, *, is_own: bool) -> Iterator[tuple[str, ast.Attribute | ast.Call]]:
    """Yield reads of settings below a node, with the function in which each stands.

    Args:
        is_own: whether ``self`` is the settings.
    """
    for below in ast.iter_child_nodes(node):
        name = below.name if isinstance(below, ast.FunctionDef | ast.AsyncFunctionDef) else function
        owner = ""
        if isinstance(below, ast.Attribute) and below.attr in Settings.model_fields:
            owner = ast.unparse(below.value)
        elif isinstance(below, ast.Call) and ast.unparse(below.func) == "getattr":
            owner = ast.unparse(below.args[0])
        if owner.rpartition(".")[2] in {"settings", "in_force"} or (is_own and owner == "self"):
            assert isinstance(below, ast.Attribute | ast.Call)  # noqa: S101, of others there is no owner
            yield name, below
        yield from _reads(below, name, is_own=is_own)


def cases() -> dict[str, list[str]]:
    """Return setting -> ids of its tests."""
    listed = _pytest(ROOT, "--collect-only", CASES)
    found: dict[str, list[str]] = {}
    for test in listed.stdout.splitlines():
        if "[" in test:
            found.setdefault(test.partition("[")[2].partition("-")[0], []).append(test)
    return found


def survives(mutant: Mutant, tests: list[str], tree: Path) -> bool:
    """Return whether all tests of a setting pass without the read.

    Args:
        tree: a copy of the working tree, of which nobody else makes use meanwhile.
    """
    file = tree / mutant.path
    source = file.read_bytes()
    file.write_bytes(mutant.of(source))
    try:
        more = f"tests/test_{Path(mutant.path).stem}.py"
        runs = [tests, [more] if (tree / more).exists() else []]
        return all(_pytest(tree, "-x", *run).returncode == 0 for run in runs if run)
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_bytes(source)


def _pytest(tree: Path, *arguments: str, seconds: float | None = SECONDS) -> subprocess.CompletedProcess[str]:
    options = ["-q", "--numprocesses=0", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(  # noqa: S603, our own tests
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def copied(folder: Path) -> Path:
    """Return a copy of the working tree, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607, whichever git
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="so many at once")
    parser.add_argument("--only", action="append", help="a part of file: function: setting; may be repeated")
    given = parser.parse_args()
    wanted = given.only or [""]
    chosen = [mutant for mutant in mutants() if any(part in mutant.name for part in wanted)]
    of_setting = cases()
    survivors = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        trees: queue.Queue[Path] = queue.Queue()
        for job in range(given.jobs):
            trees.put(copied(Path(folder) / str(job)))
        concerned = sorted({test for mutant in chosen for test in of_setting[mutant.setting]})
        if _pytest(trees.queue[0], *concerned, seconds=None).returncode:
            raise SystemExit(f"{CASES} fails with nothing unplugged; mend that first")

        def tried(mutant: Mutant) -> bool:
            tree = trees.get()
            try:
                return survives(mutant, of_setting[mutant.setting], tree)
            finally:
                trees.put(tree)

        for mutant, survived in zip(chosen, pool.map(tried, chosen), strict=True):
            what = "noticed" if not survived else EQUIVALENT.get(mutant.name, "SURVIVED")
            print(f"{mutant.name} (line {mutant.line}): {what}", flush=True)  # noqa: T201, a script
            survivors += [mutant.name] if survived else []
    unknown = sorted(set(survivors) - EQUIVALENT.keys())
    tried_names = {mutant.name for mutant in chosen}
    wrong = sorted(name for name in EQUIVALENT if name in tried_names and name not in survivors)
    print(  # noqa: T201, as above
        f"{len(chosen)} reads of settings, {len(chosen) - len(survivors)} noticed when unplugged, "
        f"{len(unknown)} not; of those said to be equivalent {len(wrong)} are not"
    )
    if unknown or wrong:
        raise SystemExit("\n".join(unknown + wrong))


if __name__ == "__main__":
    main()
