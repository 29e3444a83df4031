"""PC softmax (Hong et al., CVPR 2021): plain training, with logits corrected by the class prior in every evaluation."""

from torch import Tensor, nn

from train.losses.functions import log_prior
from train.methods.objectives.classifier import Classifier, ClassifierOptions
from train.models.build import ModelOptions


class PCSoftmax(Classifier):
    """Ranks by z − log π, including in evaluations that select the best epoch.

    `tools.evaluate --logit-adjustment 1` does the same for a finished plain run. The prior is a buffer of the network,
    so a checkpoint predicts the same wherever it is loaded.
    """

    Options = ClassifierOptions

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        model = super().build_model(options, seed)
        model.register_buffer("log_prior", log_prior(self.context.samples_per_class))
        return model

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        return (logits.float() - model.get_buffer("log_prior"))[None]
