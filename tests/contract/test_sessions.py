"""Sessions as they are recorded, continued and judged irrelevant."""

import numpy as np
import pytest

from contract.conftest import (
    ACCEPTED,
    CONTINUED,
    DONE,
    PENDING,
    claimed,
    click,
    clicked,
    event,
    index,
    place,
    recorded,
    search,
    settle,
    vectors,
)
from embedding_studio.domain.sessions import (
    FurtherPage,
    RecordedSession,
    SearchRequest,
    SearchResultItem,
    Session,
    SessionDisposition,
)
from embedding_studio.errors import (
    CollectionNotFoundError,
    ConflictError,
    OrderNotFoundError,
    SessionNotFoundError,
)


def test_a_session_comes_back_as_it_was_registered(storage, films):
    session = Session(
        session_id="s1",
        search_query="größe 靴 'or' \"so\"",
        user_id="ann",
        created_at=100,
        collection="films",
        search_results=(
            SearchResultItem(
                object_id="b", rank=0.1, meta={"shelf": [1, None]}, personalised=True, propensity=0.1
            ),
            SearchResultItem(object_id="a", rank=-3.5),
            SearchResultItem(object_id="z"),
        ),
        search_meta={"page": {"size": 3}},
        events=(event("s1", "a", meta={"dwell": 2.5}), event("s1", "b", "view", at=99)),
    )

    storage.clickstream.register_session(session)

    back = storage.clickstream.get_session("s1")
    assert back == session.model_copy(update={"events": session.events[::-1]})
    assert [result.position for result in back.search_results] == [1, 2, 3]
    assert storage.orders.get("s1").status is PENDING


def test_results_come_by_position_whatever_the_order_they_were_given_in(storage, films):
    results = [SearchResultItem(object_id=i, position=p) for i, p in [("c", 30), ("a", 10), ("b", 20)]]

    search(storage, "s1", search_results=tuple(results))

    shown = storage.clickstream.get_session("s1").search_results
    assert [(result.object_id, result.position) for result in shown] == [("a", 10), ("b", 20), ("c", 30)]


def test_events_come_by_time_and_then_by_id(storage, films):
    search(storage, "s1")
    told_events = [("e3", 102), ("e1", 102), ("e2", 101), ("E4", 102)]

    storage.clickstream.push_events([event("s1", at=at, event_id=event_id) for event_id, at in told_events])

    events = storage.clickstream.get_session("s1").events
    assert [e.event_id for e in events] == ["e2", "E4", "e1", "e3"]


def test_the_same_session_again_changes_nothing(storage, films):
    session = search(storage, "s1", events=(event("s1", "b"),))
    click(storage, "s1", "a")
    settle(storage)
    before = storage.clickstream.get_session("s1")

    storage.clickstream.register_session(session, vectors([1, 0, 0]))

    assert storage.clickstream.get_session("s1") == before
    assert storage.orders.get("s1").status is DONE


@pytest.mark.parametrize(
    "other", [{"user_id": "bob"}, {"user_id": None}, {"search_query": "?"}, {"collection": "best"}]
)
def test_an_id_that_is_taken_by_another_session_is_a_conflict(storage, films, other):
    storage.collections.set_alias("best", "films")
    session = search(storage, "s1")

    with pytest.raises(ConflictError, match="s1"):
        storage.clickstream.register_session(session.model_copy(update=other))

    assert storage.clickstream.get_session("s1") == session


def test_a_session_in_an_unknown_collection_is_refused(storage):
    with pytest.raises(CollectionNotFoundError, match="films"):
        search(storage, "s1")

    with pytest.raises(SessionNotFoundError):
        storage.clickstream.get_session("s1")


def test_a_session_under_an_alias_keeps_the_name_it_was_recorded_under(storage, films):
    storage.collections.set_alias("best", "films")

    search(storage, "s1", collection="best")

    assert storage.clickstream.get_session("s1").collection == "best"


def test_a_session_under_an_alias_is_continued_under_any_name_of_its_collection(storage, films):
    storage.collections.set_alias("best", "films")
    storage.collections.create("books", films.index)
    search(storage, "s1", collection="best")
    first = storage.clickstream.get_session("s1")

    became = storage.clickstream.record(
        [
            RecordedSession(first.model_copy(update={"collection": name}))
            for name in ("films", "best", "books")
        ]
    )

    assert [each.disposition for each in became] == [CONTINUED, CONTINUED, SessionDisposition.TAKEN]
    assert storage.clickstream.get_session("s1") == first


def test_a_session_that_was_never_registered_is_not_found(storage):
    with pytest.raises(SessionNotFoundError, match="s1"):
        storage.clickstream.get_session("s1")
    with pytest.raises(SessionNotFoundError, match="s1"):
        storage.clickstream.append_results("s1", [SearchResultItem(object_id="a")])
    with pytest.raises(SessionNotFoundError, match="s1"):
        storage.clickstream.mark_irrelevant("s1")
    with pytest.raises(SessionNotFoundError, match="s1"):
        place(storage, "s1")


def test_a_further_page_keeps_the_positions_of_what_was_shown(storage, films):
    search(storage, "s1", shown="ab")

    page = [SearchResultItem(object_id=i, position=p, rank=0.5) for i, p in [("b", 3), ("c", 4), ("d", 5)]]
    storage.clickstream.append_results("s1", page)

    shown = storage.clickstream.get_session("s1").search_results
    assert [(result.object_id, result.position) for result in shown] == [
        ("a", 1),
        ("b", 2),
        ("c", 4),
        ("d", 5),
    ]
    assert shown[1].rank is None


def test_a_session_keeps_of_each_further_page_its_request_its_time_and_what_was_new_there(storage, films):
    first, second, other = (SearchRequest(limit=2, offset=k, settings=str(k)) for k in (0, 2, 4))

    def page_of(request, shown, at):
        return FurtherPage(request=request, created_at=at, object_ids=tuple(shown))

    def showing(shown, at, request=first, pages=()):
        return recorded("s1", shown=shown, at=at, request=request, pages=pages)

    storage.clickstream.record([showing("ab", 100)])
    for shown, at in (("cd", 101), ("dc", 102)):  # the second time nothing is new
        page = page_of(second, shown, at)
        storage.clickstream.append_results("s1", [SearchResultItem(object_id=i) for i in shown], page)
    storage.clickstream.append_results("s1", [SearchResultItem(object_id="e")])  # by whom is not known
    storage.clickstream.record([showing("fa", 103), showing("gf", 104, request=None)])
    storage.clickstream.record(
        [showing("hij", 105, pages=[page_of(other, "ai", 99), page_of(other, "i", 98)])]
    )

    session = storage.clickstream.get_session("s1")
    assert session.request == first
    assert session.pages == (
        page_of(second, "cd", 101),
        page_of(first, "f", 103),
        page_of(other, "i", 99),
        page_of(first, "hj", 105),
    )
    assert sorted(result.object_id for result in session.search_results) == [*"abcdefghij"]
    [of_log] = storage.clickstream.scan()
    assert of_log.session.pages == session.pages
    assert session.shown_before(2, page=1) == set("abg")  # f, h and i stand there, too, and came later
    assert session.shown_before(3, page=2) == set("abcg")
    assert session.shown_before(3) == set("abcfghij")


def test_a_further_page_without_positions_goes_on_where_the_last_one_ended(storage, films):
    search(storage, "s1", shown="ab")

    storage.clickstream.append_results(
        "s1", [SearchResultItem(object_id="c"), SearchResultItem(object_id="d")]
    )

    shown = storage.clickstream.get_session("s1").search_results
    assert [(result.object_id, result.position) for result in shown] == [
        ("a", 1),
        ("b", 2),
        ("c", 3),
        ("d", 4),
    ]


def test_a_click_on_the_second_page_is_accepted(storage, films):
    search(storage, "s1", shown="ab")
    storage.clickstream.append_results("s1", [SearchResultItem(object_id="c")])

    assert click(storage, "s1", "c") is ACCEPTED


def test_sessions_are_recorded_many_at_once_with_what_was_done_in_them(storage, films):
    given = [
        recorded("s1", done=[event("s1", "b")]),
        recorded("s2", None, shown="", query=None),
        recorded("s3", "bob", shown="ca", done=[event("s3", "c", "view"), event("s1", "c")]),
    ]

    became = storage.clickstream.record(given)

    assert [each.disposition for each in became] == [SessionDisposition.RECORDED] * 3
    assert [each.events for each in became] == [(ACCEPTED,), (), (ACCEPTED, ACCEPTED)]
    stored = [storage.clickstream.get_session(key) for key in ("s1", "s2", "s3")]
    assert [[(r.object_id, r.position) for r in session.search_results] for session in stored] == [
        [("a", 1), ("b", 2), ("c", 3)],
        [],
        [("c", 1), ("a", 2)],
    ]
    assert [len(session.events) for session in stored] == [2, 0, 1]
    assert claimed(storage) == ["ann"]
    assert storage.clickstream.record([]) == []


def test_a_session_that_is_recorded_again_is_continued_unless_it_is_another(storage, films):
    storage.clickstream.record([recorded("s1", shown="ab")])
    click(storage, "s1")
    settle(storage)

    became = storage.clickstream.record(
        [
            recorded("s1", shown="bc", at=999, query=(0, 1, 0), done=[event("s1", "c")]),
            recorded("s1", "bob", shown="z", done=[event("s1", "z")]),
            recorded("s2"),
            recorded("s2", shown="d"),
        ]
    )

    assert [each.disposition for each in became] == [
        SessionDisposition.CONTINUED,
        SessionDisposition.TAKEN,
        SessionDisposition.RECORDED,
        SessionDisposition.CONTINUED,
    ]
    session = storage.clickstream.get_session("s1")
    assert [(r.object_id, r.position) for r in session.search_results] == [("a", 1), ("b", 2), ("c", 2)]
    assert (session.user_id, session.created_at) == ("ann", 100)
    assert [each.object_id for each in session.events] == ["a", "c"]
    shown = storage.clickstream.get_session("s2").search_results
    assert [(r.object_id, r.position) for r in shown] == [("a", 1), ("d", 1), ("b", 2), ("c", 3)]
    assert claimed(storage) == ["ann"]


def test_recording_what_is_there_already_changes_nothing_and_marks_nobody(storage, films):
    given = [recorded("s1", done=[event("s1", event_id="e1")]), recorded("s2", "bob")]
    storage.clickstream.record(given)
    settle(storage)
    before = list(map(storage.clickstream.get_session, ["s1", "s2"]))

    became = storage.clickstream.record(given)

    assert [each.disposition for each in became] == [CONTINUED, CONTINUED]
    assert list(map(storage.clickstream.get_session, ["s1", "s2"])) == before
    assert claimed(storage) == []


@pytest.mark.parametrize("number", [1, 2])
def test_nothing_is_recorded_of_a_batch_with_an_unknown_collection(storage, films, number):
    given = [recorded("s2", collection="nowhere"), recorded("s1")][:number]

    with pytest.raises(CollectionNotFoundError, match="nowhere"):
        storage.clickstream.record(given)

    assert list(storage.clickstream.scan()) == []


def test_the_longest_ids_fit_into_every_index(new_postgres_storage):
    rng = np.random.default_rng(3)
    long, other, user = ("".join(map(chr, rng.integers(0x4E00, 0x9FFF, size=170))) for _ in range(3))
    with new_postgres_storage() as storage:
        storage.collections.create("films", index())

        storage.clickstream.record([recorded(long, user, shown=[other])])

        [stored] = storage.clickstream.scan()
        assert (stored.session.session_id, stored.session.user_id) == (long, user)
        with pytest.raises(ValueError, match="513 bytes"):
            recorded("s", long + "abc")


def test_an_irrelevant_session_counts_no_longer_and_its_user_is_folded_anew(storage, films):
    clicked(storage, "s1")
    clicked(storage, "s2", at=200)
    settle(storage)

    storage.clickstream.mark_irrelevant("s1")

    assert storage.clickstream.get_session("s1").is_irrelevant
    assert claimed(storage) == ["ann"]
    assert [r.session.session_id for r in storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]] == [
        "s2"
    ]


def test_marking_a_session_irrelevant_that_never_counted_places_no_order(storage, films):
    search(storage, "s1")

    storage.clickstream.mark_irrelevant("s1")

    with pytest.raises(OrderNotFoundError):
        storage.orders.get("s1")


def test_a_session_keeps_its_request(storage, films):
    request = SearchRequest(
        limit=7,
        offset=2,
        max_distance=0.5,
        filter={"query": {"term": {"field": "price", "value": 1}}},
        sort_by=("price", "descending"),
        exploration_ratio=0.1,
        settings="f00",
    )
    session = Session(session_id="s1", user_id="ann", collection="films", request=request)

    assert storage.clickstream.register_session(session) is True
    assert storage.clickstream.register_session(session.model_copy(update={"request": None})) is False
    search(storage, "s2")
    click(storage, "s1")

    assert storage.clickstream.get_session("s1").request == request
    assert storage.clickstream.get_session("s2").request is None
    [recorded] = storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]
    assert recorded.session.request == request


def test_query_vectors_come_back_with_their_session_if_they_fit_the_collection(storage, films):
    clicked(storage, "s1", query=None, at=100)
    clicked(storage, "s2", query=(1, 0.1), at=200)
    search(storage, "s3", query=None, at=300)
    several = vectors([1, 0.1, -2], [0, 3, 0])
    storage.clickstream.register_session(
        Session(session_id="s4", user_id="ann", created_at=400, collection="films"), several
    )
    click(storage, "s4")

    [s1, s2, s4] = storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]

    assert (s1.query_vectors, s2.query_vectors) == (None, None)
    assert s4.query_vectors.dtype == np.float32
    np.testing.assert_array_equal(s4.query_vectors, several)


def test_query_vectors_that_had_to_be_embedded_are_kept(storage, films):
    clicked(storage, "s1", query=None)

    with storage.personal.learning(films, ["ann"]) as transaction:
        transaction.store_query_vectors({"s1": vectors([1, 0.1, -2], [0, 3, 0])})

    [recorded] = storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]
    assert recorded.query_vectors.tolist() == vectors([1, 0.1, -2], [0, 3, 0]).tolist()
