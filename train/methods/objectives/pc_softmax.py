"""PC softmax (Hong et al., CVPR 2021): plain training, and logits that every evaluation corrects by the class prior."""

from torch import Tensor, nn

from train.losses.functions import log_prior
from train.methods.objectives.classifier import Classifier, ClassifierOptions
from train.models.build import ModelOptions


class PCSoftmax(Classifier):
    """Ranks by z − log π, those evaluations included that choose the best epoch.

    `tools.evaluate --logit-adjustment 1` does the same to a plain run that has ended. The prior is a buffer of the
    network, so that a checkpoint predicts alike wherever it is read.
    """

    Options = ClassifierOptions

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        model = super().build_model(options, seed)
        model.register_buffer("log_prior", log_prior(self.context.samples_per_class))
        return model

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        return (logits.float() - model.get_buffer("log_prior"))[None]
