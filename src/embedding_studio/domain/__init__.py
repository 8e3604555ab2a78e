"""Values: what the rest of the house hands around. No input or output happens here."""

DEFAULT_COLLECTION = "default"

DEFAULT_LIMIT = 10
"""Results on a page of a search."""
