"""A batch of rows understood, rendered and tokenised, without any memory of other rows: work for any process."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from daemon.core.config import Settings
from daemon.data import formats, sanity
from daemon.data.encoding import Draft, Encoded
from daemon.data.formats import Row
from daemon.data.lines import BadRow, Line
from daemon.data.render import Renderer
from daemon.data.tokens import packed

KEPT_BYTES = 1000  # of a line, for people


class Reading(NamedTuple):
    """What a good row is and trains."""

    format: str
    digest: bytes
    is_chat: bool
    thinks: bool
    notes: tuple[str, ...]
    ids: bytes  # as in the token cache
    mask: bytes
    length: int  # tokens of the whole row; `ids` of one far too long hold its beginning only
    fault: Literal["masked", "header"] | None  # what of its mask must not be trained


Read = tuple[Line, Reading | BadRow]


class Reader:
    """Reads rows for one model under one set of settings."""

    def __init__(self, renderer: Renderer, settings: Settings) -> None:
        self._renderer = renderer
        self._settings = settings
        self._headers = sanity.role_headers(renderer)

    def read(self, lines: Sequence[Line]) -> list[Read]:
        """Each line, cut to what is shown of it, with its row or why there is none; in the same order."""
        understood = [(line, self._understand(line)) for line in lines]
        drafts = [found[1] for _, found in understood if not isinstance(found, BadRow)]
        encoded = iter(self._renderer.encode(drafts))
        return [
            (
                Line(line.number, line.data[:KEPT_BYTES], line.too_long, line.ended),
                found if isinstance(found, BadRow) else self._reading(*found, next(encoded)),
            )
            for line, found in understood
        ]

    def _understand(self, line: Line) -> tuple[Row, Draft, int | None] | BadRow:
        try:
            if line.too_long:
                limit = self._settings.max_row_bytes
                raise BadRow(f"the row is longer than {limit:,} bytes", "shorten it, or raise max_row_bytes")
            if line.trouble:
                raise line.trouble
            row = formats.read(line.data, self._settings.column_map)
            draft = self._renderer.draft(row)
            cut = self._renderer.beginning(draft, self._settings.max_length)
            return row, *(cut or (draft, None))
        except BadRow as bad:
            return bad.with_traceback(None)

    def _reading(self, row: Row, draft: Draft, length: int | None, encoded: Encoded) -> Reading:
        is_chat = row.messages is not None
        fault = self._fault(encoded, is_chat) if length is None else None  # the answer may come behind the beginning
        ids, mask = packed(encoded.ids), encoded.mask
        whole = len(mask) if length is None else length
        return Reading(row.format, row.digest, is_chat, row.thinks, tuple(draft.notes), ids, mask, whole, fault)

    def _fault(self, encoded: Encoded, is_chat: bool) -> Literal["masked", "header"] | None:
        if 1 not in encoded.mask[1:]:  # the first token of a row is never predicted
            return "masked"
        return "header" if is_chat and sanity.trains_header(encoded, self._headers) else None
