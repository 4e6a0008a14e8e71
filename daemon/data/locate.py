"""The slow way to the place of an assistant's turn, by rendering the row with another answer: for any template."""

import re

from daemon.data.formats import Message, Row
from daemon.data.lines import BadRow
from daemon.data.markers import Span
from daemon.data.speech import Speech, common_start
from daemon.data.template import Template

# No template treats plain letters in a special way.
SENTINEL = "Kq7ZsentinelW3xVtextY9bJ"


def locate(template: Template, speech: Speech, row: Row, turn: int, text: str) -> Span:
    """Where the assistant's turn stands in the row's text, the token that ends it included. Raises BadRow.

    This holds for templates that rewrite earlier turns and for answers that quote the template's own words.
    """
    messages = row.messages or []
    stand_in: list[Message] = [*messages[:turn], {"role": "assistant", "content": SENTINEL}, *messages[turn + 1 :]]
    other, _ = template.render(stand_in, row.tools)
    before, found, after = other.partition(SENTINEL)
    start = _start(template, row, turn, before)
    end = len(text) - len(after)
    if not found or start is None or end < start or not (text.startswith(before[:start]) and text.endswith(after)):
        raise BadRow(
            f"the place of turn {turn + 1} in the rendered text cannot be found",
            "use a chat template with {% generation %} marks, or split the conversation into several rows",
        )
    return speech.close(text, (start - speech.length_prompted(before[:start]), end))


def _start(template: Template, row: Row, turn: int, before: str) -> int | None:
    """Where the assistant begins to write in `before`, the text up to its answer: behind the prompt for generation.

    None where it cannot be told.
    """
    earlier = (row.messages or [])[:turn]
    prompt, _ = template.render(earlier, row.tools, add_generation_prompt=True)
    if before.startswith(prompt):
        return len(prompt)
    bare, _ = template.render(earlier, row.tools)
    common = len(common_start(prompt, before))
    if len(bare) < common:  # the prompt opens a block, of reasoning for example, that this turn does not have
        return common
    # Earlier turns look different without the later ones. The last place that looks like the prompt's first line is
    # ours: after it there is only what the template puts before an answer.
    opening = prompt[len(bare) :] if prompt.startswith(bare) else ""
    first_line = re.match(r"\s*[^\n]*\n?", opening)
    place = before.rfind(first_line[0]) if first_line and first_line[0].strip() else -1
    return place + len(common_start(opening, before[place:])) if place >= 0 else None
