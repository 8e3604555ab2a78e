"""Where objects come from: a user's own files, or the documentation of installed Python packages."""

from embedding_studio.catalogue.export import write_objects
from embedding_studio.catalogue.files import CatalogueFile
from embedding_studio.catalogue.python_documentation import read_python_documentation
from embedding_studio.catalogue.reading import OnDuplicate, Reading
from embedding_studio.catalogue.text import CatalogueText

__all__ = [
    "CatalogueFile",
    "CatalogueText",
    "OnDuplicate",
    "Reading",
    "read_python_documentation",
    "write_objects",
]
