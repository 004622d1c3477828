"""A table as a collection."""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from data_prep.common.console import say
from data_prep.common.errors import BadInput, nearest
from data_prep.stores.base import PAGE, Chunk, Collection, Store
from data_prep.stores.pgvector.table import (
    INDEXED_NUMBERS,
    INTEGERS,
    Table,
    beside,
    continue_numbers,
    identifier,
    read_table,
    sql,
)

OPERATORS = {"cosine": "<=>", "ip": "<#>", "l2": "<->", "l1": "<+>"}


class PgvectorCollection(Collection):
    """A table, also where its name is that of an alias."""

    def __init__(self, store: Store, name: str, table_name: str, asked: dict[str, str | None]):
        self.store, self.name, self.table_name, self.asked = store, name, table_name, asked
        self._read()
        if self.table.note:
            say(self.table.note)

    def _read(self) -> None:
        with self.store.failures():
            self.table: Table = read_table(self.store.client, self.store.oid(self.table_name), self.name, self.asked)

    @property
    def about(self) -> dict[str, Any]:
        return self.table.about

    @property
    def layout(self) -> dict[str, str]:
        named = {"vector_name": self.table.vector} if self.table.vector else {}
        return {"text_field": self.table.text, "key_field": self.table.key, **named}

    def lost(self, made: "Collection") -> list[str]:
        with self.store.failures():
            return beside(self.store.client, self.table.oid)

    @property
    def others(self) -> list[str]:
        """Returns the columns of its other vectors."""
        return [name for name in self.table.vectors if name != self.table.vector]

    def rest(self, ids: Sequence[str]) -> dict[str, Any]:
        """Returns the rows' other columns as JSON, exactly: numbers of any length, and the other vectors."""
        names = [*(column.name for column in self.table.fields), *self.others]
        if not names or (self.table.document and not self.others):
            return {}
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        row = "to_jsonb((select fields from (select {columns}) fields))::text"
        keys = [key for key in ids if self._key_problem(key) is None]
        query = self._select(
            f"{{key}}::text, {row}", "where {key} = any({keys})", keys=self._keys(keys), columns=columns
        )
        with self.store.failures():
            return dict(self.store.client.execute(query).fetchall())

    @property
    def size(self) -> int | None:
        if self.table.vector is None:
            return None
        numbers = self.table.column(self.table.vector).numbers
        if numbers > 0:
            return numbers
        query = self._select("vector_dims({vector}::vector)", "where {vector} is not null limit 1")
        with self.store.failures():
            found = self.store.client.execute(query).fetchone()
        return found[0] if found else None

    @property
    def operator(self) -> str:
        """Returns the operator of the vectors' index: pgvector uses an index for its own operator only."""
        index = next((index for index in self.table.indexes if index.covers(self.table.vector)), None)
        return OPERATORS[(index and index.measure) or self.about.get("distance", "cosine")]

    def _select(self, what: str, after: str = "", **parts: Any) -> Any:
        """Returns a query on the table. {key}, {text}, {vector}, {metadata} and {embedding} are its columns."""
        table = self.table
        vector = sql.Identifier(table.vector) if table.vector else sql.SQL("null")
        parts |= {
            "key": sql.Identifier(table.key),
            "text": sql.Identifier(table.text),
            "vector": vector,
            "metadata": self._metadata(),
            "embedding": sql.SQL("vector_send({}::vector)").format(vector),
            "table": identifier(self.table_name),
        }
        return sql.SQL(f"select {what} from {{table}} {after}").format(**parts)

    def _metadata(self) -> Any:
        """Returns the expression of a row's metadata as JSON."""
        if self.table.document:
            return sql.Identifier(self.table.document)
        if not self.table.fields:
            return sql.SQL("'{}'::jsonb")
        fields = sql.SQL(", ").join(sql.Identifier(column.name) for column in self.table.fields)
        return sql.SQL("to_jsonb((select fields from (select {}) fields))").format(fields)

    def count(self, where: dict[str, Any] | None = None) -> int:
        with self.filtered(where) as native:
            query = self._select("count(*)", "where {where}", where=_condition(native))
            return self.store.client.execute(query).fetchone()[0]

    def chunks(
        self, where: dict[str, Any] | None = None, page: int = PAGE, embeddings: bool = False
    ) -> Iterator[Chunk]:
        columns = "{key}::text, {text}, {metadata}"
        if embeddings:
            self._check_vector()
            columns += ", {embedding}"
        mend = f"their column {self.table.text!r} is empty; fill it, or leave them out with --where"
        with self._cursor() as cursor:
            with self.filtered(where) as native:
                cursor.execute(self._select(columns, "where {where} order by {key}", where=_condition(native)))
                rows = cursor.fetchmany(page)
            while rows:
                yield from self.with_text([self._chunk(*row) for row in rows], mend)
                with self.store.failures():
                    rows = cursor.fetchmany(page)

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        """Yields a server-side cursor on a connection of its own, so that writes in between do not end it."""
        with self.store.failures():
            connection = self.store.connection()
        try:
            with self.store.failures():
                connection.autocommit = False
                cursor = connection.cursor("chunks", binary=True)
            yield cursor
        finally:
            connection.close()

    def _chunk(self, key: str, text: str | None, metadata: Any, embedding: bytes | None = b"") -> Chunk:
        if embedding is None:
            raise BadInput(f"--collection {self.name}: the row {key} has no vector; leave it out (--where)")
        fields = metadata if isinstance(metadata, dict) else {}
        fields = {name: value for name, value in sorted(fields.items()) if value is not None or self.table.document}
        return Chunk(key, text or "", fields, _numbers(embedding) if embedding else None)

    def stored(self, ids: Sequence[str]) -> dict[str, Chunk]:
        keys = [key for key in ids if self._key_problem(key) is None]
        query = self._select("{key}::text, {text}, {metadata}", "where {key} = any({keys})", keys=self._keys(keys))
        with self.store.failures():
            return {row[0]: self._chunk(*row) for row in self.store.client.execute(query)}

    def _keys(self, keys: Sequence[str]) -> Any:
        return sql.SQL("{}::{}[]").format(sql.Literal(list(keys)), sql.SQL(self.table.column(self.table.key).type))

    def _key_problem(self, key: str) -> str | None:
        """Returns why a chunk's id cannot be one of the key column's, or None."""
        column = self.table.column(self.table.key)
        if column.base in INTEGERS:
            digits = key.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and str(int(key)) == key):
                return f"{column.name} is {column.type}: whole numbers only"
        elif column.base == "uuid":
            try:
                if str(uuid.UUID(key)) != key:
                    raise ValueError
            except ValueError:
                return f"{column.name} is {column.type}: UUIDs only (8-4-4-4-12, small letters)"
        return None

    def upsert(self, chunks: Sequence[Chunk]) -> None:
        self._check_vector()
        groups: dict[tuple[str, ...], list[list[Any]]] = defaultdict(list)
        whole = (*(column.name for column in self.table.fields), *self.others)
        for chunk in chunks:
            self._check_chunk(chunk)
            fields = () if self.table.document else tuple(chunk.metadata)
            vector = None if chunk.embedding is None else _text_of(chunk.embedding)
            row = [chunk.id, chunk.text, vector, chunk.rest or _as_json(chunk)]
            groups[whole if chunk.rest else fields].append(row)
        with self.store.failures(), self.store.client.transaction(), self.store.client.cursor() as cursor:
            for fields, rows in groups.items():
                cursor.executemany(self._insert(fields), rows)

    def _check_chunk(self, chunk: Chunk) -> None:
        """Raises BadInput for a chunk that the table cannot hold."""
        known = {column.name for column in self.table.fields}
        unknown = sorted({*chunk.metadata} - known) if not self.table.document else []
        problem = self._key_problem(chunk.id)
        if unknown:
            problem = f"metadata {', '.join(unknown)}: no such column; there: {', '.join(sorted(known)) or 'none'}"
        if "\0" in chunk.text or "\0" in chunk.id:
            problem = "PostgreSQL stores no text with the character NUL"
        if problem:
            raise BadInput(f"--collection {self.name}: chunk {chunk.id!r}: {problem}")

    def _insert(self, fields: tuple[str, ...]) -> Any:
        """Returns the statement that writes a chunk of these metadata fields, in the place of one of the same id."""
        table = self.table
        document = table.document if not fields else None  # else the JSON has an entry for each column
        written = [document] if document else list(fields)
        names = [table.key, table.text, table.vector, *written]
        key, base = table.column(table.key).type, table.column(table.vector).type
        values = [sql.SQL(f"%s::{key}"), sql.SQL("%s"), sql.SQL(f"%s::{base}")]
        values += [sql.SQL("fields.{}").format(sql.Identifier(name)) for name in fields]
        source = sql.SQL("jsonb_populate_record(null::{}, %s::jsonb) fields").format(identifier(self.table_name))
        if document:
            values.append(sql.SQL("fields.document"))
            source = sql.SQL("(select %s::{} document) fields").format(sql.SQL(table.column(document).base))
        left = [column.name for column in table.fields if column.name not in written]
        sets = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in names[1:]]
        sets += [sql.SQL("{} = default").format(sql.Identifier(name)) for name in left]
        return sql.SQL(
            "insert into {table} ({names}) overriding system value select {values} from {source} "
            "on conflict ({key}) do update set {sets}"
        ).format(
            table=identifier(self.table_name),
            names=sql.SQL(", ").join(map(sql.Identifier, names)),
            values=sql.SQL(", ").join(values),
            source=source,
            key=sql.Identifier(table.key),
            sets=sql.SQL(", ").join(sets),
        )

    def remove(self, ids: Sequence[str]) -> None:
        keys = [key for key in ids if self._key_problem(key) is None]
        delete = sql.SQL("delete from {} where {} = any({})")
        with self.store.failures():
            self.store.client.execute(
                delete.format(identifier(self.table_name), sql.Identifier(self.table.key), self._keys(keys))
            )

    def describe(self, about: dict[str, Any]) -> None:
        with self.store.failures():
            self.store.comment("table", self.table_name, self.table.comment_with({**self.about, **about}))
        self._read()

    def finish(self, like: "PgvectorCollection | None" = None) -> None:
        """Makes the indexes of the vectors: as those of `like`, or hnsw. One that is there stays as it is."""
        if like:
            with self.store.failures():
                unread = continue_numbers(self.store.client, like.table, like.table_name, self.table_name)
            for column in unread:
                say(f"note: {self.name}: {column} numbers new rows from 1: the numbers of {like.name} may not be read")
        table, size = self.table, self.size
        if any(index.covers(table.vector) for index in table.indexes):
            return
        cosine, base = self.about.get("distance", "cosine") == "cosine", table.column(table.vector).base
        ons = [f"USING hnsw ({{vector}} {base}_{'cosine' if cosine else 'ip'}_ops)"]
        if like:
            ons = [one.over(size, cosine) for one in like.table.indexes if one.covers(like.table.vector)]
        for on in ons:
            most = INDEXED_NUMBERS["halfvec" if f"::halfvec({size})" in on else base]
            if size > most:
                limit = f"pgvector indexes at most {most:,} numbers, these are {size:,}"
                say(f"note: {self.name} gets no index {on.format(vector=table.vector)}: {limit}")
                continue
            say(f"{self.name}: making its index {on.format(vector=table.vector)}")
            with self.store.failures():
                create = sql.SQL("create index on {} ").format(identifier(self.table_name))
                self.store.client.execute(create + sql.SQL(on).format(vector=sql.Identifier(table.vector)))
        self._read()

    def _check_vector(self) -> None:
        """Raises BadInput unless the table has one chosen column of vectors."""
        if self.table.vector is None:
            names = ", ".join(self.table.vectors)
            mend = f"choose one with --vector-name: {names}" if names else "it has no column of type vector or halfvec"
            raise BadInput(f"--collection {self.name}: has no embedding to read: {mend}")

    def query(self, vectors: np.ndarray, k: int, where: dict[str, Any] | None = None) -> list[list[Chunk]]:
        self._check_vector()  # before the size is compared: its message says more
        return super().query(vectors, k, where)

    def nearest(self, vectors: np.ndarray, k: int, native: Any) -> list[list[Chunk]]:
        columns, found = "{key}::text, {text}, {metadata}, {embedding}", []
        with self.store.client.transaction(), self.store.client.cursor(binary=True) as cursor:
            self._look_further(cursor, k)
            for vector in vectors:
                after = f"where {{where}} order by {{vector}} {self.operator} {{asked}}::vector limit {int(k)}"
                query = self._select(columns, after, where=_condition(native), asked=sql.Literal(_text_of(vector)))
                found.append([self._chunk(*row) for row in cursor.execute(query)])
        return found

    def _look_further(self, cursor: Any, k: int) -> None:
        """Lets an index return k rows: by default it looks at 40, and does not go on where a filter leaves out some."""
        cursor.execute("select '[1]'::vector")  # loads the extension; before, its settings are unknown
        cursor.execute(
            "select set_config(name, greatest(setting::int, least(%s, 1000))::text, true) from pg_settings "
            "where name = 'hnsw.ef_search'",
            [k],
        )
        for method, order in (("hnsw", "strict_order"), ("ivfflat", "relaxed_order")):
            cursor.execute(
                "select set_config(name, %s, true) from pg_settings where name = %s and setting = 'off'",
                [order, f"{method}.iterative_scan"],
            )

    def native_filter(self, where: dict[str, Any]) -> Any:
        """Returns the condition of a filter. BadInput: unknown columns, values that are no scalars.

        The filter is {"sql": condition} in PostgreSQL's own words, or {field: value, …} for fields that all hold these
        values: columns, or fields of the JSON column that holds the metadata.
        """
        if [*where] == ["sql"] and isinstance(where["sql"], str):
            return sql.SQL("({})").format(sql.SQL(where["sql"]))
        if wrong := [key for key, value in where.items() if not isinstance(value, str | int | float | bool | None)]:
            raise BadInput(
                f"--where {json.dumps(where)}: {', '.join(wrong)}: the plain form takes a text, a number, a boolean or "
                'null; for more use SQL, such as {"sql": "year > 2020"}'
            )
        return sql.SQL(" and ").join(self._equal(where, key, value) for key, value in where.items())

    def _equal(self, where: dict[str, Any], key: str, value: Any) -> Any:
        if self.table.document:
            contains = sql.SQL("{}::jsonb @> {}::jsonb")
            return contains.format(sql.Identifier(self.table.document), sql.Literal(json.dumps({key: value})))
        names = [column.name for column in self.table.columns if column.name not in self.table.vectors]
        if key not in names:
            hint = nearest(key, names)
            raise BadInput(f"--where {json.dumps(where)}: {self.name} has no column {key}: {', '.join(names)}.{hint}")
        if value is None:
            return sql.SQL("{} is null").format(sql.Identifier(key))
        return sql.SQL("{} = {}").format(sql.Identifier(key), sql.Literal(value))

    def refused(self, error: Exception) -> bool:
        """True for what PostgreSQL says about a statement (42: names and types, 22: values), not about itself."""
        return (getattr(error, "sqlstate", None) or "42")[:2] in ("42", "22")


def _condition(native: Any) -> Any:
    return sql.SQL("true") if native is None else native


def _text_of(vector: np.ndarray) -> str:
    """Returns a vector as pgvector reads it; as doubles, so that each float32 is read back exactly."""
    return f"[{','.join(map(repr, vector.tolist()))}]"


def _numbers(sent: bytes) -> np.ndarray:
    """Returns the numbers of a vector as PostgreSQL sends it: two of 16 bits (how many, 0), then float32, all
    big-endian."""
    return np.frombuffer(sent, dtype=">f4", offset=4).astype(np.float32)


def _as_json(chunk: Chunk) -> str:
    try:
        return json.dumps(chunk.metadata, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise BadInput(f"chunk {chunk.id!r}: its metadata is no JSON: {error}") from None
