"""A storage as a whole, of which any part can be replaced."""

import dataclasses

import pytest

from contract.conftest import DONE
from embedding_studio.domain.sessions import SessionEvent
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.storage.ports import Storage


def test_storage_answers_a_ping(storage):
    storage.ping()


class Counted:
    """A part of another kind, which does what the one in it does, and notes what it was asked."""

    def __init__(self, part):
        self.asked = []
        self._part = part

    def __getattr__(self, name):
        self.asked.append(name)
        return getattr(self._part, name)


@pytest.mark.parametrize("name", [part.name for part in dataclasses.fields(Storage)])
def test_any_part_of_a_storage_can_be_replaced(storage, films, name):
    part = Counted(getattr(storage, name))

    other = storage.having(**{name: part})
    page = SearchService(other).search([1, 0, 0], collection="films", user_id="ann", create_session=True)
    other.clickstream.push_events([SessionEvent(session_id=page.session_id, object_id="c")])
    Improver(other, PassiveAggressiveAdjuster).improve_once()
    again = SearchService(other).search([1, 0, 0], collection="films", user_id="ann")
    other.ping()

    assert (other.orders.counts()[DONE], other.keys.has_any(), other.quarantine.count()) == (1, False, 0)
    assert [each.object_id for each in page.results] == ["a", "b", "c"]
    assert (page.personalised, again.personalised) == (False, True)
    assert part.asked
    assert storage.orders.counts()[DONE] == 1  # the rest is shared
    others = {each.name for each in dataclasses.fields(Storage)} - {name}
    assert all(getattr(other, each) is getattr(storage, each) for each in others)


def test_a_storage_has_no_part_of_another_name(storage):
    with pytest.raises(TypeError, match="indexes"):
        storage.having(indexes=storage.objects)
