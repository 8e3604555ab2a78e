import numpy as np
import pytest

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.sessions import (
    DEFAULT_EVENT_WEIGHTS,
    RecordedSession,
    SearchResultItem,
    Session,
    SessionEvent,
)
from embedding_studio.errors import EmbeddingError, SessionRefusedError
from embedding_studio.feedback.inputs import embed_queries, improvement_input, objects_of

D = 3
INDEX = SearchIndexInfo(dimensions=D)
ORIGINALS = {f"o{i}": np.full((1 + i % 2, D), i + 1, dtype=np.float32) for i in range(7)}
QUERY = np.ones((2, D), dtype=np.float32)


def recorded(
    shown: str = "", clicked: str = "", *, kinds: dict[str, str] | None = None, query=QUERY, text: str = ""
) -> RecordedSession:
    """Return a session that showed and got clicks on objects, each named by a digit."""
    events = {**dict.fromkeys(clicked, "click"), **(kinds or {})}
    session = Session(
        session_id="s",
        user_id="ann",
        search_query=text,
        created_at=100,
        search_results=tuple(SearchResultItem(object_id=f"o{i}") for i in shown),
        events=tuple(
            SessionEvent(session_id="s", object_id=f"o{i}", event_type=kind, created_at=101)
            for i, kind in events.items()
        ),
    )
    return RecordedSession(session, query)


def input_of(session: RecordedSession, originals=ORIGINALS):
    return improvement_input(session, originals, INDEX, DEFAULT_EVENT_WEIGHTS)


def weights(elements) -> dict[str, float]:
    return {element.id: element.weight for element in elements}


def test_what_was_passed_over_weighs_less_the_further_down_it_stood():
    learnt = input_of(recorded("4210", "1"))

    assert weights(learnt.clicked_elements) == {"o1": 1.0}
    assert weights(learnt.non_clicked_elements) == {"o4": 1.0, "o2": 1 / 2, "o0": 1 / 4}
    assert (learnt.session_id, learnt.user_id, learnt.query.id) == ("s", "ann", "s")
    np.testing.assert_array_equal(learnt.query.vector, QUERY)


def test_every_element_carries_its_originals_and_no_copy_of_them():
    learnt = input_of(recorded("4210", "1"))

    for element in learnt.clicked_elements + learnt.non_clicked_elements:
        assert element.vector is ORIGINALS[element.id]


def test_an_event_weighs_as_its_type_says_and_a_view_is_no_click():
    learnt = input_of(
        recorded("012345", kinds={"0": "view", "1": "click", "2": "purchase", "3": "impression"})
    )

    assert weights(learnt.clicked_elements) == {"o1": 1.0, "o2": 3.0}
    assert weights(learnt.non_clicked_elements) == {"o0": 1.0, "o3": 1 / 4, "o4": 1 / 5, "o5": 1 / 6}


def test_a_click_outside_the_results_is_left_out():
    assert weights(input_of(recorded("012", "15")).clicked_elements) == {"o1": 1.0}


def test_deleted_objects_are_left_out_and_the_others_keep_their_positions():
    originals = {name: parts for name, parts in ORIGINALS.items() if name not in {"o0", "o3"}}

    learnt = input_of(recorded("0123", "13"), originals)

    assert weights(learnt.clicked_elements) == {"o1": 1.0}
    assert weights(learnt.non_clicked_elements) == {"o2": 1 / 3}


def test_an_object_shown_twice_stands_where_it_was_shown_first():
    learnt = input_of(recorded("20210", "1"))

    assert weights(learnt.non_clicked_elements) == {"o2": 1.0, "o0": 1 / 2}


def test_a_session_without_results_says_what_was_clicked_and_nothing_of_what_was_not():
    learnt = input_of(recorded("", "13"))

    assert weights(learnt.clicked_elements) == {"o1": 1.0, "o3": 1.0}
    assert learnt.non_clicked_elements == ()


def test_a_session_in_which_all_was_clicked_has_nothing_passed_over():
    assert input_of(recorded("01", "01")).non_clicked_elements == ()


@pytest.mark.parametrize(
    ("session", "says"),
    [
        (recorded("012"), "no clicks"),
        (recorded("012", "5"), "none of the objects clicked was among the results"),
        (recorded("0129", "9"), "none of the objects clicked exists any more"),
        (recorded("", "9"), "none of the objects clicked exists any more"),
        (recorded("012", "1", query=None), "neither a query text nor query vectors"),
        (recorded("012", "1", query=None, text="shoes"), "no embedder"),
        (recorded("012", "1", query=np.full((1, D), np.nan, np.float32)), "not finite"),
        (recorded("012", "1", query=np.zeros((1, D), np.float32)), "zero"),
        (recorded("012", "1", query=np.ones((1, D + 1), np.float32)), "dimensions"),
    ],
)
def test_a_session_of_which_nothing_usable_is_left_is_refused_with_the_reason(session, says):
    with pytest.raises(SessionRefusedError, match=says):
        input_of(session)


def test_the_originals_that_are_needed_are_those_shown_or_clicked_where_nothing_was_shown():
    sessions = [recorded("01", "15").session, recorded("", "46").session]

    assert objects_of(sessions, DEFAULT_EVENT_WEIGHTS) == {"o0", "o1", "o4", "o6"}


class WordEmbedder:
    """Gives each word the number of its letters; knows neither ``refused`` nor anything when it is down."""

    name = "words"
    dimensions = 1

    def __init__(self, *, is_down: bool = False) -> None:
        self.is_down = is_down
        self.asked: list[list[str]] = []

    def embed(self, texts, **_):
        self.asked.append(list(texts))
        if self.is_down or "refused" in texts:
            raise EmbeddingError("no answer" if self.is_down else "a refused text")
        return np.array([[len(text)] for text in texts], dtype=np.float32)

    def split(self, text):
        return text.split()


def test_queries_are_embedded_in_one_batch_each_with_all_its_parts():
    embedder = WordEmbedder()

    vectors, reasons = embed_queries(embedder, {"a long text", "shoes"})

    assert {text: parts.ravel().tolist() for text, parts in vectors.items()} == {
        "a long text": [1, 4, 4],
        "shoes": [5],
    }
    assert reasons == {}
    assert len(embedder.asked) == 1


def test_a_text_that_cannot_be_embedded_leaves_the_others_their_vectors():
    vectors, reasons = embed_queries(WordEmbedder(), {"boots", "refused", "shoes", "zebra"})

    assert vectors.keys() == {"boots", "shoes", "zebra"}
    assert {text: str(why) for text, why in reasons.items()} == {"refused": "a refused text"}


def test_an_embedder_that_is_down_is_not_asked_for_every_text():
    embedder = WordEmbedder(is_down=True)

    vectors, reasons = embed_queries(embedder, {f"text{i}" for i in range(50)})

    assert (vectors, len(reasons), set(map(str, reasons.values()))) == ({}, 50, {"no answer"})
    assert len(embedder.asked) == 3
