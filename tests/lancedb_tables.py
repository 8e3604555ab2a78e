"""Tables of LanceDB as somebody had them before, made by its own library."""

from datetime import timedelta

import lancedb
import numpy as np
import pyarrow as pa

METRICS = {"cosine": "cosine", "dot": "dot", "euclid": "l2"}


class Tables:
    """The tables of one folder; ``url`` is its address for ATTACHED_STORES."""

    kind = "LanceDB's table"

    def __init__(self, folder):
        self.database = lancedb.connect(folder)
        self.url = f"lancedb://{folder}"

    def create(self, name, metric, points, index=lancedb.index.HnswSq):
        """Make a table of points, (number, vector, payload) each, whose payloads have the same fields."""
        rows = [{"id": k, "embedding": vector, **payload} for k, vector, payload in points]
        D = len(points[0][1])
        table = self.database.create_table(name, with_vectors(pa.Table.from_pylist(rows), "embedding", D))
        if index is not None:
            config = index(distance_type=METRICS[metric], num_partitions=1)
            table.create_index("embedding", config=config, wait_timeout=timedelta(seconds=60))
        return name

    def put(self, name, point):
        k, vector, payload = point
        self.delete(name, k)
        self.database.open_table(name).add([{"id": k, "embedding": np.float32(vector), **payload}])

    def delete(self, name, k):
        self.database.open_table(name).delete(f"id = {k}")

    def drop(self, name):
        self.database.drop_table(name)


def with_vectors(rows, name, dimensions, kind=None):
    """Return a table of Arrow in which a column is of vectors."""
    at = rows.schema.get_field_index(name)
    column = rows[name].combine_chunks().cast(pa.list_(kind or pa.float32(), dimensions))
    return rows.set_column(at, name, column)
