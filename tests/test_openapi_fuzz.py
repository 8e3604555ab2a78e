"""Requests made up from the OpenAPI document: no answer is a 5xx, and each is as the document says.

``make fuzz`` makes up many more.
"""

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from embedding_studio import SearchIndexInfo
from embedding_studio.api import guard
from embedding_studio.api.app import create_app
from test_api_service import letters_context

KEY = "k" * 40
EXAMPLES = 3
"""Of each operation and mode, but under the profile ``fuzz``."""

NOT_SAID_BY_A_SCHEMA = [positive_data_acceptance]
"""Vectors have the size of their collection, a query is not blank, no text has U+0000: refused, by a rule
that the document tells in words or not at all."""


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_every_answer_is_as_the_openapi_document_says(new_postgres_storage, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(
        guard, "WRONG_KEYS_AT_ONCE", 1_000_000
    )  # wrong keys are tried, more than are let pass
    with new_postgres_storage() as storage:
        context = letters_context(tmp_path, storage, admin_api_key=KEY)
        context.collection(index=SearchIndexInfo(dimensions=3))
        schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(context))
        found = list(schema.get_all_operations())
        operations = [each.ok() for each in found if isinstance(each, Ok)]
        assert len(operations) == len(found)
        for operation in operations:
            _ask(operation, mode)

    assert len(operations) > 25


def _ask(operation, mode):
    profile = hypothesis.settings()
    is_long = profile.max_examples > hypothesis.settings.get_profile("project").max_examples

    @hypothesis.settings(
        max_examples=profile.max_examples // 10 if is_long else EXAMPLES,
        deadline=None,
        database=None,
        derandomize=not is_long,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        headers = {"Authorization": f"Bearer {KEY}"}
        case.call_and_validate(headers=headers, excluded_checks=NOT_SAID_BY_A_SCHEMA)

    try:
        ask()
    except hypothesis.errors.Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # there is nothing that could be wrong with it
