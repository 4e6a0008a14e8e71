"""What is wished for a file that waits for approval: approve, reject; each hits only the question that was asked."""

from daemon.core.records import Answer, Question, State, Wish
from daemon.jobs.store import Found
from daemon.models import checkpoints
from daemon.service import asking
from daemon.service.answering import later, meant, no, yes
from daemon.service.context import Context

OPPOSITE = {"approve": "reject", "reject": "approve"}


async def approve(context: Context, wish: Wish) -> Answer | None:
    return _answer(context, wish, passed=True)


async def reject(context: Context, wish: Wish) -> Answer | None:
    return _answer(context, wish, passed=False)


def gave(context: Context, wish: Wish) -> bool:
    """Whether this wish has answered a question, perhaps since before a restart."""
    question = asking.newest_question(context.workspace, wish.job) if wish.job else None
    return question is not None and question.wish == wish.id


def _answer(context: Context, wish: Wish, *, passed: bool) -> Answer | None:
    found = meant(context, wish)
    question = asking.newest_question(context.workspace, found.id)
    if question is None or wish.options.get("attempt") not in (None, question.automatic.attempt):
        return _nothing_waits(context, wish, found)
    if question.answer is not None:
        return None if found.state is State.PROCESSING else _carried_out(context, wish, found, question, passed)
    if found.state is not State.PROCESSING:
        return _nothing_waits(context, wish, found)
    other = OPPOSITE[wish.verb]
    if later(context, wish, other):
        return no(wish, f"a later {other} has taken this back", f"nothing, if that was meant; it is {other}ed")
    asking.answer(context, found, question, passed, wish)
    return None


def _carried_out(context: Context, wish: Wish, found: Found, question: Question, passed: bool) -> Answer:
    part = checkpoints.part_in_model(context.workspace, found.id)
    if passed and question.answer and part.steps:
        words = f"{found.job.file} is approved; the model contains {part.steps} of its updates"
        return yes(wish, words, job=found.id, checkpoint=question.automatic.checkpoint)
    if not passed and question.answer is False and found.state is State.REJECTED:
        words = f"{found.job.file} is rejected; the model is as it was before it"
        return yes(wish, words, job=found.id, reason=found.job.reason)
    return _nothing_waits(context, wish, found)


def _nothing_waits(context: Context, wish: Wish, found: Found) -> Answer:
    if found.state is not State.PROCESSING:
        remedy = f"training_queue show {found.job.file} says where it stands"
        return no(wish, f"{found.job.file} does not wait for approval: it is {found.state}", remedy)
    if context.judge.running:
        remedy = "where it does not decide in its time, approve and reject do"
        return no(wish, f"{found.job.file} does not wait for approval: the judge is being asked", remedy)
    remedy = "training_controller status says when it does; that takes gate mode human or judge"
    return no(wish, f"{found.job.file} does not wait for approval: it is being trained", remedy)
