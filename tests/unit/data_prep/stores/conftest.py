"""A PostgreSQL server with pgvector."""

import pytest

from tests.postgres import postgres_server


@pytest.fixture(scope="module")
def url():
    with postgres_server() as url:
        yield url


@pytest.fixture
def database(url):
    """A connection to the database, emptied before."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop schema public cascade; create schema public; create extension vector")
        yield connection
