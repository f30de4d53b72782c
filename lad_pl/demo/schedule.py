"""What all training phases share: the optimizer with its schedule, and the progress line."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

WARM_UP = 40  # steps
SHOW_EVERY = 25  # steps


def make_optimizer(
    parameters: Iterable[Tensor], learning_rate: float, steps: int
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW, and a rate that rises over the first steps and then falls along a cosine to a 50th."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        fall = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))
        return min(1.0, (step + 1) / WARM_UP) * fall

    return optimizer, LambdaLR(optimizer, rate)


class Progress:
    """Prints a phase's mean losses and the time left every few steps."""

    def __init__(self, phase: str, steps: int) -> None:
        self.phase = phase
        self.steps = steps
        self.started = time.monotonic()
        self.recent: list[dict[str, float]] = []

    def show(self, step: int, **values: Tensor) -> None:
        """Note the values of step number `step` (0-based); print when it is time."""
        self.recent.append({name: value.item() for name, value in values.items()})
        if (step + 1) % SHOW_EVERY and step + 1 != self.steps:
            return
        means = {name: sum(seen[name] for seen in self.recent) / len(self.recent) for name in values}
        self.recent.clear()
        elapsed = time.monotonic() - self.started
        left = elapsed / (step + 1) * (self.steps - step - 1)
        text = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        print(f"{self.phase}  {step + 1}/{self.steps}  {text}  {elapsed:.0f} s, {left:.0f} s left", flush=True)
