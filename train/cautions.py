"""What a run of these options does not do although its name says so: said at its start, and in its result."""

from pipeline.plan import Plan
from train.options import LARGEST_SMALL_IMAGE
from train.schedules import Schedule


def cautions(plan: Plan, schedule: Schedule) -> list[str]:
    """One sentence for each thing that the length of the run leaves out."""
    found = []
    rule, epochs = plan.mix_rule, plan.epochs
    if rule is not None and not any(len(plan.paste_steps(epoch)) for epoch in range(epochs)):
        found.append(
            f"no step of this run mixes images, whatever its method is called: it has {epochs} epochs, of which the "
            f"first {rule.plain_first} and the last {rule.plain_last} are plain. Give more --epochs, or fewer "
            "--method.plain_first and --method.plain_last"
        )
    warmup = schedule.options.warmup_epochs
    if warmup >= epochs and warmup > 0:
        found.append(
            f"the warm-up does not end within the run: {warmup} of {epochs} epochs; the learning rate ends at "
            f"{schedule.lr(epochs - 1):.3g} of {schedule.base_lr:.3g} and never falls. Give more --epochs, or fewer "
            "--schedule.warmup_epochs"
        )
    return found


def network_cautions(name: str, image_size: int) -> list[str]:
    """Whether a network of this name is made for images of this size, in pixels a side."""
    is_for_32 = name == "resnet32" or name.endswith("-stem32")
    if is_for_32 and image_size > LARGEST_SMALL_IMAGE:
        return [
            f"{name} is made for images of 32 pixels and gets {image_size}: it keeps their full resolution too long, "
            "is many times slower and sees little of the whole. Choose --model.name resnet50 or another network of timm"
        ]
    if not is_for_32 and image_size <= LARGEST_SMALL_IMAGE:
        return [
            f"{name} is made for large images and gets {image_size} pixels, which its first layers shrink to almost "
            "nothing. Choose --model.name resnet32 or resnet18-stem32, or a larger --data.image_size"
        ]
    return []
