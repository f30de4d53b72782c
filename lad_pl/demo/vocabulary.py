"""The demo model's tokenizer and processor, built from scratch (nothing is downloaded).

Byte-level, so that any text is encoded and decoded exactly; in addition, the words of the captions (with their
leading space, as in GPT-2) and the fixed phrases of the prompts are one token each. There are no merges: a
word that is not in the vocabulary is encoded as bytes, so that `red` is no part of `hundred`.
"""

from __future__ import annotations

from string import Formatter

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from lad_pl.demo.scenes import IMAGE_SIZE, STANDARD
from lad_pl.demo.world import World

INDEX_QUESTION = (
    "Given {N} images indexed from 1 to {N}, identify the image that best matches the provided caption. "
    "Respond with the index number only and nothing else.\nCaption: {caption}\nAnswer: "
)
CONTENT_QUESTION = (
    "Given {N} images indexed from 1 to {N}, name the {attribute} of the image that best matches the "
    "provided caption. Respond with one word only and nothing else.\nCaption: {caption}\nAnswer: "
)
"""Used in training only; the answer is a word such as ` red`, with its token's leading space."""

WITHHELD = "some"
"""Replaces the word in question in the caption of a content question."""

END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
SPECIAL_TOKENS = (
    PADDING, "<|im_start|>", END_OF_TURN, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip

SYSTEM_MESSAGE = "You are a helpful assistant."
ROLES = ("system", "user", "assistant")
FIRST_WORD = "Given"

# Qwen2.5-VL's, less videos and "Picture 1:" labels. A turn's content may be a string or a list of parts.
CHAT_TEMPLATE = """\
{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n""" + SYSTEM_MESSAGE + """<|im_end|>
{% endif %}\
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}\
{% else %}\
{% for part in message['content'] %}\
{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}\
<|vision_start|><|image_pad|><|vision_end|>\
{% elif 'text' in part %}{{ part['text'] }}{% endif %}\
{% endfor %}\
{% endif %}<|im_end|>
{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""  # fmt: skip

# A word takes the space before it; digits and all other characters stand alone.
_PIECES = r" ?\p{L}+|\p{N}|[^\p{L}\p{N}]"


def spoken(attribute: str) -> str:
    """The name of an attribute in a question, such as `left colour` for `left_colour`."""
    return attribute.replace("_", " ")


def caption_words(world: World) -> list[str]:
    """All words of a world's captions, the names of its attributes and `WITHHELD`, each once."""
    attribute_words = [word for words in world.scene.ATTRIBUTES.values() for word in words]
    names = spoken(" ".join(world.scene.ATTRIBUTES)).split()
    return list(dict.fromkeys([*world.template_words, *attribute_words, *names, WITHHELD]))


def prompt_phrases() -> list[str]:
    """The fixed texts of the prompts. A phrase leaves its last space to the word that follows."""
    literals = [literal for text in (INDEX_QUESTION, CONTENT_QUESTION) for literal, *_ in Formatter().parse(text)]
    # "\nAnswer: " keeps its space: what follows is the end of the turn.
    phrases = [text if text.endswith("Answer: ") else text.removesuffix(" ") for text in literals]
    phrases = [
        text for text in phrases if text != FIRST_WORD
    ]  # a word, and so in the vocabulary: a phrase would be cut out of longer words
    return list(dict.fromkeys([*phrases, SYSTEM_MESSAGE]))


def build_tokenizer(world: World) -> TokenizersBackend:
    """The tokenizer: bytes, words, prompt phrases and special tokens (about 320 tokens)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ġ" + word for word in caption_words(world)]  # Ġ is the byte-level alphabet's space
    tokens = [*alphabet, *words, FIRST_WORD, *ROLES]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # ignore_merges: a piece in the vocabulary is one token; any other piece is encoded as bytes.
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    backend.add_tokens([AddedToken(text, normalized=False) for text in prompt_phrases()])
    return TokenizersBackend(
        tokenizer_object=backend,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(world: World = STANDARD) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's own processor class with this tokenizer; brings any square image to 56x56 pixels."""
    # The least and most pixels of an image; not 56 * 56 itself, where rounding could tip to 28x28 or 84x84.
    size = {"shortest_edge": IMAGE_SIZE**2 - 32, "longest_edge": IMAGE_SIZE**2 + 32}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=build_tokenizer(world),
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )
