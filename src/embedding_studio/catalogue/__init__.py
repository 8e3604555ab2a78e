"""Where objects come from: a user's own files, or the documentation of installed Python packages."""

from embedding_studio.catalogue.files import read_catalogue
from embedding_studio.catalogue.python_documentation import read_python_documentation
from embedding_studio.catalogue.text import CatalogueText

__all__ = ["CatalogueText", "read_catalogue", "read_python_documentation"]
