"""What a listing says of a file."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class FileInfo:
    """A file below a root.

    Attributes:
        path: relative to the root, with forward slashes.
        size_bytes: its length.
        version: changes when the content does: the etag, else mtime and size.
    """

    path: str
    size_bytes: int
    version: str
