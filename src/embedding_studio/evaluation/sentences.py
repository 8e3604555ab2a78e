"""A text in parts of about equal length, cut between sentences."""

import re
from itertools import accumulate

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)")


def split_at_sentences(text: str, most_parts: int) -> list[str]:
    """Return the text in at most so many parts of about equal length; at least one.

    Each sentence goes to the part in which its middle lies when the text is cut evenly. A text without
    sentences, such as one whose punctuation was removed, stays whole.

    >>> split_at_sentences("One. Two two. Three three three. Four!", 2)
    ['One. Two two.', 'Three three three. Four!']
    """
    sentences = _SENTENCE_END.split(text)
    ends = list(accumulate(map(len, sentences)))
    parts: dict[int, list[str]] = {}
    for sentence, end in zip(sentences, ends, strict=True):
        middle = end - len(sentence) / 2
        parts.setdefault(int(most_parts * middle / max(ends[-1], 1)), []).append(sentence)
    return [" ".join(of_part) for of_part in parts.values()]
