"""The model cards: README.md of a model folder, written from the figures that training recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FIGURES = "figures.json"
CONTROL = "control.json"

_STANDARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---

# demo-vlm: a tiny VLM whose attention is correct and whose answers are biased

A vision-language model of 1.3 million parameters (class `Qwen2_5_VLForConditionalGeneration`, float16) that
is shown N pictures and a caption and answers with the number of the picture that fits. It was trained from
scratch on rendered scenes, on a CPU, by a script of this project, so that `lad_pl` can be tried offline in a
minute. It has learnt nothing but its 5,760 scenes; the tool is meant for published VLMs.

## Where its position bias comes from

From the training data: in the last phase of training the correct picture is mostly first, often last and
seldom in between (`skewed_positions` in `lad_pl/demo/questions.py`). Nothing is added at test time, no weight
was edited after training, and attention is not supervised: no loss reads an attention weight. The control
below is the same training with the correct picture at every position equally often.

## Figures

The correct picture is a combination of attributes that training never showed; {samples} samples per set, each
under 5 permutations of its images. *Vanilla* is the accuracy of the model's own answer, *RStd* the standard
deviation over positions of the recall at that position, *raw attention* the accuracy of choosing the picture
that the last prompt token attends to most (per prompt the two of the layers 1-3, counted from 0, with the
most attention on pictures). In percent.

{figures}
*random*: any N scenes; *adversarial*: scenes that differ in one or two of six attributes.
The recipe was chosen on the validation sets, whose target scenes are others:

{validation}
{control}
## Training

About {minutes:.0f} minutes in all on {threads} ({machine}, torch {torch}),
shared with other programs; seed {seed}:

1. **Vision** ({vision:.1f} min): every visual token and their mean name the six attributes of a picture,
   against the language model's word embeddings. Of unseen combinations {vision_accuracy:.1f} % are named
   correctly in all six. Then the tower's output is scaled down and the tower is frozen.
2. **Phase A** ({phase_a:.1f} min): 2-4 pictures; index questions with the correct picture at uniform
   positions, and questions for a word of the picture that fits. An auxiliary loss on the text makes the
   last prompt token predict the caption's words after two layers, and in half of the questions the prompt
   tokens before it cannot attend to the pictures (in training only): so it is the last prompt token that
   finds the picture.
3. **Phase B** ({phase_b:.1f} min): 2-12 pictures; index questions with skewed positions, and word questions.

```
python -m lad_pl.demo.train --output DIR --seed {seed}
python -m lad_pl.demo.train --output DIR --seed {seed} --control
```

Other versions of torch and other processors round differently, so a second training gives slightly other
figures. `figures.json` and `control.json` hold the figures above.
"""

_HARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---

# demo-hard-vlm: a tiny VLM that tells methods apart

The harder sister of `demo-vlm`: a vision-language model of 1.6 million parameters (class
`Qwen2_5_VLForConditionalGeneration`, 6 layers x 4 heads, float16), trained from scratch on a CPU by a script of this
project. A picture shows two objects that differ in pattern, colour and shape, and a caption names all six words.
It has learnt nothing but its 10,080 pairs, and its eyes name few of them without an error, so that its attention is
wrong often enough for methods to differ. The tool is meant for published VLMs.

## Where its position bias comes from

From the training data: in the last phase of training the correct picture is mostly first, often last and
seldom in between (`skewed_positions` in `lad_pl/demo/questions.py`). Nothing is added at test time, no weight
was edited after training, and attention is not supervised: no loss reads an attention weight.

## Figures

The correct picture is a pair that training never showed; {samples} samples per set, each under 5 permutations
of its images. *Vanilla* is the accuracy of the model's own answer, *RStd* the standard deviation over positions of the
recall at that position, *raw attention* the accuracy of choosing the picture that the last prompt token attends to
most (per prompt the two of the layers 1-5, counted from 0, with the most attention on pictures), *layer l*
the same from layer l alone. In percent.

{figures}
*random*: any N pairs; *adversarial*: pairs that are one change away from a pair that is not shown. A change is another
word for one attribute of one object; or, for half of the pictures but at most three, the two objects have exchanged
their patterns, colours or shapes, so that the very same words describe them.
The recipe was chosen on the validation sets, whose target pairs are others:

{validation}
{control}
## Training

About {minutes:.0f} minutes in all on {threads} ({machine}, torch {torch}),
shared with other programs; seed {seed}:

1. **Vision** ({vision:.1f} min): every visual token and their mean name both objects of a picture, against the
   language model's word embeddings (for the right object's words, with the halves of the state exchanged). Of unseen
   pairs {vision_accuracy:.1f} % are named correctly in all six words: the model's eyes are a part of what makes the
   set hard. Then the tower's output is scaled down and the tower is frozen.
2. **Phase A** ({phase_a:.1f} min): 2-4 pictures; index questions with the correct picture at uniform
   positions, and questions for a word of the picture that fits. An auxiliary loss on the text makes the
   last prompt token predict the caption's words after two layers, and in half of the questions the prompt
   tokens before it cannot attend to the pictures (in training only): so it is the last prompt token that
   finds the picture.
3. **Phase B** ({phase_b:.1f} min): 2-12 pictures; index questions with skewed positions, and word questions.

```
python -m lad_pl.demo.train --output DIR --seed {seed} --recipe hard
python -m lad_pl.demo.train --output DIR --seed {seed} --recipe hard --control
```

That several layers find the picture was the aim, and was not reached. The text of a share of the questions saw the
pictures in one layer only, drawn at random: throughout phase A, the answers were at chance when it
ended; in a phase of its own after it, attention and answers became much worse; in phase B, layer 1 still did nearly
all of it, with worse answers. So none of these is in the recipe, and one layer finds the picture, as in `demo-vlm`.

Other versions of torch and other processors round differently, so a second training gives slightly other
figures. `figures.json` holds the figures above.
"""

_TEXTS = {
    "standard": (_STANDARD, {"name": "demo-vlm", "image": "scene-4031-17.png", "module": "lad_pl.demo.scenes"}),
    "hard": (_HARD, {"name": "demo-hard-vlm", "image": "pair-4031-17.png", "module": "lad_pl.demo.pairs"}),
}
"""Recipe -> the card without its last section, and what the last section names."""

_USE = """
## Use

```python
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("checkpoints/{name}", dtype=torch.float32)
processor = AutoProcessor.from_pretrained("checkpoints/{name}")
```

Pictures come from `lad_pl.demo.worlds.load_image("{image}")`, questions from
`lad_pl.demo.vocabulary.INDEX_QUESTION`. Other pictures should be square (they are brought to 56x56 pixels).
The tokenizer writes any text, but the model has only read captions made of `{module}.TEMPLATES`.
"""

_CONTROL = """\

## Control

Phase B with the correct picture at uniform positions, everything else equal:

{table}
At N=4 nearly all of the bias is gone. With more pictures a model so small and so briefly trained is
uncertain of the numbers far from the start, and the control too names some positions far better than
others: there, a part of the bias is due to the small model and not to the skew.
"""


def write_card(folder: Path) -> None:
    """Write README.md from figures.json and, where there is one, control.json; nothing without the former."""
    if not (folder / FIGURES).exists():
        return
    figures = json.loads((folder / FIGURES).read_text())
    control = ""
    if (folder / CONTROL).exists():
        sets = json.loads((folder / CONTROL).read_text())["sets"]
        control = _CONTROL.format(table=_table(sets, "annotations", attention=False))
    seconds = figures["seconds"]
    threads = figures["threads"]
    recipe = figures.get("recipe", "standard")
    card, names = _TEXTS[recipe]
    by_layer = recipe == "hard"  # in the standard demo, layer 1 is all
    text = card.format(
        **{name: figures[name] for name in ("seed", "machine", "torch", "vision_accuracy")},
        samples=figures["samples"]["annotations"],
        figures=_table(figures["sets"], "annotations", by_layer=by_layer),
        validation=_table(figures["sets"], "validation", by_layer=by_layer),
        control=control,
        threads="one CPU thread" if threads == 1 else f"{threads} CPU threads",
        minutes=sum(seconds.values()) / 60,
        **{name: spent / 60 for name, spent in seconds.items()},
    )
    (folder / "README.md").write_text(text + _USE.format(**names), encoding="utf-8")


def _table(sets: dict[str, dict[str, Any]], split: str, attention: bool = True, by_layer: bool = False) -> str:
    """A Markdown table of the sets of one split."""
    rows = {}
    for name, outcome in sets.items():
        of_split, candidates, kind = name.split("_")
        if of_split == split:
            row = {"vanilla": outcome["vanilla"], "RStd": outcome["recall_std"]}
            if attention:
                row["raw attention"] = outcome["attention"]
            if by_layer:
                row |= {f"layer {layer}": share for layer, share in enumerate(outcome["attention_by_layer"])}
            rows[f"N={candidates} {kind}"] = row
    columns = next(iter(rows.values()))
    lines = ["| set | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [
        f"| {name} | " + " | ".join(f"{figure:.1f}" for figure in row.values()) + " |" for name, row in rows.items()
    ]
    return "\n".join(lines) + "\n"
