"""A database's address that cannot work is told without its password, whoever would have told it."""

import pytest

from embedding_studio.errors import EmbeddingStudioError, InvalidSettingError, StorageUnavailableError
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.postgres.address import checked_address


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:s3cret/pw@127.0.0.1:1/db",
        "postgresql://u:p@s3cret@127.0.0.1:1/db",
        "postgresql://u:5432/s3cret@127.0.0.1:1/db",
        "postgresql://u:s3cret%zz@127.0.0.1:1/db",
        "postgresql://u:%00s3cret@127.0.0.1:1/db",
        "postgresql+psycopg://u:s3cret/pw@127.0.0.1:1/db",
        "mysql://u:s3cret@127.0.0.1:1/db",
        "u:s3cret@127.0.0.1:1/db",
        "s3cret",
        "host=127.0.0.1 password=s3cret pw",
        "host=127.0.0.1 port=1 passwrd=s3cret",
        "host=127.0.0.1 password='s3cret",
        "postgresql://u:p%zz?s3cret=1&x@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?s3cret%20s3cret=1",
    ],
)
def test_an_address_that_is_none_is_told_without_any_part_of_it(address):
    with pytest.raises(InvalidSettingError, match="postgresql://USER:PASSWORD@HOST:PORT/NAME") as refused:
        PostgresStorage(address)

    error = refused.value
    assert "s3cret" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


@pytest.mark.parametrize("also", ["", "sslmode=disable&"])
def test_a_parameter_that_is_another_drivers_is_named(also):
    address = f"postgresql://u:s3cret@127.0.0.1:1/db?{also}pgbouncer=true"

    with pytest.raises(InvalidSettingError, match=r"^DATABASE_URL has the parameter pgbouncer, .*out$"):
        checked_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg://u:s3cret@127.0.0.1:1/db",
        "postgresql+psycopg2://u:s3%2Fcret@127.0.0.1:1/db",
        "postgresql://u:s3cret?p#w[@127.0.0.1:1/db",
        "postgres://u:s3%40cret@127.0.0.1:1/db",
        "host=127.0.0.1 port=1 password=s3cret dbname=db",
    ],
)
def test_an_address_where_nobody_listens_is_told_without_its_password(address):
    with pytest.raises(StorageUnavailableError, match=r"database 'db' at 127[.]0[.]0[.]1:1") as refused:
        PostgresStorage(address)

    told: BaseException | None = refused.value
    while told is not None:
        assert "cret" not in str(told)
        told = told.__cause__ or told.__context__


def test_the_form_of_sqlalchemy_leads_to_the_same_database(postgres_url):
    scheme, rest = postgres_url.split("://")

    assert checked_address(f"postgresql+asyncpg://{rest}") == f"postgresql://{rest}"
    storage = PostgresStorage(f"{scheme}+psycopg://{rest}")
    try:
        assert storage.collections.list() == []
    except EmbeddingStudioError as error:
        pytest.fail(str(error))
    finally:
        storage.close()
