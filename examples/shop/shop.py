"""A shop: a page of static files that asks the service by itself. See examples/README.md."""

import argparse
import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from embedding_studio import Client

FOLDER = Path(__file__).parent


def main() -> None:
    """Store the products, and serve the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--service", default="http://127.0.0.1:8000")
    options.add_argument("--port", type=int, default=8080)
    asked = options.parse_args()

    rows = [json.loads(line) for line in (FOLDER / "products.jsonl").read_text().splitlines()]
    with Client(asked.service) as client:
        client.upsert({"object_id": row["object_id"], "text": row["text"], "payload": row} for row in rows)

    handler = partial(SimpleHTTPRequestHandler, directory=str(FOLDER))
    with ThreadingHTTPServer(("127.0.0.1", asked.port), handler) as server:
        print(
            f"The shop is open at http://127.0.0.1:{server.server_port}/?service={asked.service}", flush=True
        )
        server.serve_forever()


if __name__ == "__main__":
    main()
