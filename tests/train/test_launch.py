"""What Accelerate's configuration switches on is refused in words; trackers and devices are looked for first."""

import pytest
import torch

from shards.commandline import UsageError
from train.launch import bare, check_launcher, check_trackers, device_of, make_accelerator
from train.options import RunOptions


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "1", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "--mixed_precision"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--compile true"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--accumulation"),
    ],
)
def test_switches_of_the_launcher_are_refused(
    name: str, value: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_launcher(RunOptions())
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=word):
        check_launcher(RunOptions())


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", RunOptions(mixed_precision="bf16")),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", RunOptions(compile=True)),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", RunOptions(accumulation=4)),
        ("ACCELERATE_USE_FSDP", "false", RunOptions()),
    ],
)
def test_what_the_options_say_too_is_taken(
    name: str, value: str, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    check_launcher(options)


def test_names_of_parameters_are_the_same_whatever_wraps_the_network() -> None:
    accelerator = make_accelerator(RunOptions(device="cpu", trackers=()))
    network = torch.nn.Sequential(torch.nn.Linear(2, 3))
    assert list(bare(accelerator, torch.compile(network, backend="eager")).state_dict()) == ["0.weight", "0.bias"]


def test_trackers_that_would_not_track_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'tensorbord' is unknown"):
        check_trackers(("tensorbord",))
    monkeypatch.setattr("train.launch.get_available_trackers", lambda: ["tensorboard"])
    check_trackers(("tensorboard",))
    with pytest.raises(UsageError, match=r"mlflow is not installed.*--trackers tensorboard"):
        check_trackers(("tensorboard", "mlflow"))


@pytest.mark.parametrize("text", ["gpu", "cuda:99", "mps", "", "cpu:x"])
def test_devices_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--device is"):
        device_of(text)
