"""Pieces of tensors in safetensors files: a rank's consecutive numbers of each parameter, and where they begin in it.

Free of torch, as `checkpoint_files` is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from rosepo.utils.errors import StageError

_DTYPES = {"float32": "F32", "float64": "F64", "uint8": "U8"}
_PLACES = "places"


class Place(NamedTuple):
    """Where a piece belongs.

    Attributes:
        start: of its first number in the flattened parameter.
        whole: numbers in all of that parameter.
    """

    start: int
    whole: int


def write_pieces(path: Path, pieces: Mapping[str, np.ndarray], places: Mapping[str, Place]) -> None:
    """Write arrays (contiguous; float32, float64 or uint8) as a safetensors file, straight from their memory.

    Its own writer takes five times as long for it in the kernel, and the training waits for whoever reads its state.

    Args:
        places: of those that are pieces of a parameter.
    """
    header: dict[str, Any] = {"__metadata__": {_PLACES: json.dumps(places)}}
    end = 0
    for key, array in pieces.items():
        begin, end = end, end + array.nbytes
        header[key] = {"dtype": _DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [begin, end]}
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for array in pieces.values():
            file.write(array.reshape(-1).view(np.uint8).data)


class PieceReader:
    """Numbers of parameters out of several files of pieces.

    Args:
        paths: in this order they are looked into, none of them that is not needed.
        remedy: what to do where one of them cannot be read.
    """

    def __init__(self, paths: Sequence[Path], remedy: str) -> None:
        self.paths, self.remedy = paths, remedy
        self._known: dict[Path, dict[str, tuple[Place, int]]] = {}

    def read(self, key: str, start: int, stop: int, whole: int) -> np.ndarray:
        """The numbers from `start` to `stop` of a parameter of `whole` numbers: float32 [stop - start].

        Raises:
            StageError: a file that cannot be read.
            ValueError: they are not all there, or the parameter has another size.
        """
        found = np.empty(stop - start, dtype=np.float32)
        left = len(found)
        for path in self.paths:
            if not left:
                break
            place, size = self._places(path).get(key, (Place(0, whole), 0))
            if place.whole != whole:
                raise ValueError(f"{path} holds {key} of {place.whole:,} numbers for a parameter of {whole:,}")
            low, high = max(start, place.start), min(stop, place.start + size)
            if low < high:
                with opened(path, self.remedy) as file:
                    found[low - start : high - start] = flat_slice(file, key, low - place.start, high - place.start)
                left -= high - low
        if left:
            raise ValueError(f"{self.paths[0].parent} holds no {key}, or {left:,} of its numbers are missing")
        return found

    def _places(self, path: Path) -> dict[str, tuple[Place, int]]:
        """Place and size of every piece in a file."""
        if path not in self._known:
            with opened(path, self.remedy) as file:
                places = json.loads(file.metadata()[_PLACES])
                sizes = {key: math.prod(file.get_slice(key).get_shape()) for key in places}
            self._known[path] = {key: (Place(*place), sizes[key]) for key, place in places.items()}
        return self._known[path]


def flat_slice(file: Any, key: str, start: int, stop: int) -> np.ndarray:
    """Numbers from `start` to `stop` of a flattened tensor in an open safetensors file; only its rows around them are
    read."""
    part = file.get_slice(key)
    shape = part.get_shape()
    if not shape:
        return np.asarray(file.get_tensor(key)).reshape(-1)[start:stop]
    width = max(1, math.prod(shape[1:]))
    first = start // width
    rows: np.ndarray = part[first : -(-stop // width)]
    return rows.reshape(-1)[start - first * width : stop - first * width]


@contextmanager
def opened(path: Path, remedy: str) -> Iterator[Any]:
    """A safetensors file, mapped into memory no longer than it is open.

    Raises:
        StageError: it cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise StageError(f"{path} cannot be read ({error}): {remedy}") from error
