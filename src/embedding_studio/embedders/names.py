"""How a model is named: in the setting, in what a collection records, and in messages."""

import json
import re

from embedding_studio.domain.objects import Collection

MINILM = "all-MiniLM-L6-v2"
"""The model that is used where nothing else is set: 384 dimensions, parts of 254 tokens."""

ENDPOINT = re.compile(r"openai:(?P<model>.+?)@(?P<base_url>https?://.+)")
"""The setting for a model behind an endpoint."""

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<rest>.*)", re.IGNORECASE)
_PROMPTED = " with document prompt "


def without_secrets(text: str) -> str:
    """Return a URL, or a setting that ends in one, without what may be secret in it: user, password, query.

    >>> without_secrets("openai:tiny@https://ann:secret@host:8000/v1?key=secret")
    'openai:tiny@https://host:8000/v1'
    >>> without_secrets("https://ann:sec/ret@host/v1")
    'https://***'
    >>> without_secrets("openai:tiny@ann:secret@host/v1")
    'openai:tiny@***@host/v1'
    """

    def shown(url: re.Match[str]) -> str:
        place = re.sub(r"[?#].*", "", re.sub(r"^[^/?#]*@", "", url["rest"]))
        return url["scheme"] + ("***" if "@" in place else place)

    return _URL.sub(shown, text, count=1) if _URL.search(text) else re.sub(r"@.*@", "@***@", text)


def without_address(name: str) -> str:
    """Return the name of a model behind an endpoint; others are returned as they are.

    >>> without_address("openai:tiny@https://host:8000/v1")
    'openai:tiny'
    """
    found = ENDPOINT.fullmatch(name)
    return f"openai:{found['model']}" if found else name


def with_prompt(name: str, document_prompt: str) -> str:
    r"""Return the name of a model whose documents are embedded behind a prompt, as no others are.

    The prompt of queries is no part of it: it may be changed, and what is embedded stays of use.

    >>> with_prompt("openai:e5", "passage: ")
    'openai:e5 with document prompt "passage: "'
    >>> with_prompt("openai:tiny", "")
    'openai:tiny'
    """
    return name + _PROMPTED + json.dumps(document_prompt, ensure_ascii=False) if document_prompt else name


def without_prompt(name: str) -> str:
    """Return the name of the model alone.

    >>> without_prompt('openai:e5 with document prompt "passage: "')
    'openai:e5'
    """
    return name.partition(_PROMPTED)[0]


def prompt_of(name: str) -> str:
    """Return what is put before each text, quoted; "" for nothing.

    >>> prompt_of('openai:e5 with document prompt "passage: "')
    '"passage: "'
    """
    return name.partition(_PROMPTED)[2]


def is_called(name: str, given: str) -> bool:
    """Return whether ``given``, which may be the setting or leave out prompts, names the model of this name.

    >>> is_called("sentence-transformers:all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
    True
    >>> is_called('openai:e5 with document prompt "passage: "', "openai:e5@http://host/v1")
    True
    """
    model = without_prompt(name)
    local = f"sentence-transformers:{given.removeprefix('sentence-transformers/')}"
    return given in (name, model) or model in (local, without_address(given))


def mismatch(collection: Collection, embedder: str) -> str:
    """Return why an embedder of this name cannot serve a collection, and what to do."""
    if without_prompt(collection.embedder or "") == without_prompt(embedder):
        return mismatch_of_prompts(collection, embedder)
    return (
        f"{_named(collection, embedder)}; set EMBEDDER to the first, or index into a new collection. If both "
        f"are one model, `embedding-studio collections rename-embedder {collection.name}` says so"
    )


def mismatch_of_prompts(collection: Collection, embedder: str) -> str:
    """Return the same for one that puts something else before each text."""
    prompt = prompt_of(collection.embedder or "") or '""'
    return (
        f"{_named(collection, embedder)}, which puts something else before each text; set "
        f"EMBEDDER_DOCUMENT_PROMPT={prompt} to go on as it was, or index into a new collection"
    )


def _named(collection: Collection, embedder: str) -> str:
    return (
        f"the collection {collection.name!r} was embedded by {collection.embedder!r}, and the embedder here "
        f"is {embedder!r}"
    )
