"""URLs of object stores, s3:// and gs://, by pyarrow's own filesystems.

- A Location is used where a Path is: name, suffix, `/`, absolute, exists, is_dir. What it cannot do has no method.
- Credentials, region and endpoint come from the environment, as the libraries of AWS and Google read them. A URL that
  holds any is refused, and no message repeats it.
- file:// is a Path. Nothing is fetched here as a whole: see copies.py.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from data_prep.common.errors import BadInput, Failed, first_line
from data_prep.common.paths import user_path
from data_prep.common.secrets import without

GS_RETRIES = timedelta(seconds=30)  # Google's client takes missing credentials for a passing fault, for 15 minutes
PIECE = 8 << 20  # bytes that are copied together
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
_FROM_ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL for another server than AWS",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
}


@dataclass(frozen=True, slots=True)
class Location:
    """An object, or a folder of objects, in an object store."""

    scheme: str
    key: str  # bucket/path, without a slash at either end

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> "Location":
        return Location(self.scheme, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "Location":
        return Location(self.scheme, str(PurePosixPath(self.key).parent))

    def resolve(self) -> "Location":
        return self

    def absolute(self) -> "Location":
        return self

    def exists(self) -> bool:
        return self._kind() != "NotFound"

    def is_dir(self) -> bool:
        return self._kind() == "Directory"

    def is_file(self) -> bool:
        return self._kind() == "File"

    def _kind(self) -> str:
        with self.errors():
            return _filesystem(self.scheme).get_file_info(self.key).type.name

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of every object below this folder, by its path in it; of a file alone, by ""."""
        from pyarrow.fs import FileSelector

        with self.errors():
            info = _filesystem(self.scheme).get_file_info(self.key)
            if info.is_file:
                return {"": info.size}
            selector = FileSelector(self.key, allow_not_found=True, recursive=True)
            files = [info for info in _filesystem(self.scheme).get_file_info(selector) if info.is_file]
        return {info.path.removeprefix(self.key + "/"): info.size for info in files}

    def open_file(self) -> "StoredFile":
        """Opens the object for reading anywhere in it."""
        with self.errors():
            return StoredFile(self, _filesystem(self.scheme).open_input_file(self.key))

    def open_stream(self) -> "StoredFile":
        """Opens the object for reading from its beginning."""
        with self.errors():
            return StoredFile(self, _filesystem(self.scheme).open_input_stream(self.key, compression=None))

    def read(self) -> bytes:
        with self.open_stream() as stream:
            return stream.read()

    def upload(self, data: Path | bytes) -> None:
        """Writes the object: the bytes of a file, or these."""
        with io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb") as source:
            with self.errors():
                stream = _filesystem(self.scheme).open_output_stream(self.key, compression=None)
            try:
                while piece := source.read(PIECE):
                    with self.errors():
                        stream.write(piece)
            finally:
                with self.errors():
                    stream.close()

    def delete(self) -> None:
        """Deletes the object."""
        with self.errors():
            _filesystem(self.scheme).delete_file(self.key)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """A block of calls to the store: its errors become BadInput (nothing there) or Failed, without secrets."""
        from pyarrow import ArrowException

        try:
            yield
        except FileNotFoundError:
            raise BadInput(f"{self}: no such bucket or object") from None
        except (OSError, ArrowException) as error:  # the latter for what Google answers with 400
            if "NO_SUCH_BUCKET" in str(error):  # of S3, to a write
                raise BadInput(f"{self}: no such bucket or object") from None
            raise self.failure(error) from None

    def failure(self, error: Exception) -> Failed:
        """Returns the error for a call to the store that failed."""
        reason = without(first_line(error), *map(os.environ.get, _SECRETS))
        return Failed(f"{self}: {reason}; from the environment are read: {_FROM_ENVIRONMENT[self.scheme]}")


class StoredFile(io.RawIOBase):
    """An object that is open for reading. Errors of the store while it is read are those of Location.errors."""

    def __init__(self, place: Location, file: Any):
        """file: a pyarrow.NativeFile."""
        self._place, self._file = place, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def read(self, size: int | None = -1) -> bytes:
        with self._place.errors():
            return self._file.read(None if size == -1 else size)

    def readinto(self, buffer: Any) -> int:
        with self._place.errors():
            return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._place.errors():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


@lru_cache
def _filesystem(scheme: str) -> Any:
    from pyarrow import fs

    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=GS_RETRIES)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return fs.S3FileSystem()
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BadInput("AWS_ENDPOINT_URL: must look like https://HOST:PORT")
    return fs.S3FileSystem(endpoint_override=parts.netloc, scheme=parts.scheme)


def location(text: str | Path | Location) -> Path | Location:
    """Returns the Location of an s3:// or gs:// URL, else the Path. Raises BadInput for any other URL."""
    if not isinstance(text, str):
        return text
    scheme, separator, rest = text.partition("://")
    if not separator or "/" in scheme:
        return user_path(text)
    if scheme == "file" and rest.startswith("/"):
        return Path(unquote(rest))
    if scheme not in _FROM_ENVIRONMENT:
        raise BadInput(
            f"{scheme}://…: is no URL that is read; accepted: a path, s3://BUCKET/…, gs://BUCKET/…, file:///…"
        )
    bucket = rest.partition("/")[0]
    if "@" in bucket or ":" in bucket or "?" in rest:
        mend = f"it holds the bucket and path only; from the environment are read: {_FROM_ENVIRONMENT[scheme]}"
        raise BadInput(f"{scheme}://…: the URL holds a user, password, port or query; {mend}")
    if not bucket:
        raise BadInput(f"{text}: has no bucket; write {scheme}://BUCKET/PATH")
    key = rest.strip("/")
    if unusual := {"", ".", ".."}.intersection(key.split("/")):
        raise BadInput(f"{text}: has {min(unusual)!r} between two slashes; write the names of the folders only")
    return Location(scheme, key)
