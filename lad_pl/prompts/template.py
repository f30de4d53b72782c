"""The prompt template and the identifier styles: one definition for calibration, test and prediction."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from string import Formatter
from typing import Any, Literal

from lad_pl.errors import UserError

IdentifierStyle = Literal["digits", "upper", "lower", "roman", "words"]
SpanRule = Literal["delimiters", "visual"]

BASE_TEMPLATE = (
    "Given {n} images indexed from {first} to {last}, identify the image that best matches the provided caption. "
    "Respond with the index number only and nothing else.\nCaption: {caption}\nAnswer: "
)
"""The paper's base prompt."""

_WORDS = [
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"),
    *("eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth"),
    *("nineteenth", "twentieth", "twenty-first", "twenty-second", "twenty-third", "twenty-fourth", "twenty-fifth"),
    "twenty-sixth",
]
_ROMAN = ((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


@dataclass(frozen=True)
class PromptSpec:
    """How a sample becomes a prompt. A calibration is valid for exactly one prompt specification."""

    template: str = BASE_TEMPLATE
    """Text after the images. Fields: {n} (number of images), {first} and {last} (identifiers), {caption}."""
    identifiers: IdentifierStyle = "digits"
    """Identifiers of the images: digits (1, 2), upper (A, B), lower (a, b), roman (I, II) or words (first, second)."""
    image_size: int | None = 336
    """Side in pixels to which every image is resized (square, bicubic) before the model's own processor, as in the
    published code; null keeps the size."""
    images_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of the model's own image processor, such as max_pixels, max_patches or do_image_splitting."""
    spans: SpanRule = "delimiters"
    """Tokens that belong to an image: delimiters, its visual tokens and the delimiters around them (the published
    code), or visual, the visual tokens alone (the paper's eq. 6)."""
    system: str | None = None
    """Text of the system turn; null leaves it to the model's chat template."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the model's chat template, such as enable_thinking: false, so that a reasoning model answers
    without a chain of thought."""

    def __post_init__(self) -> None:
        known = {"n", "first", "last", "caption"}
        try:
            named = {name for _, name, _, _ in Formatter().parse(self.template) if name is not None}
        except ValueError as error:
            raise UserError(f"prompt.template is no valid format string ({error}); double literal braces.") from error
        if "caption" not in named or named - known:
            raise UserError(
                "prompt.template must contain {caption} and otherwise only {n}, {first}, {last}; "
                f"it contains {', '.join(sorted('{' + name + '}' for name in named)) or 'no field'}."
            )
        try:
            self.text("x", 2)
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(f"prompt.template cannot be filled in: {error}.") from error
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"prompt.image_size is {self.image_size}; give a side in pixels, or null for no resizing.")

    def text(self, caption: str, num_candidates: int) -> str:
        """The prompt's text for one caption; it follows the images."""
        names = identifiers(self.identifiers, num_candidates)
        return self.template.format(n=num_candidates, first=names[0], last=names[-1], caption=caption)

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, for provenance."""
        return asdict(self)


def identifiers(style: IdentifierStyle, num_candidates: int) -> tuple[str, ...]:
    """The N names of the images in one style.

    >>> identifiers("roman", 4)
    ('I', 'II', 'III', 'IV')

    Raises:
        UserError: N is below 2 or the style has fewer than N names.
    """
    if num_candidates < 2:
        raise UserError(f"A prompt needs at least 2 images; this one has {num_candidates}.")
    limit = {"digits": 99, "roman": 39}.get(style, 26)
    if num_candidates > limit:
        raise UserError(f"Identifier style '{style}' names at most {limit} images, not {num_candidates}; use 'digits'.")
    return tuple(_identifier(style, number) for number in range(1, num_candidates + 1))


def _identifier(style: IdentifierStyle, number: int) -> str:
    match style:
        case "digits":
            return str(number)
        case "upper":
            return chr(ord("A") + number - 1)
        case "lower":
            return chr(ord("a") + number - 1)
        case "words":
            return _WORDS[number - 1]
        case "roman":
            return _roman(number)
    raise UserError(f"prompt.identifiers is '{style}'; choose digits, upper, lower, roman or words.")


def _roman(number: int) -> str:
    numeral = ""
    for value, symbol in _ROMAN:
        count, number = divmod(number, value)
        numeral += symbol * count
    return numeral
