"""Keys of the API, as they are kept, replaced and revoked."""

import dataclasses

import pytest

from embedding_studio.domain.keys import Scope, new_key, renewed
from embedding_studio.errors import ConflictError, KeyNotFoundError


def test_a_key_is_kept_as_it_was_made(storage):
    kept = [
        new_key("shop", [Scope.SEARCH, Scope.EVENTS], collections=["b", "a"], expires_at=9, now=7)[0],
        new_key("größe '; --", [Scope.ADMIN], now=8)[0],
        new_key("browser", [Scope.EVENTS], requires_user_token=True, now=8)[0],
    ]
    was_there_any = storage.keys.has_any()

    for each in kept:
        storage.keys.add(each)

    assert not was_there_any
    assert storage.keys.has_any()
    assert [storage.keys.get(each.key_id) for each in kept] == kept
    assert storage.keys.list() == sorted(kept, key=lambda key: (key.created_at, key.key_id))
    with pytest.raises(KeyNotFoundError, match="elsewhere234"):
        storage.keys.get("elsewhere234")


def test_a_key_that_was_revoked_stays_so_and_is_told_of(storage):
    key, _ = new_key("shop", [Scope.SEARCH], now=5)
    storage.keys.add(key)

    first, again = storage.keys.revoke(key.key_id, now=8), storage.keys.revoke(key.key_id, now=9)

    assert first == again == storage.keys.get(key.key_id) == dataclasses.replace(key, revoked_at=8)
    assert [key.status(now) for now in (7, 8)] == ["active", "active"]
    assert [first.status(now) for now in (7, 8)] == ["active", "revoked"]
    with pytest.raises(KeyNotFoundError, match="elsewhere"):
        storage.keys.revoke("elsewhere", now=9)


@pytest.mark.parametrize(("expires_at", "until"), [(None, 20), (15, 15), (30, 20)])
def test_a_key_is_good_beside_the_one_that_takes_its_place(storage, expires_at, until):
    old, _ = new_key("shop", [Scope.SEARCH], expires_at=expires_at, now=5)
    storage.keys.add(old)
    new, _ = renewed(old, now=10)

    storage.keys.replace(old.key_id, new, until=20, now=10)

    assert storage.keys.list() == [dataclasses.replace(old, expires_at=until), new]
    assert new.expires_at == (None if expires_at is None else expires_at + 5)  # as long as the old one


def test_a_key_that_ended_is_not_replaced_and_nothing_is_kept(storage):
    old, _ = new_key("shop", [Scope.SEARCH], expires_at=9, now=5)
    storage.keys.add(old)
    new, _ = renewed(old, now=10)

    with pytest.raises(ConflictError, match="expired"):
        storage.keys.replace(old.key_id, new, until=20, now=10)
    with pytest.raises(KeyNotFoundError):
        storage.keys.replace("elsewhere", new, until=20, now=10)

    assert storage.keys.list() == [old]


def test_the_use_of_a_key_is_noted_and_never_earlier_than_it_was(storage):
    key, _ = new_key("shop", [Scope.SEARCH], now=5)
    storage.keys.add(key)

    for now in (8, 7):
        storage.keys.note_use(key.key_id, now=now)
    storage.keys.note_use("elsewhere", now=9)

    assert storage.keys.list() == [dataclasses.replace(key, last_used_at=8)]
