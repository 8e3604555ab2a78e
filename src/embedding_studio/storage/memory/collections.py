"""Collections in memory."""

from dataclasses import replace

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import (
    Attachment,
    Collection,
    OwnPast,
)
from embedding_studio.domain.storable import check_id
from embedding_studio.errors import CollectionNotFoundError, ConflictError, InvalidInputError
from embedding_studio.storage.memory.state import State, Tables
from embedding_studio.storage.memory.votes import Votes


class MemoryCollections:
    def __init__(self, state: State) -> None:
        self._state = state

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
        check_id(name, "the name of a collection")
        if index.dimensions is None:
            raise InvalidInputError(
                f"collection {name!r} needs to know its dimensions; give index.dimensions"
            )
        with self._state.lock:
            if name in self._state.aliases:
                raise ConflictError(f"{name!r} is an alias; choose another name for the collection")
            tables = self._state.schemas.get(name)
            number = tables.collection.collection_id if tables else next(self._state.numbers)
            own_past = tables.collection.own_past if tables else None
            if tables is not None and gate_threshold is None:
                gate_threshold = tables.collection.gate_threshold
            hashed_as = tables.collection.hashed_as if tables else None
            filled = filled or (tables.collection.filled if tables else None)
            wanted = Collection(
                number, name, index, embedder, gate_threshold, own_past, hashed_as, attached, filled
            )
            if tables is None:
                self._state.schemas[name] = Tables(wanted, Votes(self._state.shared_half_life))
            elif tables.collection != wanted:
                raise tables.collection.conflict(wanted)
            return wanted

    def get(self, name: str) -> Collection:
        check_id(name, "the name of a collection")
        with self._state.lock:
            return self._state.named(name).collection

    def seen(self, name: str) -> Collection:
        return self.get(name)

    def list(self) -> list[Collection]:
        with self._state.lock:
            return [tables.collection for _, tables in sorted(self._state.schemas.items())]

    def aliases(self) -> dict[str, str]:
        with self._state.lock:
            return dict(self._state.aliases)

    def set_gate_threshold(self, name: str, gate_threshold: float | None) -> Collection:
        with self._state.lock:
            tables = self._state.named(name)
            tables.collection = replace(tables.collection, gate_threshold=gate_threshold)
            return tables.collection

    def set_own_past(self, name: str, own_past: OwnPast | None) -> Collection:
        with self._state.lock:
            tables = self._state.named(name)
            tables.collection = replace(tables.collection, own_past=own_past)
            return tables.collection

    def rename_embedder(self, name: str, embedder: str) -> Collection:
        with self._state.lock:
            tables = self._state.named(name)
            known = tables.collection
            hashed_as = known.hashed_as or known.embedder
            tables.collection = replace(known, embedder=embedder, hashed_as=hashed_as)
            return tables.collection

    def drop(self, name: str) -> None:
        with self._state.lock:
            if name not in self._state.schemas:
                raise CollectionNotFoundError(
                    f"there is no collection {name!r} to drop (an alias is not one)"
                )
            self._state.wait_for_folds_of_collection(self._state.schemas[name].collection)
            self._state.schemas.pop(name, None)
            aliases = self._state.aliases
            self._state.aliases = {alias: stands for alias, stands in aliases.items() if stands != name}

    def set_alias(self, alias: str, name: str) -> None:
        check_id(alias, "an alias")
        with self._state.lock:
            if alias in self._state.schemas:
                raise ConflictError(f"{alias!r} is a collection; choose another name for the alias")
            left = self._state.aliases.get(alias)
            self._state.aliases[alias] = stands = self._state.named(name).collection.name
            if left is not None and left != stands:
                self._state.mark_left(alias, left)
            self._state.mark_everyone({alias})

    def drop_alias(self, alias: str) -> None:
        with self._state.lock:
            if alias not in self._state.aliases:
                raise CollectionNotFoundError(f"there is no alias {alias!r} to drop")
            self._state.mark_left(alias, self._state.aliases.pop(alias))

    def order_for_everyone(self, name: str) -> int:
        with self._state.lock:
            return self._state.mark_everyone(self._state.names(self._state.named(name).collection))
