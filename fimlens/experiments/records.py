"""The records of long work: each is appended to a file when it is measured, so that a second run continues the first."""

import json
from pathlib import Path
from typing import Any


def read_records(path: Path) -> list[dict[str, Any] | None]:
    """Return the records of a file, and None for each line that is none, such as one that an interruption cut short.

    Args:
        path: a file with one JSON object a line. A file that does not exist has no records.
    """
    return [_record(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def known_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file without the lines that are none. The argument is as in `read_records`."""
    return [record for record in read_records(path) if record is not None]


def add_records(path: Path, *records: dict[str, Any]) -> None:
    """Append records to a file.

    Args:
        path: the file, which need not exist.
        records: what JSON can hold.
    """
    # After a line that was cut short, begin a new one, so that the first record is not lost with it.
    start = "\n" if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size else ""
    with path.open("a") as file:
        file.write(start + "".join(json.dumps(record) + "\n" for record in records))


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
