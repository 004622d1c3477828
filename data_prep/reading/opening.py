"""Opens input files: local or at a URL, plain or compressed, as streams of bytes that are never in memory as a whole.

- NAME.jsonl.gz and NAME.jsonl.zst (also .json, .csv, .tsv) are unpacked as they are read, by pyarrow.
- A damaged or truncated archive is one error, which names file and place (`damaged`).
"""

import io
from pathlib import Path
from typing import IO

from data_prep.common.errors import BadInput
from data_prep.common.paths import nearest_beside
from data_prep.remote.location import Location

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
CODECS = {".gz": "gzip", ".zst": "zstd"}  # of text files; a Parquet file has codecs of its own
MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
PIECE = 1 << 20  # bytes that are read together


def codec_of(path: Path | Location) -> str | None:
    """Returns pyarrow's name of the codec of a compressed text file; None for any other file."""
    return CODECS.get(path.suffix)


def format_of(path: Path | Location) -> str:
    """Returns the suffix of a file's format, without that of a codec: `.jsonl` of a.jsonl.gz."""
    return Path(path.stem).suffix if codec_of(path) else path.suffix


def stem_of(path: Path | Location) -> str:
    """Returns the name of a file without the suffixes of format and codec: `a` of a.jsonl.gz."""
    return Path(path.stem).stem if codec_of(path) and format_of(path) in SUFFIXES else path.stem


def bytes_of(path: Path | Location) -> int:
    """Returns the size of a file, or of all files in a folder; 0 where there is none."""
    if isinstance(path, Location):
        return sum(path.sizes().values())
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def open_bytes(path: Path | Location) -> IO[bytes]:
    """Opens a file for reading, unpacked. A plain file can be sought; a compressed one is read from its beginning."""
    codec = codec_of(path)
    if codec is None:
        return open(path, "rb") if isinstance(path, Path) else _Pieces(path.open_file(), PIECE)
    import pyarrow as pa

    raw = pa.OSFile(str(path), "rb") if isinstance(path, Path) else _Pieces(path.open_stream(), PIECE)
    return io.BufferedReader(pa.CompressedInputStream(raw, codec), PIECE)


class _Pieces(io.BufferedReader):
    """A reader that makes a request to the store for PIECE bytes; not for 64 KB, which pyarrow unpacks at a time, nor
    for the 8 KB of a text file."""

    def read1(self, size: int = PIECE) -> bytes:
        return self.read(size)


def damaged(path: Path | Location, error: OSError, line: int) -> Exception:
    """Returns the error of a damaged archive, or `error` itself where the disk is at fault. line: the last one read."""
    if codec_of(path) is None or error.errno is not None:
        return error
    state = "ends early" if "truncated" in str(error).lower() else f"is damaged ({error})"
    place = f"after line {line:,}" if line else "in its first line"
    return BadInput(f"{path}: the {codec_of(path)} archive {state} {place}; copy or make it again")


def check_readable(path: Path | Location) -> None:
    """Raises BadInput for a file that no reader can open."""
    if not path.exists():
        hint = nearest_beside(path) if isinstance(path, Path) else ""
        raise BadInput(f"{path}: no such file or folder.{hint}")
    if path.is_dir():
        return
    _check_suffix(path)
    try:
        with open_bytes(path) as handle:
            head = handle.read(4)
    except OSError as error:
        if error.errno is None:
            raise damaged(path, error, 0) from None
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise BadInput(f"{path}: the file is empty; it needs at least one row")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadInput(f"{path}: is UTF-16; save it as UTF-8")
    if packed := next((suffix for magic, suffix in MAGIC.items() if head.startswith(magic)), None):
        twice = "is compressed twice; unpack it once" if codec_of(path) else f"name it {path.name}{packed}"
        raise BadInput(f"{path}: is {CODECS[packed]}-compressed; {twice}")


def _check_suffix(path: Path | Location) -> None:
    suffix, codec = format_of(path), codec_of(path)
    if codec and suffix == ".parquet":
        raise BadInput(f"{path}: a Parquet file holds codecs of its own; unpack it ({codec}) and name the .parquet")
    if suffix not in SUFFIXES:
        accepted = f"{' '.join(SUFFIXES)}, the texts also with {' or '.join(CODECS)}, or a datasets folder"
        raise BadInput(f"{path}: unknown file type {suffix + path.suffix if codec else suffix!r}; accepted: {accepted}")
