"""A table as PostgreSQL's catalogue describes it: columns, what each holds, indexes, comment."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_prep.common.errors import BadInput, nearest
from data_prep.stores.payloads import RARE_FIELDS, TEXT_FIELDS

try:
    import psycopg
    from psycopg import sql
except ImportError:  # PgvectorStore says so when it is opened
    psycopg = sql = None

VECTORS = ("vector", "halfvec")
JSON = ("jsonb", "json")
TEXTS = ("text", "varchar", "bpchar")
INTEGERS = ("int2", "int4", "int8")
RECORD = "embedfleet: "  # begins the line of a comment that holds a collection's own metadata
INDEXED_NUMBERS = {"vector": 2000, "halfvec": 4000}  # at most, by pgvector's indexes

_COLUMNS = """
    select a.attname, format_type(a.atttypid, a.atttypmod), t.typname, a.atttypmod, a.attgenerated <> ''
    from pg_attribute a join pg_type t on t.oid = a.atttypid
    where a.attrelid = %s and a.attnum > 0 and not a.attisdropped order by a.attnum"""
_PRIMARY = """
    select a.attname from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
    where i.indrelid = %s and i.indisprimary"""
_INDEXES = """
    select c.relname, am.amname, pg_get_indexdef(i.indexrelid)
    from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am am on am.oid = c.relam
    where i.indrelid = %s and am.amname in ('hnsw', 'ivfflat') order by c.relname"""
_BESIDE = """
    select 'the trigger ' || tgname from pg_trigger where tgrelid = %(oid)s and not tgisinternal
    union all select 'the policy ' || polname from pg_policy where polrelid = %(oid)s
    union all select 'row level security' from pg_class where oid = %(oid)s and relrowsecurity
    union all select 'the division into partitions' from pg_class where oid = %(oid)s and relkind = 'p'
    union all select 'the foreign key ' || conname || ' of ' || conrelid::regclass
              from pg_constraint where confrelid = %(oid)s and contype = 'f' and conrelid <> confrelid
    union all select 'the rule ' || rulename from pg_rewrite where ev_class = %(oid)s and rulename <> '_RETURN'
    union all select 'the publication ' || p.pubname
              from pg_publication_rel r join pg_publication p on p.oid = r.prpubid where r.prrelid = %(oid)s
    union all select 'the parent table ' || inhparent::regclass from pg_inherits where inhrelid = %(oid)s
    union all select 'the privileges of the column ' || attname
              from pg_attribute where attrelid = %(oid)s and attacl is not null and not attisdropped
    union all select 'the tablespace ' || t.spcname
              from pg_class c join pg_tablespace t on t.oid = c.reltablespace where c.oid = %(oid)s
    union all select 'the replica identity' from pg_class where oid = %(oid)s and relreplident <> 'd'
    union all select 'being unlogged' from pg_class where oid = %(oid)s and relpersistence = 'u'
    union all select 'the storage parameters of its long values'
              from pg_class c join pg_class t on t.oid = c.reltoastrelid
              where c.oid = %(oid)s and t.reloptions is not null
    union all select 'a sequence for the new table alone: both take numbers from ' || d.objid::regclass
                     || ', which goes when the old table is dropped'
              from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
              where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass
              and d.refobjid = %(oid)s and d.deptype = 'a'
    order by 1"""


@dataclass(frozen=True)
class Column:
    name: str
    type: str  # as PostgreSQL writes it, such as vector(384)
    base: str  # without parentheses
    numbers: int  # of a vector; -1: not fixed
    generated: bool  # PostgreSQL computes it from the others


@dataclass(frozen=True)
class Index:
    """An index of a vector column."""

    name: str
    method: str  # hnsw or ivfflat
    definition: str  # CREATE INDEX …

    @property
    def on(self) -> str:
        """Returns its definition after the table's name: USING hnsw (embedding vector_cosine_ops) WITH (m='16')."""
        return self.definition[self.definition.index(f" USING {self.method} (") + 1 :]

    @property
    def measure(self) -> str | None:
        """Returns what it compares by: cosine, ip, l2 or l1."""
        found = re.search(r"_(cosine|ip|l2|l1)_ops", self.on)
        return found[1] if found else None

    def covers(self, column: str | None) -> bool:
        return column is not None and re.search(rf'\(+"?{re.escape(column)}"?[\s):]', self.on) is not None

    def over(self, size: int, cosine: bool) -> str:
        """Returns `on` for vectors of another size.

        Vectors of length 1 (cosine) rank alike by each measure, so it stays; others are compared by inner product.
        """
        on = re.sub(r"\b(vector|halfvec)\(\d+\)", rf"\1({size})", self.on)
        return on if cosine else on.replace(f"_{self.measure}_ops", "_ip_ops")


@dataclass(frozen=True)
class Table:
    """A table or view, and its columns of key, text, metadata and vectors."""

    oid: int
    columns: list[Column]
    key: str
    text: str
    vector: str | None  # None: it has none, or several and none is chosen
    indexes: list[Index]
    comment: str
    note: str | None  # how the text was recognised

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def vectors(self) -> list[str]:
        return [column.name for column in self.columns if column.base in VECTORS]

    @cached_property
    def fields(self) -> list[Column]:
        """Returns the columns that are metadata: not those that PostgreSQL computes from others."""
        others = {self.key, self.text, *self.vectors}
        return [column for column in self.columns if column.name not in others and not column.generated]

    @property
    def document(self) -> str | None:
        """Returns the column whose JSON objects are the metadata: the only one besides key, text and vectors."""
        return self.fields[0].name if len(self.fields) == 1 and self.fields[0].base in JSON else None

    @property
    def about(self) -> dict[str, Any]:
        records = map(_record, self.comment.splitlines())
        return next((record for record in records if record is not None), {})

    def comment_with(self, about: dict[str, Any]) -> str:
        """Returns the comment with other metadata; what people wrote stays."""
        written = [line for line in self.comment.splitlines() if _record(line) is None]
        return "\n".join([*written, RECORD + json.dumps(about)])


def _record(line: str) -> dict[str, Any] | None:
    """Returns the metadata in a line of a comment; None for a line that people wrote."""
    try:
        record = json.loads(line[len(RECORD) :]) if line.startswith(RECORD) else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read_table(connection: Any, oid: int, name: str, asked: dict[str, str | None]) -> Table:
    """Reads a table. asked: the columns that the user names, by the fields of StoreConfig; None: recognise it.

    Raises BadInput, listing the columns, for one that does not exist or is not recognised.
    """
    columns = [Column(*row) for row in connection.execute(_COLUMNS, [oid])]
    primary = [row[0] for row in connection.execute(_PRIMARY, [oid])]
    comment = connection.execute("select coalesce(obj_description(%s, 'pg_class'), '')", [oid]).fetchone()[0]
    recorded = Table(oid, columns, "", "", None, [], comment, None).about
    text, note = _text(name, columns, asked.get("text_field") or recorded.get("text_field"), primary)
    key = _key(name, columns, asked.get("key_field"), primary)
    vector = _vector(name, columns, asked.get("vector_name") or recorded.get("vector_name"))
    indexes = [Index(*row) for row in connection.execute(_INDEXES, [oid])]
    return Table(oid, columns, key, text, vector, indexes, comment, note)


def identifier(name: str) -> Any:
    """Returns the SQL of a name: table or schema.table."""
    return sql.Identifier(*name.split(".", 1))


def beside(connection: Any, oid: int) -> list[str]:
    """Returns what belongs to a table and is not copied with it."""
    return [row[0] for row in connection.execute(_BESIDE, {"oid": oid})]


def continue_numbers(connection: Any, like: Table, old: str, new: str) -> list[str]:
    """Lets the identity columns of a new table go on where those of the old one, `like`, are.

    Returns the columns whose numbers may not be read: they begin at 1.
    """
    unread = []
    query = "select attname from pg_attribute where attrelid = %s and attidentity <> '' and not attisdropped"
    for (column,) in connection.execute(query, [like.oid]).fetchall():
        names = [(identifier(table).as_string(), column) for table in (old, new)]
        own, its = (connection.execute("select pg_get_serial_sequence(%s, %s)", one).fetchone()[0] for one in names)
        go_on = sql.SQL("select setval({}, last_value, is_called) from {}").format(sql.Literal(its), sql.SQL(own))
        try:
            connection.execute(go_on)
        except psycopg.errors.InsufficientPrivilege:
            unread.append(column)
    return unread


def _listed(columns: list[Column]) -> str:
    return ", ".join(f"{column.name} ({column.type})" for column in columns) or "none"


def _named(name: str, columns: list[Column], asked: str, flag: str) -> str:
    names = [column.name for column in columns]
    if asked not in names:
        hint = nearest(asked, names)
        raise BadInput(f"{flag} {asked}: {name} has no such column; there: {_listed(columns)}.{hint}")
    return asked


def _key(name: str, columns: list[Column], asked: str | None, primary: list[str]) -> str:
    if asked is not None:
        return _named(name, columns, asked, "--key-field")
    if len(primary) == 1:
        return primary[0]
    state = f"its primary key has {len(primary)} columns" if primary else "it has no primary key"
    raise BadInput(f"--key-field: which column of {name} holds the ids? {state}; there: {_listed(columns)}")


def _text(name: str, columns: list[Column], asked: str | None, primary: list[str]) -> tuple[str, str | None]:
    if asked is not None:
        return _named(name, columns, asked, "--text-field"), None
    texts = [column.name for column in columns if column.base in TEXTS and column.name not in primary]
    known = [field for field in TEXT_FIELDS if field in texts] or [field for field in RARE_FIELDS if field in texts]
    if len(known or texts) != 1:
        state = f"{' and '.join(known or texts)} may be it" if texts else "none of them is a text"
        raise BadInput(f"--text-field: which column of {name} holds the text? {state}; there: {_listed(columns)}")
    (column,) = known or texts
    return column, f"{name}: the text is the column {column!r} (--text-field chooses another)"


def _vector(name: str, columns: list[Column], asked: str | None) -> str | None:
    vectors = [column.name for column in columns if column.base in VECTORS]
    if asked is None:
        return vectors[0] if len(vectors) == 1 else None
    if asked not in vectors:
        there = ", ".join(vectors) or "none"
        raise BadInput(f"--vector-name {asked}: {name} has these columns of vectors: {there}.{nearest(asked, vectors)}")
    return asked
