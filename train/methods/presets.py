"""Established method names, as combinations of a mixing, an objective and a stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PART_FOLDERS = {"mixing": "mixings", "objective": "objectives", "stage": "stages"}


@dataclass(frozen=True)
class MethodPreset:
    """A named combination.

    Args:
        summary: one line, with the paper.
        mixing, objective, stage: files in the corresponding folders.
        defaults: options whose defaults differ from those of their part.
    """

    summary: str
    mixing: str = "none"
    objective: str = "classifier"
    stage: str = "whole"
    defaults: Mapping[str, Any] = field(default_factory=dict)


METHOD_PRESETS: Mapping[str, MethodPreset] = {
    "cmo": MethodPreset(
        "paste rare-class images into the original ones (context-rich minority oversampling; Park et al., CVPR 2022)",
        mixing="paste",
    ),
    "crt": MethodPreset(
        "second stage: a new classifier on frozen features (classifier re-training; Kang et al., ICLR 2020)",
        mixing="oversample",
        stage="crt",
    ),
    "cutmix": MethodPreset(
        "paste a box of another image, without class weights (Yun et al., ICCV 2019)",
        mixing="paste",
        defaults={"foreground": "shuffled", "plain_first": 0, "plain_last": 0},
    ),
    "finetune": MethodPreset(
        "tune a few parameters of a pretrained backbone with logit adjustment (LIFT; Shi et al., ICML 2024)",
        stage="tune",
        defaults={"loss": "la"},
    ),
    "ib": MethodPreset(
        "samples weighted by their influence (influence-balanced loss; Park et al., ICCV 2021)", objective="ib"
    ),
    "gpaco": MethodPreset(
        "PaCo whose keys are trained too, without a momentum copy (GPaCo; Cui et al., TPAMI 2023)",
        objective="paco",
        defaults={"keys": "own"},
    ),
    "lade": MethodPreset("logits disentangled from the class prior (LADE; Hong et al., CVPR 2021)", objective="lade"),
    "logit_adjustment": MethodPreset(
        "cross entropy on logits shifted by the class prior (Menon et al., ICLR 2021)", defaults={"loss": "la"}
    ),
    "lws": MethodPreset(
        "second stage: one learned factor per class (learnable weight scaling; Kang et al., ICLR 2020)",
        mixing="oversample",
        stage="lws",
    ),
    "minority_augment": MethodPreset(
        "blur, jitter or mix minority samples instead of pasting them (Park et al., CVPR 2022, table 12)",
        mixing="minority",
    ),
    "mislas": MethodPreset(
        "second stage: classifier and scales with label-aware smoothing (MiSLAS; Zhong et al., CVPR 2021)",
        mixing="oversample",
        objective="smoothing",
        stage="las",
    ),
    "mixup": MethodPreset("blend whole images and their labels (Zhang et al., ICLR 2018)", mixing="mixup"),
    "ncl": MethodPreset(
        "experts that learn together (nested collaborative learning; Li et al., CVPR 2022)", objective="ncl"
    ),
    "paco": MethodPreset(
        "balanced softmax and supervised contrast in one softmax (PaCo; Cui et al., ICCV 2021)", objective="paco"
    ),
    "pc_softmax": MethodPreset(
        "plain training, logits corrected by the class prior (PC softmax; Hong et al., CVPR 2021)",
        objective="pc_softmax",
    ),
    "remix": MethodPreset(
        "Mixup whose label leans towards the smaller class (Chou et al., ECCV workshops 2020)", mixing="remix"
    ),
    "ride": MethodPreset("diverse experts on one trunk (Wang et al., ICLR 2021)", objective="ride"),
    "ride_remix": MethodPreset(
        "RIDE's experts with Remix (Park et al., CVPR 2022, table 13)", mixing="remix", objective="ride"
    ),
    "ros": MethodPreset(
        "over-sample small classes (random over-sampling, as in Park et al., CVPR 2022)", mixing="oversample"
    ),
    "tde": MethodPreset(
        "evaluated without the direction that momentum adds to features (Causal Norm; Tang et al., NeurIPS 2020)",
        objective="tde",
    ),
    "vanilla": MethodPreset("plain training: cross entropy, LDAM-DRW (Cao et al., NeurIPS 2019), balanced softmax"),
}
