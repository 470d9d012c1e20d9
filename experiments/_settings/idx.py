"""IDX files, the format of MNIST and Fashion-MNIST: images and labels, gz or plain."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np

from experiments._command.errors import ConfigError

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"


def read_idx(path: str | Path, name: str) -> np.ndarray:
    """The array in an IDX file.

    Args:
        path: of the file; whether it is gzipped is read off its first bytes.
        name: of the option that named it, for errors.

    Raises:
        ConfigError: if it cannot be read, is no IDX file, or is cut short.
    """

    def refuse(why: object) -> ConfigError:
        return ConfigError(f"{name} = {str(path)!r} {why}")

    try:
        content = Path(path).read_bytes()
        if content[:2] == _GZIP:
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        why = f"cannot be read: {error}"
        raise refuse(why) from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        why = "is no IDX file: the first bytes must be 0, 0, a type, and a rank"
        raise refuse(why)
    rank, begin = content[3], 4 + 4 * content[3]
    if len(content) < begin:
        why = f"ends within its header of {rank} dimensions"
        raise refuse(why)
    shape = struct.unpack(f">{rank}I", content[4:begin])
    dtype = np.dtype(_TYPES[content[2]])
    wanted = math.prod(shape) * dtype.itemsize
    if len(content) - begin != wanted:
        why = (
            f"has {len(content) - begin} bytes after its header, but its shape {shape} "
            f"takes {wanted}: fetch the file again"
        )
        raise refuse(why)
    return np.frombuffer(content, dtype, offset=begin).reshape(shape)
