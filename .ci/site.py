"""Build the documentation as a site: `make site`. It needs no network, and a broken link stops it.

The pages are those that are read on GitHub, in the folders in which they stand there.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("*.md", "docs/*.md", "docs/images/*.png", "examples/*.md", "integrations/*/*.md")


def main(site: Path) -> int:
    """Build into a folder, which is made again; return the exit status of the generator."""
    with tempfile.TemporaryDirectory() as folder:
        for page in (path for pattern in PAGES for path in ROOT.glob(pattern)):
            copy = Path(folder) / "pages" / page.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(page, copy)
        shutil.copy(ROOT / "zensical.toml", folder)
        built = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=folder, check=False
        )
        shutil.rmtree(site, ignore_errors=True)
        if built.returncode == 0:
            shutil.copytree(Path(folder) / "site", site)
        return built.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
