"""Collections, by name: which there are, and what a name or an alias stands for."""

from typing import Protocol

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import (
    Attachment,
    Collection,
    OwnPast,
)
from embedding_studio.errors import StorageError


class OutdatedError(StorageError):
    """What a search was made of is so no longer: what a name stands for, or what is learnt about a user."""


class Collections(Protocol):
    def create(
        self,
        name: str,
        index: SearchIndexInfo,
        *,
        embedder: str | None = None,
        gate_threshold: float | None = None,
        attached: Attachment | None = None,
        filled: Attachment | None = None,
    ) -> Collection:
        """Return the new collection, or the one of this name if it is the same in every respect.

        Args:
            gate_threshold: None: that of the one that is there, for it may have been tuned; else the setting.
            attached: where its objects are, if another system keeps them; it is not asked.
            filled: what finds them, if another system does, which we fill; it is not asked. None: whatever
                finds those of the one that is there.

        Raises:
            InvalidInputError: ``index.dimensions`` is not known, or the name can name nothing.
            ConflictError: the name is taken by an alias or a collection of another kind.
        """
        ...

    def get(self, name: str) -> Collection:
        """Return the collection that a name or alias stands for.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...

    def seen(self, name: str) -> Collection:
        """Return as ``get``, or as it was when this process last looked; for what looks whether it still is.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...

    def list(self) -> list[Collection]:
        """Return all collections by name."""
        ...

    def aliases(self) -> dict[str, str]:
        """Return alias -> collection name."""
        ...

    def set_gate_threshold(self, name: str, gate_threshold: float | None) -> Collection:
        """Return the collection with another threshold, which every search from now on uses.

        Args:
            gate_threshold: in [0, 1); None: the setting.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...

    def set_own_past(self, name: str, own_past: OwnPast | None) -> Collection:
        """Return the collection with other weights of a user's own past, which every search from now on uses.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...

    def rename_embedder(self, name: str, embedder: str) -> Collection:
        """Return the collection with another name for the model that embedded it: the same one, so all stays.

        What its content hashes were made with is kept, so that no text is embedded again.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...

    def drop(self, name: str) -> None:
        """Remove a collection (not an alias) with its objects and all personal state in it.

        Sessions stay: they are what users did. Aliases to it go.
        """
        ...

    def set_alias(self, alias: str, name: str) -> None:
        """Let an alias stand for a collection from now on, and have its users folded again.

        The sessions recorded under the alias are folded against the collection's objects; where it stood
        for another collection before, what was learnt from them there is unlearnt.
        """
        ...

    def drop_alias(self, alias: str) -> None:
        """Let an alias stand for nothing; what was learnt under it is unlearnt.

        Raises:
            CollectionNotFoundError: there is no such alias.
        """
        ...

    def order_for_everyone(self, name: str) -> int:
        """Place an order for every user of a collection who has any, and return for how many.

        All are folded again: what is learnt depends on the settings, and these may have changed.

        Raises:
            CollectionNotFoundError: nothing has this name.
        """
        ...
