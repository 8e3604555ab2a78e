"""The types of the client, as docs/python-client.md has it; mypy reads this, nothing runs it."""

from typing import assert_type

from embedding_studio import AsyncClient, CatalogueText, Client
from embedding_studio.client import EventReceipt, FoundObject, FoundPage, Indexed, StoredObject
from embedding_studio.domain.explanations import Explanation


def the_loop() -> None:
    with Client("http://localhost:8000", collection="films") as client:
        assert_type(client, Client)
        assert_type(client.upsert([{"object_id": "a", "text": "b"}, CatalogueText("b", "c")]), Indexed)
        page = client.search("warm coat", user_id="ada", create_session=True, explain=True)
        assert_type(page, FoundPage)
        assert_type(page.results[0], FoundObject)
        assert_type(page.results[0].explanation, Explanation | None)
        assert_type(client.click(page.session_id, "coat-1"), EventReceipt)
        assert_type(list(client.scroll()), list[StoredObject])
        assert_type(client.drop_alias("live"), None)


async def the_loop_concurrently() -> None:
    async with AsyncClient("http://localhost:8000") as client:
        page = await client.search("warm coat", user_id="ada", create_session=True)
        assert_type(page, FoundPage)
        assert_type(await client.click(page.session_id, "coat-1"), EventReceipt)
        async for each in client.scroll():
            assert_type(each, StoredObject)
