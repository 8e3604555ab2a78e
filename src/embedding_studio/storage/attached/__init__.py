"""Collections whose objects another system keeps, or finds: where those of each are, and what that asks for.

An engine (``engines``) is a store as it is, a table or an index of another product. Of one that is only ever
read a base index is made (``objects``); one that has a copy is filled (``filling``).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.domain.objects import JSON, Attachment, CatalogueObject, Collection, Neighbour
from embedding_studio.errors import AttachedUnavailableError, CollectionNotFoundError, ConflictError
from embedding_studio.storage.attached.engines import Examined
from embedding_studio.storage.attached.filling import Backlog, Filling
from embedding_studio.storage.attached.objects import AttachedObjects
from embedding_studio.storage.elsewhere import digest_of
from embedding_studio.storage.ports import BaseIndex, CodesInfo, Storage, Vectors

RECONCILED_AT_ONCE = 1000
"""Objects whose originals are compared at once."""


class Noticing(Protocol):
    """What is kept of the originals that something was learnt from: ``Personal`` has it."""

    def notice(self, collection: Collection, digests: Mapping[str, str | None]) -> list[str]: ...


class ByCollection:
    """A base index in which each collection's objects are where it says.

    What is read of an attached store to learn from is noticed: a copy of a user is of the original that was.

    Args:
        own: of those that are attached to nothing.
        opened: makes the base index of a store; asked once for each address and kind.
        filling: of those collections that another engine finds.
    """

    def __init__(
        self,
        own: BaseIndex,
        noticing: Noticing,
        opened: Callable[[Attachment], AttachedObjects],
        filling: Filling,
    ) -> None:
        self.own = own
        self.filling = filling
        self._noticing = noticing
        self._opened = opened

    def of(self, collection: Collection) -> BaseIndex:
        """Return the base index that has the objects of a collection."""
        return self.own if collection.attached is None else self._opened(collection.attached)

    def examined(self, collection: Collection) -> Examined | None:
        """Return what an operator sees of what another system finds; None: of what is found here."""
        if collection.filled is not None:
            return self.filling.examined(collection)
        return None if collection.attached is None else self._opened(collection.attached).examined(collection)

    def found(self, wanted: Attachment, metric: MetricType | None) -> tuple[Attachment, SearchIndexInfo]:
        """Return what to attach a collection to, as ``Engine.found``."""
        return self._opened(wanted).found(wanted, metric)

    def upsert(self, collection: Collection, objects: Sequence[CatalogueObject]) -> None:
        try:
            self.of(collection).upsert(collection, objects)
        finally:  # of what is stored by thousands, the first may be
            self._deliver(collection, 2 * len(objects))

    def update_payloads(self, collection: Collection, payloads: Mapping[str, JSON]) -> list[str]:
        absent = self.of(collection).update_payloads(collection, payloads)
        self._deliver(collection, len(payloads))
        return absent

    def delete(self, collection: Collection, object_ids: Sequence[str]) -> int:
        deleted = self.of(collection).delete(collection, object_ids)
        self._deliver(collection, len(object_ids))
        return deleted

    def _deliver(self, collection: Collection, changes: int) -> None:
        if collection.filled is not None:
            self.filling.deliver(collection, changes=changes)

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        return self.of(collection).get(collection, object_ids)

    def originals(self, collection: Collection, object_ids: Iterable[str]) -> dict[str, Vectors]:
        asked = set(object_ids)
        found = self.of(collection).originals(collection, asked)
        if collection.attached is not None and asked:
            self._noticing.notice(collection, _digests(asked, found))
        return found

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None = None,
        limit: int = 1000,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
    ) -> list[CatalogueObject]:
        return self.of(collection).scroll(collection, after=after, limit=limit, filter=filter)

    def content_hashes(self, collection: Collection, object_ids: Sequence[str]) -> dict[str, str]:
        return self.of(collection).content_hashes(collection, object_ids)

    def count(self, collection: Collection) -> int:
        return self.of(collection).count(collection)

    def nearest(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        filter: PayloadFilter | None = None,  # noqa: A002, the port's name
        max_distance: float | None = None,
        margin: float | None = None,
    ) -> list[Neighbour]:
        if collection.filled is not None and margin != math.inf:
            return self.filling.nearest(
                collection, queries, limit, payload_filter=filter, max_distance=max_distance
            )
        return self.of(collection).nearest(
            collection, queries, limit, filter=filter, max_distance=max_distance, margin=margin
        )

    def codes(self, collection: Collection) -> CodesInfo:
        return self.of(collection).codes(collection)

    def set_margin(self, collection: Collection, margin: float | None) -> None:
        self.of(collection).set_margin(collection, margin)


def create_collection(
    storage: Storage,
    name: str,
    index: SearchIndexInfo,
    *,
    embedder: str | None = None,
    gate_threshold: float | None = None,
    fill: str | None = None,
) -> Collection:
    """Return as ``Collections.create``.

    Args:
        fill: the name of a store that is to find its objects, in which it is made, too.

    Raises:
        InvalidInputError: the store cannot be filled, or not with such a collection.
        ConflictError: the name is taken, here or there, by something else.
        AttachedUnavailableError: the store does not answer.
    """
    filled = None
    if fill is not None:
        if not isinstance(storage.objects, ByCollection):
            raise ConflictError("this storage has a base index of its own; fill one beside PostgreSQL's")
        try:
            there = storage.collections.get(name).filled
        except CollectionNotFoundError:
            filled = storage.objects.filling.make(Collection(0, name, index), fill)
        else:  # which is as it is asked for, or refused
            filled = there if there and there.store == fill else Attachment("", name, fill)
    return storage.collections.create(
        name, index, embedder=embedder, gate_threshold=gate_threshold, filled=filled
    )


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How many objects that something was learnt from have another original by now, or none."""

    changed: int
    gone: int


def reconcile(
    storage: Storage, collection: Collection, *, is_over: Callable[[], bool] = lambda: False
) -> Reconciled:
    """Compare the originals that something was learnt from with what they are in the attached store now.

    Copies of those that changed or went are dropped, and the users who met them are marked.

    Args:
        is_over: asked between batches.
    """
    changed = gone = 0
    after: str | None = None
    while not is_over() and (
        known := storage.personal.noticed(collection, after=after, limit=RECONCILED_AT_ONCE)
    ):
        after = max(known)
        found = {each.object_id: each.parts for each in storage.objects.get(collection, list(known))}
        news = storage.personal.notice(collection, _digests(known, found))
        changed += len([each for each in news if each in found])
        gone += len([each for each in news if each not in found])
    return Reconciled(changed, gone)


def backlog_of(storage: Storage) -> list[Backlog]:
    """Return what has not been sent to each engine that is filled."""
    return storage.objects.filling.backlog() if isinstance(storage.objects, ByCollection) else []


def count_if_known(storage: Storage, collection: Collection) -> int | None:
    """Return how many objects a collection has; None: another system keeps them, and does not answer."""
    try:
        return storage.objects.count(collection)
    except AttachedUnavailableError:
        return None


def current_copies(
    storage: Storage, collection: Collection, user_id: str, object_ids: Sequence[str]
) -> dict[str, Vectors]:
    """Return the user's own vectors of those objects that are what they were when these were learnt."""
    if collection.attached is None:
        return storage.personal.copies(collection, user_id, object_ids)
    # In this order: copies of what is noticed later are either of that, or gone.
    made_of = storage.personal.noticed(collection, among=object_ids)
    copies = storage.personal.copies(collection, user_id, object_ids)
    there = {each.object_id: digest_of(each.parts) for each in storage.objects.get(collection, list(copies))}
    return {each: parts for each, parts in copies.items() if there.get(each, "") == made_of.get(each)}


def _digests(asked: Iterable[str], found: Mapping[str, Vectors]) -> dict[str, str | None]:
    return {each: digest_of(found[each]) if each in found else None for each in asked}
