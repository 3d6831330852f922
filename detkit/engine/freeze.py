"""Parts of a detector that a training leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from detkit.config import UserError
from detkit.engine.optim import OptimizerConfig, state_per_parameter
from detkit.engine.parts import check_parts, is_in, part_names


class Freeze:
    """Freezes `parts` of a detector: their parameters get no gradient.

    `hold` keeps the running statistics of their batch norms, whenever the detector has been set to training.
    Raises UserError for an unknown part, and if nothing is left to train.
    """

    def __init__(self, detector: nn.Module, parts: Sequence[str]) -> None:
        check_parts(detector, parts, "train.freeze")
        self.parts = parts
        self.total = sum(parameter.numel() for parameter in detector.parameters())
        self.num_frozen = 0  # numbers that would be trained, were it not for `parts`
        for name, parameter in detector.named_parameters():
            if parameter.requires_grad and self.has(name):
                self.num_frozen += parameter.numel()
                parameter.requires_grad_(False)
        modules = [module for name, module in detector.named_modules() if self.has(name)]
        self.norms = [module for module in modules if hasattr(module, "running_mean")]
        if not any(parameter.requires_grad for parameter in detector.parameters()):
            raise UserError(
                f"train.freeze: [{', '.join(parts)}] leaves nothing to train; the parts of this detector are "
                f"{', '.join(part_names(detector))}"
            )

    def has(self, name: str) -> bool:
        return any(is_in(name, part) for part in self.parts)

    def hold(self) -> None:
        for norm in self.norms:
            norm.eval()

    def describe(self, optimizer: OptimizerConfig) -> str:
        """What is frozen, and the memory of gradients and optimizer state that it saves."""
        saved = 4 * self.num_frozen * (1 + state_per_parameter(optimizer)) / 2**20
        return (
            f"frozen: {', '.join(self.parts)}, {self.num_frozen:,} of {self.total:,} parameters, which saves "
            f"{saved:,.1f} MB of gradients and optimizer state"
        )
