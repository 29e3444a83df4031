"""What a run evaluates when: the selection set after an epoch, the test set at the end."""

from accelerate import Accelerator
from torch import nn

from pipeline.loader import evaluation_batches
from pipeline.views.presets import Preset
from shards.reader import ShardSet
from train.evaluation.details import Details, with_details
from train.evaluation.scores import Predictions, Scores, predict, score
from train.launch import bare
from train.losses.precision import Autocast
from train.methods.method import Method
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

    def selection_scores(self) -> dict[str, dict[str, float | None]]:
        """Numbers on the validation set, or on the test set if there is none."""
        return {self.selection: self._score(self._predictions(self.selection)).numbers}

    def final_scores(self) -> tuple[Scores, Details | None]:
        """All numbers of the current weights on the reported set; details on the first rank, if logits are few enough.

        This is a separate pass over the set: selection passes keep no logits, which are large. The temperature is
        fitted on the validation set, unless that is the reported set.
        """
        predictions = self._predictions(self.reported, keep_logits=True)
        validation = None
        if self.reported == "test" and "validation" in self.datasets:
            validation = self._predictions("validation", keep_logits=True)
        scores = self._score(predictions)
        if predictions.logits is None:
            return scores, None
        counts = self.datasets["train"].samples_per_class
        return with_details(scores, counts, self.options.data.group_rule(), validation)

    def _score(self, predictions: Predictions) -> Scores:
        return score(predictions, self.datasets["train"].samples_per_class, self.options.data.group_rule())

    def _predictions(self, role: str, keep_logits: bool = False) -> Predictions:
        """Predictions of the current weights for one shard set."""
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
        return predict(self.method, bare_model, batches, len(dataset), self.autocast, keep_logits)
