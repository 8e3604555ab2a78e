"""Build the documentation as a site: `make site`. It needs no network, and a broken link stops it.

The pages are those that are read on GitHub: README.md, what stands beside it, docs/, and what is said of the
examples and of each integration.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENTRY = "README.md"
BESIDE = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
TARGET = re.compile(r"(?<=\]\()([^)#\s]+)")


def main(site: Path) -> int:
    """Build into a folder, which is made anew; return the exit status of the generator."""
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder) / "docs"
        shutil.copytree(ROOT / "docs", pages)
        for name in (ENTRY, *BESIDE):
            text = TARGET.sub(_flattened, (ROOT / name).read_text())
            (pages / ("index.md" if name == ENTRY else name)).write_text(text)
        for page in (ROOT / "docs").glob("*.md"):
            (pages / page.name).write_text(TARGET.sub(_flattened, page.read_text()))
        for page in (*ROOT.glob("examples/README.md"), *ROOT.glob("integrations/*/README.md")):
            copy = pages / page.relative_to(ROOT)
            copy.parent.mkdir(parents=True)
            copy.write_text(TARGET.sub(_below, page.read_text()))
        shutil.copy(ROOT / "zensical.toml", folder)
        built = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=folder, check=False
        )
        shutil.rmtree(site, ignore_errors=True)
        if built.returncode == 0:
            shutil.copytree(Path(folder) / "site", site)
        return built.returncode


def _flattened(found: re.Match[str]) -> str:
    """Return a link as it is where all pages stand in one folder."""
    target = found[1].removeprefix("docs/").removeprefix("../")
    return "index.md" if target == ENTRY else target


def _below(found: re.Match[str]) -> str:
    """Return a link of a page that stands in a folder of its own also there."""
    return found[1].replace("../docs/", "../").replace(f"../{ENTRY}", "../index.md")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
