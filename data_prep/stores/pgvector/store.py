"""PostgreSQL with pgvector: a table is a collection, one of its columns holds the vectors.

- Columns: the ids (--key-field, default the primary key), the text, one or more of vectors. The others are the
  metadata; if the only other one is JSON, its objects are.
- Reading is one server-side cursor: it sees the table as it was at its start and holds one page at a time.
- An alias is a view of a whole table, with a line in its comment. Pointing it elsewhere is one transaction. A view of
  which people made another selection is theirs: it is read as any view, and stays as it is.
- A collection's own metadata is a line of the table's comment.
"""

import json
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput, Failed
from data_prep.common.secrets import secret
from data_prep.stores.base import OWN, START, Store, StoreConfig
from data_prep.stores.pgvector.collection import PgvectorCollection
from data_prep.stores.pgvector.table import RECORD, VECTORS, identifier, psycopg, read_table, sql

PASSWORD = "PGPASSWORD"
EXAMPLE = "postgresql://user@localhost:5432/database"
_ANSWER_SECONDS = 20
_NAME_BYTES = 63  # of an identifier
_COUNTED = 10_000  # rows up to which a listing counts them; above it shows PostgreSQL's estimate
_OWN_COLUMNS = {"key_field": "id", "text_field": "text", "vector_name": "embedding"}  # of a new table
_TABLES = """
    select c.oid, case when pg_table_is_visible(c.oid) then '' else n.nspname || '.' end || c.relname, c.reltuples
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'm') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
    and exists (select 1 from pg_attribute a join pg_type t on t.oid = a.atttypid
                where a.attrelid = c.oid and a.attnum > 0 and t.typname = any(%s)) order by 2"""
_MADE_HERE = f"{RECORD}{{}}"  # the line in the comment of a view that is an alias
# views with that line: name, comment, definition; and for each table that it reads what `select *` is defined as. A
# column that was added to the table later is not in the view. PostgreSQL before 16 writes table.column
_VIEWS = """
    select case when pg_table_is_visible(v.oid) then '' else n.nspname || '.' end || v.relname,
           obj_description(v.oid, 'pg_class'), pg_get_viewdef(v.oid), d.refobjid,
           array(select ' SELECT ' || string_agg(part || quote_ident(c.attname), ',' order by c.attnum)
                        || ' FROM ' || t.oid::regclass || ';'
                 from (select * from pg_attribute a where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
                       order by a.attnum limit v.relnatts) c,
                      unnest(array['', quote_ident(t.relname) || '.']) part group by part)
    from pg_class v join pg_namespace n on n.oid = v.relnamespace
    join (select distinct r.ev_class, d.refobjid from pg_rewrite r join pg_depend d on d.objid = r.oid
          where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass) d
         on d.ev_class = v.oid and d.refobjid <> v.oid
    join pg_class t on t.oid = d.refobjid
    where v.relkind = 'v' and %s = any(string_to_array(obj_description(v.oid, 'pg_class'), E'\\n')) order by 1"""


class PgvectorStore(Store):
    """A PostgreSQL database. Tables of other schemas than the search path's are named schema.table."""

    kind = "PostgreSQL"
    why_not = "updates texts in place, so that a second vector of an old text would not be noticed"
    takes = frozenset({"url", "text_field", "vector_name", "key_field"})

    @classmethod
    def problems(cls, config: StoreConfig) -> list[str]:
        problems = super().problems(config)
        if config.url is not None and not config.url.startswith(("postgresql://", "postgres://")):
            problems.append(f"--url: must look like {EXAMPLE}")
        elif config.url is not None and "password" in _parts(config.url):
            problems.append(f"--url: holds a password; put it into {PASSWORD} (environment or .env) or ~/.pgpass")
        return problems

    @classmethod
    def name_problem(cls, name: str) -> str | None:
        parts = name.split(".")
        if len(parts) <= 2 and all(part and len(part.encode()) <= _NAME_BYTES and "\0" not in part for part in parts):
            return None
        return f"a table has a name of 1 to {_NAME_BYTES} bytes, and may have a schema's before it: schema.table"

    def __init__(self, config: StoreConfig, folder: Path | None = None):
        if psycopg is None:
            raise Failed("--store pgvector: needs psycopg: pip install 'embedfleet[pgvector]'")
        self.config, self.served, self.secret = config, True, secret(PASSWORD)
        self.url = config.url
        self.location = f"at {config.url}"
        try:
            self.client = self.connection()
        except psycopg.Error as error:
            raise self._refused(error) from None
        with self.failures():
            found = self.client.execute(
                "select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace "
                "where e.extname = 'vector'"
            ).fetchone()
        self.schema = found[0] if found else None  # of the extension

    def connection(self) -> Any:
        """Returns a new connection. Names are found in the search path and in the extension's schema."""
        options = {"password": self.secret} if self.secret else {}
        # a pooler between may give each transaction to another process, where prepared statements are unknown
        connection = psycopg.connect(
            self.url,
            autocommit=True,
            prepare_threshold=None,
            connect_timeout=_ANSWER_SECONDS,
            application_name="embedfleet",
            **options,
        )
        connection.execute(
            "select set_config('search_path', current_setting('search_path') || ', ' || quote_ident(n.nspname), false) "
            "from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector'"
        )
        connection.execute("set timezone to 'UTC'")  # a time in the metadata is the same text from every machine
        connection.execute("set idle_in_transaction_session_timeout = 0")  # of a cursor, while texts are embedded
        return connection

    def _refused(self, error: Exception) -> BadInput:
        text = self.reason(error)
        if "no password supplied" in str(error):
            return BadInput(f"{self.config.place}: the server wants a password: set {PASSWORD} (environment or .env)")
        if "password authentication failed" in str(error):
            return BadInput(f"{self.config.place}: the server refuses the password in {PASSWORD} ({text})")
        return BadInput(f"{self.config.place}: no PostgreSQL database answers there ({text}); {START}")

    def errors(self) -> tuple[type[Exception], ...]:
        return (psycopg.Error,)

    def oid(self, name: str) -> int | None:
        """Returns the object id of a table or view, or None."""
        with self.failures():
            return self.client.execute("select to_regclass(%s)::oid", [identifier(name).as_string()]).fetchone()[0]

    def names(self) -> list[str]:
        with self.failures():
            return sorted(name for _, name, _ in self.client.execute(_TABLES, [list(VECTORS)]))

    def aliases(self) -> dict[str, str]:
        with self.failures():
            tables = {oid: name for oid, name, _ in self.client.execute(_TABLES, [list(VECTORS)])}
            views = self.client.execute(_VIEWS, [_MADE_HERE]).fetchall()
        return {
            view: tables[table]
            for view, _, definition, table, wholes in views
            if table in tables and _without_spaces(definition) in map(_without_spaces, wholes)
        }

    def open(
        self, name: str, text_field: str | None = None, vector_name: str | None = None, key_field: str | None = None
    ) -> "PgvectorCollection":
        """text_field, vector_name, key_field: of this collection; default: the config's."""
        asked = {"text_field": text_field, "vector_name": vector_name, "key_field": key_field}
        asked = {field: given or getattr(self.config, field) for field, given in asked.items()}
        if self.oid(name) is None:
            raise self.no_collection(name, self._counts())
        return PgvectorCollection(self, name, self.aliases().get(name, name), asked)

    def _counts(self) -> dict[str, int]:
        with self.failures():
            tables = self.client.execute(_TABLES, [list(VECTORS)]).fetchall()
            query = sql.SQL("select count(*) from {}")
            return {
                name: int(rows)
                if rows > _COUNTED
                else self.client.execute(query.format(identifier(name))).fetchone()[0]
                for _, name, rows in tables
            }

    def create(
        self,
        name: str,
        size: int | None,
        about: dict[str, Any],
        cosine: bool = True,
        like: "PgvectorCollection | None" = None,
    ) -> "PgvectorCollection":
        """The table has no index of its vectors before Collection.finish: filling it is faster, and searches exact."""
        if self.schema is None:
            mend = "CREATE EXTENSION vector (by who may)"
            raise BadInput(f"{self.config.place}: the database has no extension pgvector; {mend}")
        assert size is not None, "a table of pgvector has vectors"
        taken = self.oid(name) is not None
        self.check_new(name, self.name_problem(name) or ("is there already" if taken else None))
        config = self.config
        layout = {name: getattr(config, name) or own for name, own in _OWN_COLUMNS.items()}
        layout = like.layout if like else layout
        kept = {key: value for key, value in like.about.items() if not key.startswith(OWN)} if like else {}
        about = {**kept, "distance": "cosine" if cosine else "ip", **layout, **about}
        with self.failures(), self.client.transaction():
            if like:
                self._create_like(name, size, like)
            else:
                self._create_own(name, size, layout)
            self.comment("table", name, RECORD + json.dumps(about))
        return self.open(name, **layout)

    def _create_own(self, name: str, size: int, layout: dict[str, str]) -> None:
        columns = "{} text primary key, {} text not null, metadata jsonb not null default '{{}}', {} vector({})"
        names = (layout[field] for field in ("key_field", "text_field", "vector_name"))
        columns = sql.SQL(columns).format(*map(sql.Identifier, names), sql.Literal(size))
        self.client.execute(sql.SQL("create table {} ({})").format(identifier(name), columns))

    def _create_like(self, name: str, size: int, like: PgvectorCollection) -> None:
        """Creates an empty table of the same columns, defaults, constraints, indexes and privileges."""
        new, old, vector = identifier(name), identifier(like.table_name), like.table.vector
        self.client.execute(sql.SQL("create table {} (like {} including all)").format(new, old))
        for index in read_table(self.client, self.oid(name), name, like.layout).indexes:
            if index.covers(vector):  # `finish` makes it again
                self.client.execute(sql.SQL("drop index {}").format(identifier(_beside(name, index.name, whole=True))))
        change = sql.SQL("alter table {} alter column {} type {} using null")
        base = sql.SQL(f"{like.table.column(vector).base}({size})")
        self.client.execute(change.format(new, sql.Identifier(vector), base))
        foreign = "select conname, pg_get_constraintdef(oid) from pg_constraint where conrelid = %s and contype = 'f'"
        for constraint, definition in self.client.execute(foreign, [like.table.oid]).fetchall():
            add = sql.SQL("alter table {} add constraint {} {}")
            self.client.execute(add.format(new, sql.Identifier(constraint), sql.SQL(definition)))
        options = (
            "select o.* from pg_class c, pg_options_to_table(c.reloptions) o where c.oid = %s and c.relkind <> 'v'"
        )
        for option, value in self.client.execute(options, [like.table.oid]).fetchall():
            change = sql.SQL("alter table {} set ({} = {})")
            self.client.execute(change.format(new, sql.Identifier(option), sql.Literal(value)))
        self._grant(like.table.oid, name)

    def _grant(self, oid: int, name: str) -> None:
        """Gives a table or view the privileges that others have on another one."""
        granted = self.client.execute(
            "select case a.grantee when 0 then 'public' else quote_ident(r.rolname) end, a.privilege_type, "
            "a.is_grantable from pg_class c cross join aclexplode(c.relacl) a "
            "left join pg_roles r on r.oid = a.grantee where c.oid = %s and a.grantee <> c.relowner",
            [oid],
        ).fetchall()
        for role, privilege, grantable in granted:
            more = sql.SQL(" with grant option" if grantable else "")
            grant = sql.SQL("grant {} on {} to {}{}")
            self.client.execute(grant.format(sql.SQL(privilege), identifier(name), sql.SQL(role), more))

    def comment(self, kind: str, name: str, text: str) -> None:
        comment = sql.SQL("comment on {} {} is {}")
        self.client.execute(comment.format(sql.SQL(kind), identifier(name), sql.Literal(text)))

    def delete(self, name: str) -> None:
        with self.failures(), self.client.transaction():
            for alias, table in self.aliases().items():
                if table == name:
                    self.client.execute(sql.SQL("drop view {}").format(identifier(alias)))
            try:
                self.client.execute(sql.SQL("drop table {}").format(identifier(name)))
            except psycopg.errors.DependentObjectsStillExist as error:
                raise BadInput(f"--collection {name}: something needs it ({_needed(error)}); drop that first") from None

    def swap_alias(self, alias: str, name: str) -> None:
        """Replaces the view in one transaction. One whose columns have other types is dropped and made again.

        BadInput: another view or function needs the old one, or the view was not made here, or was changed since.
        """
        old = self.oid(alias)
        written = self._lines_of_comment(old)
        if old is not None and alias not in self.aliases():
            if _MADE_HERE in written:
                mend = "if that is not wanted any more, drop the view, otherwise choose another name"
                raise BadInput(f"--alias {alias}: was changed since it was made here, and shows no whole table; {mend}")
            raise BadInput(f"--alias {alias}: is a view or table that was not made here; choose another name")
        view = sql.SQL("create or replace view {} as select * from {}").format(identifier(alias), identifier(name))
        with self.failures(), self.client.transaction():
            try:
                with self.client.transaction():
                    self.client.execute(view)
            except psycopg.errors.InvalidTableDefinition:
                self._make_again(alias, view, old)
            self.comment("view", alias, "\n".join([*(line for line in written if line != _MADE_HERE), _MADE_HERE]))

    def _lines_of_comment(self, oid: int | None) -> list[str]:
        with self.failures():
            comment = self.client.execute("select obj_description(%s, 'pg_class')", [oid]).fetchone()[0]
        return (comment or "").splitlines()

    def _make_again(self, alias: str, view: Any, old: int) -> None:
        """Replaces a view whose columns have other types; its privileges are kept."""
        parked = _beside(alias, "_before")
        rename = sql.SQL("alter view {} rename to {}")
        self.client.execute(rename.format(identifier(alias), sql.Identifier(parked.rpartition(".")[2])))
        self.client.execute(view)
        self._grant(old, alias)
        try:
            self.client.execute(sql.SQL("drop view {}").format(identifier(parked)))
        except psycopg.errors.DependentObjectsStillExist as error:
            needed = _needed(error)
            raise BadInput(f"--alias {alias}: something needs the view as it is ({needed}); drop that first") from None


def _needed(error: Any) -> str:
    """Returns what PostgreSQL says needs a table or view that was to be dropped."""
    return " ".join((error.diag.message_detail or "").split())


def _without_spaces(definition: str) -> str:
    """Returns a view's definition, which PostgreSQL breaks into lines, for comparing it."""
    return "".join(definition.split())


def _parts(url: str) -> dict[str, Any]:
    """Returns the parameters of a URL; none if it is malformed or psycopg is missing, which opening says."""
    try:
        return psycopg.conninfo.conninfo_to_dict(url) if psycopg else {}
    except psycopg.Error:
        return {}


def _beside(name: str, other: str, whole: bool = False) -> str:
    """Returns a name in the schema of a table or view: its own and an ending, at most 63 bytes, or another `whole`."""
    schema, dot, own = name.rpartition(".")
    own = "" if whole else own.encode()[: _NAME_BYTES - len(other)].decode(errors="ignore")
    return f"{schema}{dot}{own}{other}"
