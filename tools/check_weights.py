"""Proves that `weights export` writes what other programs load, and that `weights import` loses nothing. Needs none of our code.

Usage:
    python tools/check_weights.py prove target/release/vicreg-stream    # writes tools/check_weights.txt
    python tools/check_weights.py file encoder.safetensors [resnet18]   # one file against torchvision

`prove` trains ResNet-18 and ResNet-50 of width 1 for two steps, exports them under each naming, loads the files with `strict=True`
into torchvision, timm and the official code's module (backbone and projector, in DataParallel), and compares what these compute of a fixed
input with what the program wrote (`--probe`). Then it imports a torchvision network and exports it again: equal bit for bit.
Needs torch, torchvision, timm and safetensors.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import safetensors
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

MASK = 0xFFFFFFFF
RECIPE = """
[data]
path = "synthetic:shapes?train=192&test=64"
[views]
size = 64
[expander]
dims = [96, 96, 64]
[schedule]
base_lr = 0.05
scale_by_batch = false
warmup_epochs = 0.1
[train]
batch_size = 16
epochs = 2
[device]
backend = "cpu"
[eval]
knn_at_end = false
"""


def hashed(shape, salt):
    """The probe's images: a 32-bit integer hash of (index, salt), its upper 24 bits as a number in [-1, 1)."""
    i = np.arange(int(np.prod(shape)), dtype=np.uint64)
    h = ((i * 0x9E3779B9) & MASK) ^ ((salt * 0x85EBCA6B) & MASK)
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & MASK
    h = ((h ^ (h >> 15)) * 0x846CA68B) & MASK
    h ^= h >> 16
    return torch.from_numpy(((h >> 8).astype(np.float64) / (1 << 23) - 1.0).reshape(shape).astype(np.float32))


class Official(nn.Module):
    """The module structure of facebookresearch/vicreg: a ResNet without its head, and the expander."""

    def __init__(self, name, dims):
        super().__init__()
        self.backbone = getattr(torchvision.models, name)()
        features, self.backbone.fc = self.backbone.fc.in_features, nn.Identity()
        a, b, c = dims
        self.projector = nn.Sequential(nn.Linear(features, a), nn.BatchNorm1d(a), nn.ReLU(True), nn.Linear(a, b), nn.BatchNorm1d(b),
                                       nn.ReLU(True), nn.Linear(b, c, bias=False))

    def forward(self, x):
        h = self.backbone(x)
        return h, self.projector(h)


def headless(name):
    model = getattr(torchvision.models, name)()
    model.fc = nn.Identity()
    return model


def difference(ours, theirs):
    """Largest difference as a share of the largest value."""
    ours, theirs = torch.tensor(ours), theirs.detach().flatten()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def load(model, file):
    """Strict, types included; what is left out or too much raises."""
    state, own = load_file(file), model.state_dict()
    model.load_state_dict(state, strict=True)
    for key, value in state.items():
        assert value.dtype == own[key].dtype, f"{key} holds {value.dtype}, not {own[key].dtype}"
        assert value.dtype == torch.int64 or torch.isfinite(value).all(), f"{key} is not finite"
    assert set(state) == set(own), sorted(set(state) ^ set(own))[:5]
    counts = {int(v) for k, v in state.items() if k.endswith("num_batches_tracked")}
    return model.eval(), f"{len(state)} tensors, num_batches_tracked {sorted(counts)}"


class World:
    def __init__(self, binary, folder):
        self.binary, self.folder, self.lines = str(pathlib.Path(binary).resolve()), pathlib.Path(folder), []

    def run(self, *args):
        result = subprocess.run([self.binary, *map(str, args)], cwd=self.folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def say(self, line):
        print(line, flush=True)
        self.lines.append(line)

    def compare(self, what, facts, probe, h, z=None):
        found = [("representation", probe["representation"], h)] + ([("embedding", probe["embedding"], z)] if z is not None else [])
        worst = {name: difference(ours, theirs) for name, ours, theirs in found}
        self.say(f"  {what}: strict, {facts}; " + ", ".join(f"{k} differs by {v:.1e}" for k, v in worst.items()))
        assert all(v < 2e-5 for v in worst.values()), worst


def exports(world, name, depth):
    (world.folder / "recipe.toml").write_text(RECIPE)
    run = f"run{depth}"
    world.run("train", "recipe.toml", "--out", run, "--max-steps", 2, "--set", f"encoder.depth={depth}")
    world.say(f"{name}, trained for 2 steps")
    for naming in ["torchvision", "timm", "official"]:
        file, probe = world.folder / f"{naming}.safetensors", world.folder / "probe.json"
        world.run("weights", "export", run, "--naming", naming, "--out", file, "--probe", probe)
        probe = json.loads(probe.read_text())
        x = hashed((probe["images"], 3, probe["size"], probe["size"]), probe["salt"])
        with torch.no_grad():
            if naming == "torchvision":
                model, facts = load(headless(name), file)
                world.compare(f"torchvision.models.{name}, fc = Identity", facts, probe, model(x))
            elif naming == "timm":
                model, facts = load(timm.create_model(name, num_classes=0), file)
                world.compare(f"timm {name}, num_classes=0", facts, probe, model(x))
            else:
                model, facts = load(nn.DataParallel(Official(name, [96, 96, 64])), file)
                world.compare("official module in DataParallel", facts, probe, *model.module(x))


def round_trip(world, name):
    """A network of torchvision's, its head dropped, comes back bit for bit."""
    torch.manual_seed(1)
    state = getattr(torchvision.models, name)().state_dict()
    torch.save(state, world.folder / "theirs.pth")
    world.run("weights", "import", "theirs.pth", "--drop-head", "--out", f"imported-{name}")
    world.run("weights", "export", f"imported-{name}", "--naming", "torchvision", "--out", "back.safetensors")
    back = load_file(world.folder / "back.safetensors")
    kept = {k: v for k, v in state.items() if not k.startswith("fc.")}
    assert set(back) == set(kept) and all(torch.equal(back[k], v) for k, v in kept.items())
    world.say(f"{name} of torchvision: torch.save, `weights import --drop-head`, `weights export`: all {len(kept)} tensors equal bit for bit")


def prove(binary):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = World(binary, folder)
        versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, safetensors {safetensors.__version__}"
        world.say(f"{world.run('--version').strip()}; {versions}")
        for name, depth in [("resnet18", 18), ("resnet50", 50)]:
            exports(world, name, depth)
        for name in ["resnet18", "resnet50"]:
            round_trip(world, name)
    pathlib.Path(__file__).with_suffix(".txt").write_text("\n".join(world.lines) + "\n")


def check_file(path, name="resnet18"):
    """One encoder; a CIFAR stem differs from torchvision's in conv1 and the pool alone, which its shape tells."""
    model, stem = headless(name), load_file(path)["conv1.weight"]
    if stem.shape[-1] == 3:
        with safetensors.safe_open(path, "pt") as file:
            padding = int((file.metadata() or {}).get("stem_padding", 1))
        model.conv1, model.maxpool = nn.Conv2d(3, stem.shape[0], 3, 1, padding, bias=False), nn.Identity()
    model, facts = load(model, path)
    with torch.no_grad():
        print(f"{name}: strict, {facts}; representation {list(model(torch.zeros(2, 3, 64, 64)).shape)}")


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("prove", "file"):
        sys.exit(__doc__)
    {"prove": prove, "file": check_file}[sys.argv[1]](*sys.argv[2:])
