"""Model files on the control machine: whether they are whole and of a kind that engines know, before they are copied.

Only the beginning of a file is read. GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; safetensors:
https://huggingface.co/docs/safetensors (eight bytes of length, a JSON header, the tensors).
"""

from __future__ import annotations

import difflib
import json
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from gpurack import imagearchive

MAX_LENGTH = 1 << 28
"""No text or list in a header is longer; a larger number is that of a broken file."""

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Beside weights and configuration, what Ollama's converter reads of a folder of safetensors.
COMPANIONS = ("*.json", "tokenizer.model", "*.jinja")


class ModelFileError(ValueError):
    """A file is not a model that could be served; the message says why, and what to do."""


class _Ended(Exception):  # noqa: N818 - the file ends before its header does
    pass


def check_gguf(path: Path) -> None:
    """Refuse a GGUF file that is cut short, is of an architecture no engine knows, or is something else.

    Raises:
        ModelFileError: it is.
    """
    stat = _stat(path)
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file")
    _check_gguf(path.absolute(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _check_gguf(path: Path, _mtime_ns: int, size: int) -> None:
    try:
        with path.open("rb") as file:
            architecture, needed = _read_gguf(file, path)
    except _Ended:
        raise ModelFileError(f"{path} is cut short: it ends after {size} bytes, in its header; copy it again") from None
    known = _architectures()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=1)
        hint = f"; did it mean {near[0]}?" if near else ""
        raise ModelFileError(f"{path} is of architecture {architecture!r}, which llama.cpp does not know{hint}")
    if size < needed:
        raise ModelFileError(f"{path} is cut short: it has {size} bytes, its tensors need {needed}; copy it again")


def _read_gguf(file: BinaryIO, path: Path) -> tuple[str, int]:
    """Return the architecture, and the bytes that the file must have."""
    magic = file.read(4)
    if magic != b"GGUF":
        what = "an old GGML file" if magic in (b"lmgg", b"fmgg", b"tjgg") else "no GGUF file"
        raise ModelFileError(f"{path} is {what}: it begins with {magic!r}, not with b'GGUF'")
    version, tensors, fields = struct.unpack("<IQQ", _exactly(file, 20))
    if version not in (2, 3):
        raise ModelFileError(f"{path} has version {version} of GGUF; versions 2 and 3 are known")
    about: dict[str, Any] = {}
    for _ in range(fields):
        key = _text(file)
        about[key] = _value(file, _number(file, "I"), path)
    end = 0
    for _ in range(tensors):
        _text(file)
        dimensions = [_number(file, "Q") for _ in range(_number(file, "I"))]
        kind, offset = struct.unpack("<IQ", _exactly(file, 12))
        end = max(end, offset + _bytes(kind, dimensions))
    alignment = int(about.get("general.alignment") or 32)
    start = -(-file.tell() // alignment) * alignment
    return str(about.get("general.architecture", "")), start + end


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count) if count <= MAX_LENGTH else b""
    if len(data) != count:
        raise _Ended
    return data


def _number(file: BinaryIO, letter: str) -> Any:
    return struct.unpack(f"<{letter}", _exactly(file, struct.calcsize(f"<{letter}")))[0]


def _text(file: BinaryIO) -> str:
    return _exactly(file, _number(file, "Q")).decode(errors="replace")


def _value(file: BinaryIO, kind: int, path: Path) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        inner, count = _number(file, "I"), _number(file, "Q")
        if inner in _FORMATS:
            _exactly(file, count * struct.calcsize(f"<{_FORMATS[inner]}"))
        else:
            for _ in range(count):
                _value(file, inner, path)
        return None
    if kind not in _FORMATS:
        raise ModelFileError(f"{path} is broken: its header has a value of unknown type {kind}")
    return _number(file, _FORMATS[kind])


def _bytes(kind: int, dimensions: list[int]) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    elements = 1
    for dimension in dimensions:
        elements *= dimension
    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (KeyError, ValueError):  # newer than the package: the engine will tell
        return 0
    return int(elements // block * size)


@lru_cache(maxsize=1)
def _architectures() -> frozenset[str]:
    """Return the architectures of llama.cpp, as the package gguf of its makers lists them."""
    from gguf.constants import MODEL_ARCH_NAMES

    return frozenset(map(str, MODEL_ARCH_NAMES.values()))


def check_safetensors(folder: Path) -> None:
    """Refuse a folder that lacks weights or configuration, or has a file that is cut short.

    Raises:
        ModelFileError: it does.
    """
    _stat(folder)
    if not folder.is_dir():
        raise ModelFileError(f"{folder} is not a folder; safetensors come with config.json and tokenizer in one")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelFileError(f"{folder} has no *.safetensors")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file() and not (name.startswith("tok") and (folder / "tokenizer.model").is_file()):
            raise ModelFileError(f"{folder} has no {name}, which Ollama needs to make a model of safetensors")
    for path in weights:
        stat = path.stat()
        _check_safetensors(path.absolute(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _check_safetensors(path: Path, _mtime_ns: int, size: int) -> None:
    try:
        with path.open("rb") as file:
            length = _number(file, "Q")
            header = json.loads(_exactly(file, length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except _Ended:
        raise ModelFileError(f"{path} is cut short, or no safetensors file; copy it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelFileError(f"{path} is no safetensors file: its header cannot be read") from None
    if size < (needed := 8 + length + max(ends, default=0)):
        raise ModelFileError(f"{path} is cut short: it has {size} bytes, its tensors need {needed}; copy it again")


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder of safetensors that Ollama makes a model of."""
    found = set(folder.glob("*.safetensors"))
    for pattern in COMPANIONS:
        found |= set(folder.glob(pattern))
    return sorted(path for path in found if path.is_file() and not path.name.endswith(".safetensors.index.json"))


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror} (a relative path starts at the repository root)") from None


def cache_file() -> Path:
    """Return where checksums of large files are remembered from run to run."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpurack" / "sha256.json"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; read once for each state of it, also over several runs.

    A file that was changed has another time or size, or another inode; one that was made to look unchanged is found
    when it is copied, on the host.
    """
    stat = path.stat()
    key, state = str(path.absolute()), [stat.st_ino, stat.st_mtime_ns, stat.st_size]
    cache = cache_file()
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    if isinstance(entry := known.get(key), list) and entry[:3] == state:
        return str(entry[3])
    digest = imagearchive.sha256(path)
    known = {name: value for name, value in known.items() if Path(name).exists()} | {key: [*state, digest]}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = cache.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(known, indent=1))
        fresh.replace(cache)
    except OSError:
        pass  # it is read again in the next run
    return digest
