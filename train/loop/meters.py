"""Running training metrics that stay on the device until they are read."""

import torch
import torch.distributed as dist
from torch import Tensor

_FIELDS = ("loss", "correct", "samples", "steps")


def micro_batch_sums(loss: Tensor, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Loss, correct predictions and samples of a micro-batch, float64 (3,).

    loss: its share of the step's loss; logits (rows, classes); labels int64 (rows,); weights (rows,), 0 for padding.
    """
    correct = ((logits.detach().argmax(dim=1) == labels) * weights).sum()
    return torch.stack([loss.detach().double(), correct.double(), weights.sum().double()])


class Meter:
    """Sums of loss, correct predictions, samples and steps, float64 on the device; `read` is the only host sync."""

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(len(_FIELDS), dtype=torch.float64, device=device)

    def add(self, sums: Tensor, first_rank: bool) -> None:
        """Add a step. sums: float64 (3,), over its micro-batches. Only one rank counts the step."""
        self._sums[:3] += sums
        if first_rank:
            self._sums[3] += 1

    def totals(self) -> Tensor:
        """The sums over all ranks, float64 (4,) on the device."""
        totals = self._sums.clone()
        if dist.is_initialized():
            dist.all_reduce(totals)
        return totals

    def read(self) -> dict[str, float]:
        """Means since the last reset, over all ranks: loss per step, accuracy in percent."""
        loss, correct, samples, steps = self.totals().tolist()
        return {"loss": loss / max(steps, 1), "accuracy": 100 * correct / max(samples, 1)}

    def reset(self) -> None:
        """Start over."""
        self._sums.zero_()

    def restore(self, totals: Tensor, first_rank: bool) -> None:
        """Continue from saved totals; they are kept on one rank, so the number of ranks may change."""
        self._sums.copy_(totals if first_rank else torch.zeros_like(totals))
