"""The model's chat template: the text of a conversation on a fixed day, and what stands before the answer in it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from transformers import ProcessorMixin
from transformers.utils import chat_template_utils

from lad_pl.errors import UserError, first_line

Turn = dict[str, Any]

_ANSWER = "ANSWERMARKER"
_CLOCK = "strftime_now"
"""The function by which chat templates ask for the date."""
_UNLIKE = ("1999-01-02", "2028-11-30")
"""Two days that no format writes alike."""


class ChatTemplate:
    """A processor's chat template with the variables that a prompt sets.

    Args:
        processor: the model's processor.
        variables: of the template, by name.
        date: the day that the template is to write, as YYYY-MM-DD; None for today. It stays the same from here on,
            in data workers as well.

    Raises:
        UserError: the template has no such variable.
    """

    def __init__(self, processor: ProcessorMixin, variables: Mapping[str, Any], date: str | None = None) -> None:
        self._processor = processor
        self._variables = dict(variables)
        self._check_variables()
        asks = _CLOCK in str(self._processor.chat_template)
        self._date = (date or today()) if asks else None

    def _check_variables(self) -> None:
        taken = {"messages", *inspect.signature(self._processor.apply_chat_template).parameters}
        for name in self._variables:
            if name in taken or not re.search(rf"\b{re.escape(name)}\b", str(self._processor.chat_template)):
                raise UserError(
                    f"prompt.chat_template_kwargs names '{name}', which is no variable of this model's chat template "
                    "that a prompt may set."
                )

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the processor's ``apply_chat_template`` that set the variables and the date."""
        return self._options(self._date)

    def dated(self) -> str | None:
        """The template's text, to be rendered on the fixed day next; None if it asks for no date."""
        return self.options.get("chat_template")

    def _options(self, date: str | None) -> dict[str, Any]:
        if date is None:
            return self._variables
        return {**self._variables, "chat_template": _dated(self._processor._resolve_chat_template(None), date)}

    def render(self, turns: list[Turn], answering: bool = True) -> str:
        """The text that the template makes of a conversation.

        Args:
            turns: of the conversation.
            answering: end with the generation prompt, after which the assistant answers.

        Raises:
            UserError: the template refuses the conversation.
        """
        return self._render(turns, answering, self._date)

    def _render(self, turns: list[Turn], answering: bool, date: str | None) -> str:
        try:
            return self._processor.apply_chat_template(turns, add_generation_prompt=answering, **self._options(date))
        except Exception as error:  # templates raise whatever they like
            raise UserError(f"The model's chat template refuses the prompt: {first_line(error)}.") from error

    def date_in(self, turns: list[Turn]) -> str | None:
        """The day that the template writes into a conversation; None if it writes none."""
        if self._date is None:
            return None
        try:
            first, second = (self._render(turns, True, date) for date in _UNLIKE)
        except UserError:  # rendering the prompt raises it again
            return None
        return None if first == second else self._date

    def before_answer(self, turns: list[Turn]) -> str:
        """What the template puts between its generation prompt and the assistant's answer.

        ``Assistant:`` ends a generation prompt, and an answered turn is ``Assistant: 1``: then it is a blank. Empty
        where an answered turn does not begin with the generation prompt, or where the template knows no such turn.
        """
        opened = self.render(turns)
        try:
            answered = self.render([*turns, self._answer(turns)], answering=False)
        except UserError:
            return ""
        if not answered.startswith(opened) or _ANSWER not in answered[len(opened) :]:
            return ""
        return answered[len(opened) :].partition(_ANSWER)[0]

    def after_answer(self, turns: list[Turn], *following: Turn) -> str:
        """What the template writes after an answer to ``turns``, with the turns that follow it.

        Raises:
            UserError: the template refuses the conversation.
        """
        text = self.render([*turns, self._answer(turns), *following], answering=False)
        return text.rpartition(_ANSWER)[2]

    def _answer(self, turns: list[Turn]) -> Turn:
        """An assistant's turn in the form that the template reads: a string, or a list of parts."""
        string, parts = turn("assistant", _ANSWER), turn("assistant", [words(_ANSWER)])
        try:
            # A template that reads parts only shows nothing of a string; one that reads strings only shows Python's
            # own notation of a list.
            return string if _ANSWER in self.render([*turns, string], answering=False) else parts
        except UserError:
            return parts


def today() -> str:
    """Today as chat templates see it, as YYYY-MM-DD."""
    template = f"{{{{ {_CLOCK}('%Y-%m-%d') }}}}"
    return chat_template_utils.render_jinja_template(conversations=[[]], chat_template=template)[0][0]


def turn(role: str, content: Any) -> Turn:
    """One turn of a conversation."""
    return {"role": role, "content": content}


def words(text: str) -> dict[str, Any]:
    """A turn's part that is text."""
    return {"type": "text", "text": text}


def _dated(template: str, date: str) -> str:
    """A template's text that renders on that day, whatever the day is; its time is midnight.

    transformers hands templates plain data only, no function, but compiles every text once. The comment, which renders
    to nothing, gives the day a compiled template of its own, whose clock can be set without touching another's.
    """
    text = f"{{# {date} #}}\n{template}"
    chat_template_utils._compile_jinja_template(text).globals[_CLOCK] = datetime.fromisoformat(date).strftime
    return text
