"""A batch of rows understood, rendered and tokenised, without any memory of other rows: work for any process."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from daemon.core.config import Settings
from daemon.data import formats, sanity
from daemon.data.encoding import Draft, Encoded
from daemon.data.formats import Row
from daemon.data.lines import BadRow, Line
from daemon.data.render import Renderer

KEPT_BYTES = 1000  # of a line, for people


@dataclass(frozen=True)
class Reading:
    """What a good row is and trains."""

    format: str
    digest: bytes
    is_chat: bool
    thinks: bool
    notes: frozenset[str]
    encoded: Encoded
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
                replace(line, data=line.data[:KEPT_BYTES], trouble=None),
                found if isinstance(found, BadRow) else self._reading(*found, next(encoded)),
            )
            for line, found in understood
        ]

    def _understand(self, line: Line) -> tuple[Row, Draft] | BadRow:
        try:
            if line.too_long:
                limit = self._settings.max_row_bytes
                raise BadRow(f"the row is longer than {limit:,} bytes", "shorten it, or raise max_row_bytes")
            if line.trouble:
                raise line.trouble
            row = formats.read(line.data, self._settings.column_map)
            return row, self._renderer.draft(row)
        except BadRow as bad:
            return bad.with_traceback(None)

    def _reading(self, row: Row, draft: Draft, encoded: Encoded) -> Reading:
        is_chat = row.messages is not None
        fault: Literal["masked", "header"] | None = None
        if 1 not in encoded.mask[1:]:  # the first token of a row is never predicted
            fault = "masked"
        elif is_chat and sanity.trains_header(encoded, self._headers):
            fault = "header"
        packed = Encoded(array("i", encoded.ids), encoded.mask)
        return Reading(row.format, row.digest, is_chat, row.thinks, draft.notes, packed, fault)
