"""What must never be trained: the headers with which the chat template begins a user's or system's turn."""

from collections.abc import Sequence

from daemon.core.errors import BadConfig
from daemon.data.encoding import Draft, Encoded
from daemon.data.formats import Row
from daemon.data.lines import BadRow
from daemon.data.locate import SENTINEL
from daemon.data.render import Renderer

_OTHER = "Vx3QanswerwZ8"  # stands for the answer before the user's second turn

Header = tuple[int, ...]


def role_headers(renderer: Renderer) -> list[Header]:
    """The tokens that begin a user's and a system's turn; none where the template writes them as plain text."""
    turns = [("user", _OTHER), ("assistant", _OTHER), ("user", SENTINEL)]
    row = Row("", messages=[{"role": role, "content": content} for role, content in turns])
    try:
        text = renderer.draft(row).text
    except (BadRow, BadConfig):
        return []
    between = text.partition(SENTINEL)[0].rpartition(_OTHER)[2]
    headers = [_header(renderer, between)] + [_header(renderer, between.replace("user", "system"))] * (
        "user" in between
    )
    return [header for header in headers if header]


def _header(renderer: Renderer, between: str) -> Header:
    """The tokens from behind the token that ends a turn to the last that is not white space."""
    ids = renderer.encode([Draft(between.rstrip(), [])])[0].ids
    special = [place for place, token in enumerate(ids) if token in renderer.special_ids]
    if not special:
        return ()
    return tuple(ids[special[1] if len(special) > 1 and special[0] == 0 else special[0] :])


def trains_header(encoded: Encoded, headers: Sequence[Header]) -> bool:
    """Whether a whole header stands in a trained span."""
    return any(_stands_trained(encoded, header) for header in headers)


def _stands_trained(encoded: Encoded, header: Header) -> bool:
    ids, size = encoded.ids, len(header)
    place = encoded.mask.find(1) - 1
    while True:
        try:
            place = ids.index(header[0], place + 1)
        except ValueError:
            return False
        if encoded.mask[place] and tuple(ids[place : place + size]) == header:
            return True
