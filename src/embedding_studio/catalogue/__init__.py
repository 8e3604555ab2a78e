"""Where objects come from: a user's own files, or the documentation of installed Python packages."""

from embedding_studio.catalogue.export import write_objects
from embedding_studio.catalogue.files import count_rows, read_catalogue, read_payloads, read_vectors
from embedding_studio.catalogue.python_documentation import read_python_documentation
from embedding_studio.catalogue.text import CatalogueText

__all__ = [
    "CatalogueText",
    "count_rows",
    "read_catalogue",
    "read_payloads",
    "read_python_documentation",
    "read_vectors",
    "write_objects",
]
