"""Running mean and covariance of each class's features: exact over all samples seen, not a moving average."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

SumOverRanks = Callable[[Sequence[Tensor]], list[Tensor]]


def sum_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor summed over all processes, in one message; without a process group, the tensors themselves."""
    if not dist.is_initialized():
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


class ClassStatistics:
    """Statistics that start empty and grow with every batch (Wang et al., NeurIPS 2019, the estimation of ISDA).

    Attributes:
        counts: (classes,), samples seen; integers stored as floats.
        means: (classes, features).
        covariances: (classes, features, features), or their diagonals (classes, features); divided by the count, so a
            class seen once has zeros.
    """

    def __init__(
        self,
        classes: int,
        features: int,
        diagonal: bool,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        self.diagonal = diagonal
        self.counts = torch.zeros(classes, device=device, dtype=dtype)
        self.means = torch.zeros(classes, features, device=device, dtype=dtype)
        shape = (classes, features) if diagonal else (classes, features, features)
        self.covariances = torch.zeros(shape, device=device, dtype=dtype)

    def update(
        self,
        features: Tensor,
        labels: Tensor,
        weights: Tensor,
        present: Tensor,
        total: SumOverRanks = sum_over_ranks,
    ) -> None:
        """Add a batch.

        With k new samples of batch mean m and covariance S, n old ones, and q = k / (n + k), the covariance becomes
        (1−q) Σ + q S + q (1−q) (μ−m)(μ−m)ᵀ and the mean (1−q) μ + q m.

        Args:
            features: (rows, features) of this process.
            labels: int64 (rows,).
            weights: (rows,), 1, or 0 for padding.
            present: int64, ascending: the distinct labels of all processes. Only these classes are updated.
            total: sums over the processes that share the statistics.
        """
        rows = torch.searchsorted(present, labels)
        weights = weights.to(self.means.dtype)

        def per_class(values: Tensor) -> Tensor:
            zeros = values.new_zeros((len(present), *values.shape[1:]))
            return zeros.index_add(0, rows, values * weights.view(-1, *[1] * (values.ndim - 1)))

        new, sums = total([per_class(torch.ones_like(weights)), per_class(features)])
        divisor = new.clamp(min=1)[:, None]
        batch_means = sums / divisor
        # Centred on the mean of the whole batch, hence a second message: the difference of two sums of squares would
        # suffer from cancellation.
        (scatter,) = total([per_class(self._squares(features - batch_means[rows]))])
        old, means = self.counts[present], self.means[present]
        share = (new / (old + new).clamp(min=1))[:, None]
        # The same share of each entry of a covariance, whether a matrix or a diagonal.
        q = share if self.diagonal else share[..., None]
        batch = scatter / (divisor if self.diagonal else divisor[..., None])
        moved = self._squares(means - batch_means)
        self.covariances[present] = (1 - q) * self.covariances[present] + q * batch + q * (1 - q) * moved
        self.means[present] = (1 - share) * means + share * batch_means
        self.counts[present] = old + new

    def _squares(self, rows: Tensor) -> Tensor:
        """x xᵀ for each row, or its diagonal."""
        return rows**2 if self.diagonal else rows[:, :, None] * rows[:, None, :]

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "means": self.means, "covariances": self.covariances}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, own in self.state_dict().items():
            own.copy_(state[name])
