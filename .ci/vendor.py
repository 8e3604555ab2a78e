"""Bring the JavaScript of others that the pages load into ``pages/vendor``: `make vendor`.

Archives come from the npm registry and are checked by their hashes here; versions.json has the files'.
"""

import base64
import hashlib
import io
import json
import re
import tarfile
import urllib.request
from pathlib import Path

VENDOR = Path(__file__).parent.parent / "src/embedding_studio/api/pages/vendor"
REGISTRY = "https://registry.npmjs.org"

PACKAGES = {
    ("preact", "11.2.0"): {"dist/preact.mjs": "preact.js", "hooks/dist/hooks.mjs": "hooks.js"},
    ("htm", "3.1.1"): {"dist/htm.mjs": "htm.js"},
    ("uplot", "1.6.32"): {"dist/uPlot.iife.min.js": "uplot.js", "dist/uPlot.min.css": "uplot.css"},
}
INTEGRITY = {
    "preact": "/HfHI/7N84e6GrWBJ3J280z3mLaRJiDcSvj/A+y/4AbLnND/1UlGHe1sR6oYuTGwId0nP7dqDU9OnLxMPZ7xBg==",
    "htm": "983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==",
    "uplot": "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
}
BARE = {'from"preact"': 'from"./preact.js"'}
"""Imports by name, which a browser resolves only with a map that would stand inline."""


def main() -> None:
    written = {}
    for (package, version), files in PACKAGES.items():
        archive = _fetch(f"{REGISTRY}/{package}/-/{package}-{version}.tgz")
        found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
        if found != INTEGRITY[package]:
            raise SystemExit(f"{package} {version} is not what it was: its SHA-512 is {found}")
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            licence = _read(opened, "package/LICENSE")
            named = json.loads(_read(opened, "package/package.json"))["license"]
            (VENDOR / f"{package}.LICENSE.txt").write_text(licence)
            for source, target in files.items():
                text = re.sub(r"\n?(//|/\*)# sourceMappingURL=.*", "", _read(opened, f"package/{source}"))
                for bare, relative in BARE.items():
                    text = text.replace(bare, relative)
                (VENDOR / target).write_text(text)
                written[target] = {
                    "package": package,
                    "version": version,
                    "licence": named,
                    "sha256": hashlib.sha256(text.encode()).hexdigest(),
                }
    (VENDOR / "versions.json").write_text(json.dumps(written, indent=1) + "\n")


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310, the registry's address stands above
        content: bytes = answer.read()
    return content


def _read(archive: tarfile.TarFile, name: str) -> str:
    file = archive.extractfile(name)
    assert file is not None  # noqa: S101, a name that stands above is a file
    return file.read().decode()


if __name__ == "__main__":
    main()
