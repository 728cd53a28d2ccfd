"""Messages between the program and BiomedParse's process: a length, a line of JSON, and the bytes of one array.

Only JSON and plain numbers cross; nothing is pickled. Uses the standard library and numpy alone.
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_LENGTH = 8
#: The longest line of JSON.
_HEAD_BYTES = 1 << 20


def write(file: BinaryIO, head: dict[str, Any], array: NDArray[Any] | None = None) -> None:
    """One message."""
    if array is not None:
        array = np.ascontiguousarray(array)
        head = head | {"shape": list(array.shape), "dtype": str(array.dtype)}
    line = json.dumps(head).encode()
    file.write(len(line).to_bytes(_LENGTH, "little") + line)
    if array is not None:
        file.write(array.reshape(-1).view(np.uint8).data)
    file.flush()


def read(file: BinaryIO) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """The next message. Raises `EOFError` at the end of the stream or for what is no message."""
    length = int.from_bytes(_exactly(file, _LENGTH), "little")
    if length > _HEAD_BYTES:
        raise EOFError
    head = json.loads(_exactly(file, length))
    if "shape" not in head:
        return head, None
    kind, shape = np.dtype(head["dtype"]), tuple(int(n) for n in head["shape"])
    return head, np.frombuffer(_exactly(file, kind.itemsize * int(np.prod(shape, dtype=np.int64))), kind).reshape(shape)


def _exactly(file: BinaryIO, count: int) -> bytes:
    parts = []
    while count:
        part = file.read(min(count, 1 << 24))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
