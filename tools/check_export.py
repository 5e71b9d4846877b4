"""Checks that an exported encoder is what torchvision loads: names, shapes, types, finite values, and that it runs.

Usage: python tools/check_export.py encoder.safetensors [resnet18]. Exit status 1 and a reason where it is not.
A CIFAR stem differs from torchvision's in conv1 alone: the script takes conv1 and the pool from the file's own shape.
Needs torch, torchvision and safetensors.
"""
import json
import sys

import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file


def main(path, name="resnet18"):
    state = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    model = getattr(torchvision.models, name)()
    stem = state.get("conv1.weight")
    if stem is None:
        return "no conv1.weight"
    if stem.shape[-1] == 3:
        model.conv1 = torch.nn.Conv2d(3, stem.shape[0], 3, 1, 1, bias=False)
        model.maxpool = torch.nn.Identity()
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        return str(error)
    missing = [key for key in result.missing_keys if not key.startswith("fc.")]
    if missing or result.unexpected_keys:
        return f"missing {missing[:5]}, unexpected {result.unexpected_keys[:5]}"
    for key, value in state.items():
        tracked = key.endswith("num_batches_tracked")
        if value.dtype != (torch.int64 if tracked else torch.float32):
            return f"{key} holds {value.dtype}"
        if not torch.isfinite(value.float()).all():
            return f"{key} is not finite"
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        features = model.eval()(torch.zeros(2, 3, 64, 64))
    print(json.dumps({"model": name, "tensors": len(state), "representation": list(features.shape), "metadata": metadata}))
    return None


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    reason = main(*sys.argv[1:])
    if reason:
        sys.exit(f"{sys.argv[1]}: {reason}")
