"""SHA-256 of files and JSON, and comparison of tensors, in memory that does not grow with the file."""

import hashlib
import json
import mmap
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from surgery.checkpoint.headers import TensorInfo
from surgery.errors import CheckpointError

_CHUNK = 4 * 1024 * 1024
_SMALL_CHUNK = 1024 * 1024  # fits into the cache of a processor


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file in hex; `on_bytes` is called with the size of each chunk that was read.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                if on_bytes is not None:
                    on_bytes(count)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


class BackgroundHasher:
    """The SHA-256 of files while another function copies them, computed in a thread that reads just behind the copy.

        with BackgroundHasher() as hashes:
            place_file(path, target, "copy", hashes.follow(path, report))
            found = hashes.results()

    The bytes that were just copied are still in memory, and hashing runs while the disk writes the copy, so it costs
    almost no time if a second core is free. Memory does not grow with the files.
    """

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[tuple[Path, int] | None] = queue.SimpleQueue()
        self._digests: dict[Path, Any] = {}
        self._error: Exception | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="hashing", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread; files whose results were not requested are not hashed to their end."""
        self._stopped = True
        self._told.put(None)
        self._thread.join()

    def follow(self, path: Path, on_bytes: Callable[[int], None]) -> Callable[[int], None]:
        """A function to call with the number of bytes of `path` that were copied, in order, one file after the other.

        It also calls `on_bytes`.
        """

        def told(count: int) -> None:
            on_bytes(count)
            self._told.put((path, count))

        return told

    def results(self) -> dict[Path, str]:
        """Wait for the thread; the SHA-256 in hex of the copied bytes of each file.

        Raises:
            CheckpointError: a file cannot be read, or was truncated meanwhile.
        """
        self._told.put(None)
        self._thread.join()
        if isinstance(self._error, OSError):
            raise CheckpointError(f"a file cannot be read: {self._error.strerror or self._error}") from self._error
        if self._error is not None:
            raise self._error
        return {path: digest.hexdigest() for path, digest in self._digests.items()}

    def _run(self) -> None:
        buffer = memoryview(bytearray(_SMALL_CHUNK))
        file, current = None, None
        try:
            while (told := self._told.get()) is not None:
                path, left = told
                if path != current:
                    if file is not None:
                        file.close()
                    file, current = path.open("rb", buffering=0), path
                    self._digests[path] = hashlib.sha256()
                assert file is not None
                while left and not self._stopped:
                    count = file.readinto(buffer[:left])
                    if not count:
                        raise OSError(f"{path.name} has become shorter")
                    self._digests[path].update(buffer[:count])
                    left -= count
        except Exception as error:  # raised by `results`
            self._error = error
        finally:
            if file is not None:
                file.close()


def sha256_json(obj: Any) -> str:
    """The SHA-256 of a JSON value in its canonical form: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: `obj` holds NaN or Infinity.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_bytes(path: Path, info: TensorInfo) -> memoryview:
    """The bytes of one tensor as a read-only memory map: pages are loaded when they are read.

    Raises:
        CheckpointError: the file cannot be read or was truncated meanwhile.
    """
    # A memory map must start at a page.
    offset = info.begin - info.begin % mmap.ALLOCATIONGRANULARITY
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), info.end - offset, access=mmap.ACCESS_READ, offset=offset)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name}: the bytes of tensor {info.name!r} cannot be read: {error}") from error
    return memoryview(mapping)[info.begin - offset :]


def same_tensor_bytes(a_path: Path, a_info: TensorInfo, b_path: Path, b_info: TensorInfo) -> bool:
    """Whether two tensors have the same bytes, compared chunk by chunk. Dtype and shape are not compared.

    Raises:
        CheckpointError: a file cannot be read or was truncated meanwhile.
    """
    if a_info.nbytes != b_info.nbytes:
        return False
    # Python compares memoryviews element by element, but bytearrays with memcmp.
    a_chunk, b_chunk = bytearray(_CHUNK), bytearray(_CHUNK)
    try:
        with a_path.open("rb", buffering=0) as a_file, b_path.open("rb", buffering=0) as b_file:
            a_file.seek(a_info.begin)
            b_file.seek(b_info.begin)
            left = a_info.nbytes
            while left:
                if left < _CHUNK:
                    a_chunk, b_chunk = bytearray(left), bytearray(left)
                _fill(a_file, memoryview(a_chunk), a_path)
                _fill(b_file, memoryview(b_chunk), b_path)
                if a_chunk != b_chunk:
                    return False
                left -= len(a_chunk)
    except OSError as error:
        raise CheckpointError(f"{a_path.name} or {b_path.name} cannot be read: {error.strerror}") from error
    return True


def _fill(file: Any, buffer: memoryview, path: Path) -> None:
    # A raw read may return fewer bytes than requested.
    while buffer:
        count = file.readinto(buffer)
        if not count:
            raise CheckpointError(f"{path.name} is shorter than its header says")
        buffer = buffer[count:]
