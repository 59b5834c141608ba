"""The records of long work: each is appended to a file when it is measured, so that a second run continues the first."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fimlens._validate import write_atomically


def read_records(path: Path) -> list[dict[str, Any] | None]:
    """Return the records of a file, and None for each line that is none, such as one that an interruption cut short.

    Args:
        path: a file with one JSON object a line. A file that does not exist has no records.
    """
    return [_record(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def known_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file without the lines that are none. The argument is as in `read_records`."""
    return [record for record in read_records(path) if record is not None]


def add_records(path: Path, *records: Mapping[str, Any]) -> None:
    """Append records to a file.

    Args:
        path: the file, which need not exist.
        records: what JSON can hold.
    """
    with path.open("a+b") as file:
        if file.tell():  # after a line that was cut short begin a new one, so that the first record is not lost with it
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(_lines(records).encode())


def rewrite_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a file anew, with these records. The arguments are as in `add_records`."""
    write_atomically(path, _lines(records))


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    # A mapping of another kind is written as a dict.
    return "".join(json.dumps(record, default=dict) + "\n" for record in records)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
