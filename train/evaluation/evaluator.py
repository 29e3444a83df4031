"""When a run evaluates what: the selection set after an epoch, the test set at the end."""

from accelerate import Accelerator
from torch import nn

from pipeline.loader import evaluation_batches
from pipeline.views.presets import Preset
from shards.reader import ShardSet
from train.evaluation.scores import Scores, predict, score
from train.launch import bare
from train.losses.precision import Autocast
from train.methods.base import Method
from train.options import Options


class Evaluator:
    """Scores a run's model on its shard sets; every rank calls it, every rank gets the numbers."""

    def __init__(
        self,
        options: Options,
        datasets: dict[str, ShardSet],
        preset: Preset,
        method: Method,
        model: nn.Module,
        accelerator: Accelerator,
        autocast: Autocast,
    ):
        self.options, self.datasets, self.preset = options, datasets, preset
        self.method, self.model, self.accelerator, self.autocast = method, model, accelerator, autocast
        self.selection = "validation" if "validation" in datasets else "test"
        self.reported = "test" if "test" in datasets else "validation"
        self._latest: Scores | None = None

    def selection_scores(self) -> dict[str, dict[str, float | None]]:
        """Numbers on the validation set, or on the test set where there is none."""
        self._latest = self.scores(self.selection)
        return {self.selection: self._latest.numbers}

    def last_scores(self) -> Scores:
        """Final numbers of the final weights, which are still the model's; no second evaluation where there was one."""
        if self.selection == self.reported and self._latest is not None:
            return self._latest
        return self.scores(self.reported)

    def scores(self, role: str) -> Scores:
        """Evaluate the current weights on one shard set."""
        dataset = self.datasets[role]
        batches = evaluation_batches(
            dataset,
            self.preset.evaluation,
            max(1, self.options.run.batch_size // self.accelerator.num_processes),
            self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            executor=self.options.data.executor,
            decode_threads=self.options.data.decode_threads,
        )
        bare_model = bare(self.accelerator, self.model)
        predictions = predict(self.method, bare_model, batches, len(dataset), self.autocast)
        training_counts = self.datasets["train"].samples_per_class
        return score(predictions, training_counts, self.options.data.group_rule())
