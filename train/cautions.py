"""Warnings about runs that do not do what their name suggests: printed at the start and stored in the result."""

from pipeline.plan import Plan
from train.options import LARGEST_SMALL_IMAGE
from train.schedules import Schedule


def cautions(plan: Plan, schedule: Schedule) -> list[str]:
    """One sentence per part of the method that the run is too short for."""
    found = []
    rule, epochs = plan.mix_rule, plan.epochs
    if rule is not None and not any(len(plan.paste_steps(epoch)) for epoch in range(epochs)):
        found.append(
            f"no step of this run mixes images, despite its method: it has {epochs} epochs, of which the "
            f"first {rule.plain_first} and the last {rule.plain_last} are plain. Give more --epochs, or fewer "
            "--method.plain_first and --method.plain_last"
        )
    warmup = schedule.options.warmup_epochs
    if warmup >= epochs and warmup > 0:
        found.append(
            f"the warm-up is longer than the run: {warmup} of {epochs} epochs; the learning rate ends at "
            f"{schedule.lr(epochs - 1):.3g} of {schedule.base_lr:.3g} and never falls. Give more --epochs, or fewer "
            "--schedule.warmup_epochs"
        )
    return found


def network_cautions(name: str, image_size: int) -> list[str]:
    """A warning if the network is not made for images of this size, in pixels per side."""
    is_for_32 = name.startswith("resnet32") or name.endswith("-stem32")
    if is_for_32 and image_size > LARGEST_SMALL_IMAGE:
        return [
            f"{name} is made for images of 32 pixels and gets {image_size}: it keeps their full resolution too long, "
            "is many times slower and has too small a receptive field. Choose --model.name resnet50 or another "
            "network of timm"
        ]
    if not is_for_32 and image_size <= LARGEST_SMALL_IMAGE:
        return [
            f"{name} is made for large images and gets {image_size} pixels, which its first layers reduce to almost "
            "nothing. Choose --model.name resnet32 or resnet18-stem32, or a larger --data.image_size"
        ]
    return []
