"""The same wish in other words: deterministic, without a language model.

``carrier`` is what a user might also type, and is issued in sessions. ``shuffled`` and ``shortened``
are only ever used to measure.
"""

import hashlib
import re

import numpy as np

STOP_WORDS = frozenset(
    """
    a about above after again all also am an and any anyone are as at be been before being below between
    both but by can could did do does doing down during each few for from further had has have having he
    her here hers him his how i if in into is it its itself just may me might more most must my no nor
    not of off on once one only or other our out over own same she should so some such than that the
    their them then there these they this those through to too under until up upon very was we were what
    when where which while who whom whose why will with would you your
    """.split()  # noqa: SIM905, a list of a hundred quoted words reads worse
)
_WORD = re.compile(r"[^\W_]+(?:[-'./][^\W_]+)*")


def carrier(text: str) -> str:
    """Return the text in a carrier phrase (p0).

    >>> carrier("flutter of thin panels .")
    'i am looking for information about flutter of thin panels'
    """
    return f"i am looking for information about {text.strip(' .?!')}"


def shuffled(text: str) -> str | None:
    """Return the content words in another order (p1); None if there are fewer than two.

    >>> shuffled("what is the flutter of thin panels .")
    'panels flutter thin'
    >>> shuffled("the apples") is None
    True
    """
    words = content_words(text)
    if len(words) < 2:
        return None
    order = _generator(text).permutation(len(words))
    if (order == np.arange(len(words))).all():
        order = order[::-1]
    return " ".join(words[slot] for slot in order)


def shortened(text: str) -> str | None:
    """Return the text without one of its content words (p2); None if it has fewer than two.

    >>> shortened("what is the flutter of thin panels .")
    'what is the flutter of panels .'
    """
    places = [word for word in _WORD.finditer(text) if word.group().lower() not in STOP_WORDS]
    if len(places) < 2:
        return None
    dropped = places[int(_generator(text).integers(len(places)))]
    return " ".join((text[: dropped.start()] + text[dropped.end() :]).split())


def content_words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text) if word.lower() not in STOP_WORDS]


def _generator(text: str) -> np.random.Generator:
    """Return a generator that depends on the text alone, so a text has one paraphrase under every seed."""
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()[:8]))
