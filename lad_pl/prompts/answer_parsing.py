r"""Reading the chosen image out of a generated text.

The rules, in this order; every one has its rows in ``tests/test_free_text.py``:

1. **Thoughts are no answers.** Only what follows the last closing thinking tag (``</think>`` and its relatives) is
   read. An opening tag that nothing closes is a chain of thought that was cut off: of what follows it only an answer
   phrase counts.
2. **Answer phrases win.** "answer is 3", "answer: 3", "final answer 3", ``<answer>3``, ``\boxed{3}``; the last one
   counts. Between phrase and identifier may stand markup and the words of :data:`_FILLER`. A phrase that names
   something of the identifiers' kind that is not one of them (12 of 8 images, 3.5) is an answer, and not a valid one.
3. **Otherwise the last mention**, the published code's "last valid number". A number within another (3.5, 1-4, 3/10,
   10%) is no mention, nor is one that the text denies ("not image 3", "rather than 3", "image 3 does not").

"a", "A" and "I" are English words. They are identifiers when the text is nothing else, when they stand in brackets,
quotes or bold, and after an answer phrase or a word such as "image" where what follows cannot go on from an article or
a pronoun ("Answer: A.", "image A is"). Letters and Roman numerals mentioned in running text must be written as the
style writes them; after a phrase case does not matter. "First," at the start of a sentence and "at first" are no
mention in the style ``words``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from lad_pl.prompts.template import IdentifierStyle, identifiers

THINKING_OPENED = re.compile(
    r"<think(?:ing)?>|<thought>|<\|begin_of_thought\|>|◁think▷|\[THINK\]|<\|channel>\s*(?:thought|analysis)", re.I
)
"""What opens a chain of thought in one family or another."""
THINKING_CLOSED = re.compile(r"</think(?:ing)?>|</thought>|<\|end_of_thought\|>|◁/think▷|\[/THINK\]|<channel\|>", re.I)
"""What closes it."""

_LABEL = r"(?:images?|options?|choices?|index|indices|number|photos?|photograph|pictures?|candidates?|figure|position)"
_ADVERB = r"(?:therefore|thus|then|hence|clearly|definitely|indeed|likely|most|probably|simply)"
_FILLER = (
    r"(?:[\s*`\"'$:=>#<(\[{\\]|-(?!\d)"
    rf"|\b(?:{_LABEL}|{_ADVERB}|the|no\.|in|at|text|textbf|mathrm|boxed|answer)\b)*"
)
_DENIAL = r"\bnot\b|\bcannot\b|n't\b|\bnever\b"
_PHRASE = (
    rf"(?:\banswer\b(?:(?!{_DENIAL})[^.!?\n\d]){{0,40}}?(?:\bis\b|\bbe\b|:|=)|\bfinal\s+answer\b|<answer>|\\boxed\s*{{)"
)
_DENIED_BEFORE = re.compile(
    rf"(?:{_DENIAL}|\b(?:neither|nor|than|except|unlike)\b|\binstead of\b)\s+(?:be\s+)?{_FILLER}$", re.I
)
_DENIED_AFTER = re.compile(rf"[*`)\]\"']*\s+(?:\w+\s+(?:{_DENIAL})|\w*(?:n't|cannot)\b)", re.I)
_LABELLED = re.compile(rf"\b{_LABEL}\s*[#:]?\s*$", re.I)
_GOES_ON = r"(?:because|since|as|for|which|where|with|and|or|is|has|shows|depicts|matches|contains|best)"
_NO_ENGLISH_WORD = re.compile(rf"[ \t]*(?:$|[^\w \t']|{_GOES_ON}\b)")
_OPENING, _CLOSING = "([{<\"'*`", ")]}>\"'*`"
_SEPARATE = (r"(?<![\w'])(?<!\w\.)", r"(?![\w']|\.\w)")
_NUMBER = r"(?<!\w)(?>[-+]?\d+(?:[.,/:-]\d+)*(?:st|nd|rd|th)?)(?!\w|\s?%)"
_PLAIN = str.maketrans("\u2018\u2019\u201c\u201d\u2013_", "''\"\"- ")
_ENGLISH = frozenset({"a", "A", "I"})


def read_choice(text: str, names: Sequence[str], style: IdentifierStyle) -> int | None:
    """Position of the image that a generated text chooses; the rules stand at the head of this module.

    >>> read_choice("Image 2 has no dog. The answer is **3**.", ("1", "2", "3", "4"), "digits")
    2
    >>> read_choice("I see a dog in none of them.", ("a", "b", "c", "d"), "lower") is None
    True

    Args:
        text: what the model wrote.
        names: the N identifiers, as :func:`lad_pl.prompts.template.identifiers` gives them.
        style: what kind they are.

    Returns:
        0-based position of the identifier, or None if no valid one can be read.
    """
    reader = _Reader(names, style)
    said, thought = _without_thoughts(text)
    if any(character.isalnum() for character in said):
        return reader.read(said)
    return reader.read_phrase(thought)


def majority(votes: Sequence[int | None]) -> int | None:
    """The most frequent valid vote of the chains of one prompt; of equals, the one that reached its count first.

    >>> majority([2, None, 0, 0, 2])
    0

    Returns:
        None if no vote is valid.
    """
    counts: Counter[int] = Counter()
    winner: int | None = None
    for vote in votes:
        if vote is not None:
            counts[vote] += 1
            if winner is None or counts[vote] > counts[winner]:
                winner = vote
    return winner


def _without_thoughts(text: str) -> tuple[str, str]:
    """What the text says, and the chain of thought in it that was cut off."""
    *_, rest = THINKING_CLOSED.split(text)
    said, *thoughts = THINKING_OPENED.split(rest)
    return said, " ".join(thoughts)


class _Reader:
    """Finds the identifiers of one style in a text.

    Args:
        names: the N valid identifiers.
        style: their kind.
    """

    def __init__(self, names: Sequence[str], style: IdentifierStyle) -> None:
        self.positions = {name.casefold(): position for position, name in enumerate(names)}
        self.style = style
        token = _token(style)
        self.token = re.compile(token, re.I)
        self.phrase = re.compile(rf"{_PHRASE}{_FILLER}(?:(?P<none>none\b)|(?P<name>{token}))", re.I)

    def read(self, text: str) -> int | None:
        """The choice of a text without thoughts."""
        text = _plain(text)
        if self.style != "digits":
            bare = re.sub(r"^\W+|\W+$", "", text)
            if bare.casefold() in self.positions:
                return self.positions[bare.casefold()]
        phrases = self._phrases(text)
        if phrases:
            return phrases[-1]
        mentions = [self._position(match[0]) for match in self.token.finditer(text) if self._is_mention(text, match)]
        return mentions[-1] if mentions else None

    def read_phrase(self, text: str) -> int | None:
        """The choice of the last answer phrase alone."""
        phrases = self._phrases(_plain(text))
        return phrases[-1] if phrases else None

    def _phrases(self, text: str) -> list[int | None]:
        """What each answer phrase names; None for what is no valid identifier."""
        found: list[int | None] = []
        for match in self.phrase.finditer(text):
            if match["none"] is not None:
                found.append(None)
            elif not _is_english_word(text, *match.span("name")):
                found.append(self._position(match["name"]))
        return found

    def _is_mention(self, text: str, match: re.Match[str]) -> bool:
        """Whether the match names an image, and is neither denied nor a word of the language."""
        (start, end), name = match.span(), match[0]
        before, after = text[max(0, start - 60) : start], text[end : end + 30]
        denied = _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after)
        if denied or self._position(name) is None:
            return False
        if self.style == "words":
            return not _is_adverb(before, after)
        if self.style == "digits" or _is_wrapped(text, start, end):
            return True
        if name in _ENGLISH:
            return bool(_LABELLED.search(before)) and not _is_english_word(text, start, end)
        return name == (name.lower() if self.style == "lower" else name.upper()) or bool(_LABELLED.search(before))

    def _position(self, name: str) -> int | None:
        if self.style == "digits":
            name = re.sub(r"(?:st|nd|rd|th)$", "", name, flags=re.I)
        return self.positions.get(re.sub(r"\s+", "-", name).casefold())


def _plain(text: str) -> str:
    """Straight quotes, hyphens for dashes, and blanks for ``_``, which is markup here but a letter to regular
    expressions; "image3" and "image-3" become "image 3"."""
    return re.sub(rf"\b({_LABEL})-?(?=\d)", r"\1 ", text.translate(_PLAIN), flags=re.I)


def _token(style: IdentifierStyle) -> str:
    """Regular expression of anything of the style's kind, valid for the sample at hand or not."""
    before, after = _SEPARATE
    match style:
        case "digits":
            return _NUMBER
        case "roman":
            return rf"{before}[IVX]+{after}"
        case "words":
            ordinals = sorted((name.replace("-", r"[-\s]") for name in identifiers("words", 26)), key=len, reverse=True)
            return rf"(?<![\w-])(?:{'|'.join(ordinals)})(?![\w-])"
    return rf"{before}[A-Za-z]{after}"


def _is_english_word(text: str, start: int, end: int) -> bool:
    """Whether what stands there is an article or a pronoun, as far as can be told."""
    if text[start:end] not in _ENGLISH or _is_wrapped(text, start, end):
        return False
    return _NO_ENGLISH_WORD.match(text, end) is None


def _is_wrapped(text: str, start: int, end: int) -> bool:
    """Whether brackets, quotes or markup stand right before and right after."""
    return text[start - 1 : start] in tuple(_OPENING) and text[end : end + 1] in tuple(_CLOSING)


def _is_adverb(before: str, after: str) -> bool:
    """Whether an ordinal orders the text ("First, ...", "At first ...") and not the images."""
    opens_sentence = re.search(r"(?:^|[.!?:\n])\s*$", before) is not None and after.startswith(",")
    return opens_sentence or re.search(r"\bat\s+$", before, re.I) is not None or after.startswith(" of all")
