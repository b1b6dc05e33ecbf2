"""The records of prompt files: JSON, JSON lines, CSV, Parquet, text, and folders of Hugging Face's datasets.

What a file is follows from its content, and for CSV and text from its name. Each record is a JSON object, whose place
in the file errors name. Parquet and Arrow files are read column by column, of those columns alone that hold prompts.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wattflow.errors import RefusedError
from wattflow.store.files import open_given, read_given

Record = tuple[str, Any]  # its place, counted from 1, and what stands there

COLUMNS = (
    *("prompt", "text", "answer", "instruction", "input", "question"),
    *("messages", "conversations", "conversation"),
)
_MOST_RECORDS = 2_000_000
_MOST_BYTES = 2**31  # of the columns of one Parquet file, unpacked
_PARQUET, _ARROW = b"PAR1", b"\xff\xff\xff\xff"
_MAGIC = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd"}
_MEND = "Mend the file, or copy it again if it was cut short."


def records_at(path: Path, split: str | None = None) -> list[Record]:
    """Return the records of a file or a folder of datasets; RefusedError names the file, the place and the fault."""
    try:
        if path.is_dir():
            found = [(place, record) for file in _files(path, split) for place, record in _of(file)]
        elif split is not None:
            raise RefusedError(f"{path}: a file, and dataset.split={split}: folders have splits.")
        elif path.is_file():
            found = list(_of(path))
        else:
            raise RefusedError(
                f"{path}: {'not a file' if path.exists() else 'no such file'}. Set dataset.path to a prompt file, or "
                "to null for the prompts that wattflow ships."
            )
    except OSError as error:
        raise RefusedError(
            f"{path}: cannot be read ({error.strerror or error}). Check its permissions, or set dataset.path."
        ) from error
    if not found:
        raise RefusedError(f"{path}: has no records. Set dataset.path to a file with prompts.")
    return found


def _of(path: Path) -> Iterator[Record]:
    """Yield the records of one file."""
    with open_given(path) as file:
        first = file.read(4)
    if first == _PARQUET:
        return _of_parquet(path)
    if first == _ARROW:
        return _of_arrow(path)
    return records(read_given(path), str(path), path.suffix.lower())


def records(data: bytes, source: str, suffix: str = "") -> Iterator[Record]:
    """Yield the records in the bytes of a text file, by its name's suffix; `source` names it in errors."""
    packed = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
    if packed is not None:
        raise RefusedError(f"{source}: packed by {packed}. Unpack it first.")
    text = _decoded(data, source)
    if not text.strip():
        raise RefusedError(f"{source}: the file is empty. Set dataset.path to a file with prompts.")
    if suffix in (".csv", ".tsv"):
        return _of_csv(text, source, "\t" if suffix == ".tsv" else None)
    if suffix in (".txt", ".text"):
        return _of_text(text)
    return _of_list(text, source) if text.lstrip().startswith("[") else _of_lines(text, source)


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RefusedError(
            f"{source}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8. Convert the file first, for "
            "example with `iconv -f LATIN1 -t UTF-8`."
        ) from error


def _of_list(text: str, source: str) -> Iterator[Record]:
    """Yield the records of a JSON list."""
    try:
        listed = json.loads(text)
    except json.JSONDecodeError as error:
        raise RefusedError(
            f"{source}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}). {_MEND}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number or a nesting without end
        raise RefusedError(f"{source}: not a list of records ({error}). Mend the file.") from error
    for number, record in enumerate(listed, 1):
        yield f"record {number}", record


def _of_lines(text: str, source: str) -> Iterator[Record]:
    """Yield the records of JSON lines; blank lines are skipped."""
    # not splitlines: a JSON string may hold U+2028 as it is
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            fault = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise RefusedError(f"{source}, line {number}: not JSON ({fault}). {_MEND}") from error
        yield f"line {number}", record


def _of_text(text: str) -> Iterator[Record]:
    """Yield a record a line; blank lines are skipped."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", {"text": line.removesuffix("\r")}


def _of_csv(text: str, source: str, delimiter: str | None) -> Iterator[Record]:
    """Yield a record a row, by the names in the first one; the delimiter is the one most frequent there."""
    header = text.partition("\n")[0]
    delimiter = delimiter or max(",;\t", key=header.count)
    # a prompt may be longer than the library's 128 KiB; the limit is the process's, so it is only ever raised
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            if names is None:
                names = [name.strip() for name in row]
                if len(set(names)) < len(names):
                    raise RefusedError(
                        f"{source}, {place}: two columns have one name. Mend the file."
                    )
            elif row and len(row) != len(names):
                raise RefusedError(
                    f"{source}, {place}: {len(row)} fields, where the first line names {len(names)}. Put fields that "
                    "hold the delimiter or a line break into double quotes."
                )
            elif row:
                yield place, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise RefusedError(
            f"{source}, line {reader.line_num}: not CSV ({error}). {_MEND}"
        ) from error


# --- Arrow's formats ------------------------------------------------------------------------------


def _of_parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa  # noqa: PLC0415 - 0.1 s that few prompt files need
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    number = 0
    try:
        with open_given(path) as held, pq.ParquetFile(held) as file:
            names = [name for name in COLUMNS if name in file.schema_arrow.names]
            _check_columns(path, names, file.schema_arrow.names)
            _check_size(path, file.metadata.num_rows, _unpacked(file.metadata, names))
            for batch in file.iter_batches(columns=names, use_threads=False):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    # ValueError: text that is no UTF-8; MemoryError: a length that no such file has
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise RefusedError(f"{path}: not a Parquet file ({_line(error)}). {_MEND}") from error


def _unpacked(metadata: Any, names: list[str]) -> int:
    """Return the bytes of some columns as the footer has them."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(at) for group in groups for at in range(group.num_columns)]
    wanted = [one for one in chunks if one.path_in_schema.partition(".")[0] in names]
    return sum(one.total_uncompressed_size for one in wanted)


def _of_arrow(path: Path) -> Iterator[Record]:
    import pyarrow as pa  # noqa: PLC0415 - as above

    number = 0
    try:
        with open_given(path) as held, pa.ipc.open_stream(held) as reader:
            names = [name for name in COLUMNS if name in reader.schema.names]
            _check_columns(path, names, reader.schema.names)
            for batch in reader:
                _check_size(path, number + batch.num_rows, 0)
                for record in batch.select(names).to_pylist():
                    number += 1
                    yield f"row {number}", record
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise RefusedError(f"{path}: not an Arrow stream ({_line(error)}). {_MEND}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _check_columns(path: Path, names: list[str], there: list[str]) -> None:
    if not names:
        raise RefusedError(
            f"{path}: has the columns {', '.join(there)[:200]}, and none of {', '.join(COLUMNS)}. Rename one."
        )


def _check_size(path: Path, rows: int, unpacked: int) -> None:
    if rows > _MOST_RECORDS or unpacked > _MOST_BYTES:
        raise RefusedError(
            f"{path}: {rows} records, {unpacked} bytes unpacked; a prompt file has at most {_MOST_RECORDS} and "
            f"{_MOST_BYTES}. Take a part of it."
        )


# --- folders --------------------------------------------------------------------------------------


def _files(folder: Path, split: str | None) -> list[Path]:
    """Return the files of one split of a folder: as `save_to_disk` or a download from the hub leaves it."""
    inside = folder / split if split is not None else folder
    if (inside / "state.json").is_file():
        return _saved(inside)
    if (folder / "dataset_dict.json").is_file():
        found = _json(folder / "dataset_dict.json").get("splits", [])
        raise _several(folder, [str(name) for name in found], split)
    by_split: dict[str | None, list[Path]] = {}
    for file in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        by_split.setdefault(file.stem.partition("-")[0], []).append(file)
    if split is None and len(by_split) == 1:
        (split,) = by_split
    if split is not None and split in by_split:
        return by_split[split]
    if by_split:
        raise _several(folder, [str(name) for name in by_split], split)
    raise RefusedError(
        f"{folder}: not a file, nor a folder of datasets: neither state.json nor Parquet files are there. Set "
        "dataset.path to a prompt file, or to what `save_to_disk` wrote."
    )


def _saved(folder: Path) -> list[Path]:
    listed = _json(folder / "state.json").get("_data_files")
    names = [str(one.get("filename")) for one in listed or () if isinstance(one, dict)]
    if not names or any(Path(name).name != name for name in names):
        raise RefusedError(f"{folder / 'state.json'}: lists no data files of this folder. {_MEND}")
    return [folder / name for name in names]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_given(path))
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{path}: not JSON ({_line(error)}). {_MEND}") from error
    return found if isinstance(found, dict) else {}


def _several(folder: Path, names: list[str], split: str | None) -> RefusedError:
    asked = "" if split is None else f"no split {split}; "
    return RefusedError(
        f"{folder}: {asked}it has {', '.join(sorted(names))[:200]}. Set dataset.split to one of them."
    )
