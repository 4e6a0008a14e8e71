"""The token cache: a folder of flat arrays, written once by intake and memory-mapped by the worker.

ids.bin      int32   the tokens of all rows, one after the other
mask.bin     uint8   1 = trained; as long as ids.bin
rows.bin     uint64  where each row begins in ids.bin, and where the last one ends: rows + 1 numbers
lines.bin    uint64  the line in the source, from 1
digests.bin  16 bytes a row: what is trained
tokens.json  TokensMeta, written last

All little endian. What it does not cover: nobody but the worker reads the arrays as numbers.
"""

import hashlib
import json
import sys
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from daemon.core import files
from daemon.core.attempts import FileSeal
from daemon.core.config import Settings
from daemon.core.errors import BadConfig
from daemon.core.records import Record
from daemon.data.formats import DIGEST_BYTES

ID_BYTES = 4
FORMAT = 2  # of rendering and cache: raised where the same rows would give other tokens or masks
META = "tokens.json"
IDS, MASK, ROWS, LINES, DIGESTS = "ids.bin", "mask.bin", "rows.bin", "lines.bin", "digests.bin"
TOKENIZER = "tokenizer.json"
MODEL_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class TokensMeta(Record):
    """`tokens.json`: what the cache holds, and the proof that it is whole."""

    rows: int
    tokens: int
    trained_tokens: int
    longest_row: int  # tokens
    left_out_rows: int  # rows of the source that are not in the cache
    data_sha256: str  # of the file it was made from; of a holdout its key
    key: str  # names tokenizer, template and options; of a holdout its key
    files: dict[str, FileSeal]


class TokensWriter:
    """Writes a cache into a staged folder, row by row, in flat memory. Without `finish` there is no cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows = self.tokens = self.trained_tokens = self.longest_row = 0

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._files = {name: opened.enter_context((self._folder / name).open("wb")) for name in sizes(0, 0)}
            self._close = opened.pop_all()
        self._files[ROWS].write(bytes(8))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close.close()

    def append(self, ids: bytes, mask: bytes, line: int, digest: bytes) -> None:
        """One row; `ids` as `packed` makes them."""
        assert len(ids) == ID_BYTES * len(mask) and len(digest) == DIGEST_BYTES
        self.rows += 1
        self.tokens += len(mask)
        self.trained_tokens += mask.count(1)
        self.longest_row = max(self.longest_row, len(mask))
        self._files[IDS].write(ids)
        self._files[MASK].write(mask)
        self._files[ROWS].write(self.tokens.to_bytes(8, "little"))
        self._files[LINES].write(line.to_bytes(8, "little"))
        self._files[DIGESTS].write(digest)

    def finish(self, data_sha256: str, key: str, left_out_rows: int) -> TokensMeta:
        self._close.close()
        meta = TokensMeta(
            rows=self.rows,
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
            longest_row=self.longest_row,
            left_out_rows=left_out_rows,
            data_sha256=data_sha256,
            key=key,
            files={name: _seal(self._folder / name) for name in self._files},
        )
        meta.save(self._folder / META)
        return meta


def packed(ids: Sequence[int]) -> bytes:
    """Tokens as they lie in ids.bin."""
    numbers = array("i", ids)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _seal(path: Path) -> FileSeal:
    return FileSeal(bytes=path.stat().st_size, sha256=files.hash_file(path))


def sizes(rows: int, tokens: int) -> dict[str, int]:
    """The bytes that each file has in a whole cache."""
    return {IDS: ID_BYTES * tokens, MASK: tokens, ROWS: 8 * (rows + 1), LINES: 8 * rows, DIGESTS: DIGEST_BYTES * rows}


def read_meta(folder: Path) -> TokensMeta | None:
    """What the cache says of itself; None where there is none or its record is damaged."""
    try:
        return TokensMeta.load(folder / META)
    except ValueError:
        return None


def read_digests(folder: Path) -> set[bytes]:
    """What each row of the cache trains."""
    data = (folder / DIGESTS).read_bytes()
    return {data[i : i + DIGEST_BYTES] for i in range(0, len(data), DIGEST_BYTES)}


def check(folder: Path, key: str, data_sha256: str, *, deep: bool = False) -> str | None:
    """Why the cache cannot be used for this data under this key, in words; None where it can.

    `deep` also reads every byte.
    """
    meta = read_meta(folder)
    if meta is None:
        return f"there is no whole token cache in {folder}"
    if meta.key != key:
        return "the tokenizer, the chat template or the settings of intake have changed since"
    if meta.data_sha256 != data_sha256:
        return "the data has changed since"
    for name, size in sizes(meta.rows, meta.tokens).items():
        if reason := _damage(folder / name, size, meta.files.get(name), deep):
            return reason
    return None


def _damage(path: Path, size: int, seal: FileSeal | None, deep: bool) -> str | None:
    if seal is None or seal.bytes != size:
        return f"{META} does not agree with itself about {path.name}"
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    if found != size:
        return f"{path.name} has {found} bytes instead of {size}"
    if deep and files.hash_file(path) != seal.sha256:
        return f"the content of {path.name} has changed"
    return None


def key(model_folder: Path, settings: Settings) -> str:
    """Names everything but the data that decides the tokens and the mask. Raises BadConfig without a tokenizer."""
    options: list[Any] = [FORMAT, settings.max_length, settings.excess_length, settings.max_row_bytes]
    options += [settings.column_map, settings.enable_thinking]
    names = [name for name in MODEL_FILES if (model_folder / name).is_file()]
    if TOKENIZER not in names:
        raise no_tokenizer(model_folder)
    hashes = {name: files.hash_file(model_folder / name) for name in names}
    return hashlib.sha256(json.dumps([options, hashes], sort_keys=True).encode()).hexdigest()


def no_tokenizer(model_folder: Path) -> BadConfig:
    return BadConfig(
        f"{model_folder} has no {TOKENIZER}.",
        "set base_model to a model's folder that has one; AutoTokenizer.from_pretrained(…).save_pretrained(…) "
        "of transformers writes it for models that come with tokenizer.model only",
    )
