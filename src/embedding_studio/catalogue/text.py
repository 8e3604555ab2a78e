from dataclasses import dataclass, field

from embedding_studio.domain.objects import JSON


@dataclass(frozen=True, slots=True)
class CatalogueText:
    """An object before it has vectors.

    Attributes:
        text: what is embedded; may be empty, and is then nothing to search for.
    """

    object_id: str
    text: str
    payload: JSON = field(default_factory=dict)
