"""Collections of a Milvus that runs somewhere, as somebody had them before, with names of each test's own."""

import uuid

from pymilvus import DataType, MilvusClient

METRICS = {"cosine": "COSINE", "dot": "IP", "euclid": "L2"}


class Collections:
    """The collections of a test; ``url`` is the address for ATTACHED_STORES."""

    kind = "Milvus's collection"

    def __init__(self, url):
        self.client = MilvusClient(url, timeout=60)
        self.url = f"milvus+{url}"
        self.prefix = f"embedding_studio_test_{uuid.uuid4().hex[:8]}_"

    def create(self, name, metric, points, index="HNSW", vector="embedding", **fields):
        """Make a collection of points, (id, vector, payload) each.

        Of a payload, no more than ``sku`` and what is given is in the schema.

        Args:
            fields: name -> type, and what else a field takes.
        """
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
        if isinstance(points[0][0], str):
            schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=1000)
        else:
            schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field(vector, DataType.FLOAT_VECTOR, dim=len(points[0][1]))
        if "sku" in points[0][2]:
            schema.add_field("sku", DataType.VARCHAR, max_length=1000)
        for field, (kind, more) in fields.items():
            schema.add_field(field, kind, **more)
        indexes = MilvusClient.prepare_index_params()
        if index is not None:
            params = {"M": 16, "efConstruction": 100} if index == "HNSW" else {}
            indexes.add_index(vector, index_type=index, metric_type=METRICS[metric], params=params)
        source = self.prefix + name
        given = {"index_params": indexes} if index is not None else {}
        self.client.create_collection(source, schema=schema, consistency_level="Eventually", **given)
        self.client.insert(source, [{"id": k, vector: list(at), **payload} for k, at, payload in points])
        self.wait(source) if index is not None else None
        return source

    def wait(self, source):
        """Wait until what was written is seen by whoever does not ask for it."""
        self.client.query(source, filter="", output_fields=["count(*)"], consistency_level="Strong")

    def put(self, source, point):
        k, vector, payload = point
        self.client.upsert(source, [{"id": k, "embedding": vector, **payload}])
        self.wait(source)

    def delete(self, source, k):
        self.client.delete(source, ids=[k])
        self.wait(source)

    def drop(self, source):
        self.client.drop_collection(source)

    def close(self):
        for source in self.client.list_collections():
            if source.startswith(self.prefix):
                self.client.drop_collection(source)
        self.client.close()
