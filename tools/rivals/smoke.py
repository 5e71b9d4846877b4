"""The smoke recipe in PyTorch: what `train pipelines/smoke.toml` and `eval knn` should come near.

Written from the recipe (network, views, official VICReg loss, AdamW, schedule), independently of the Rust code. Reads folders of
Parquet in the Hugging Face image layout (`image` struct<bytes, path>, `label` int64). Prints the loss terms over the steps,
then weighted k-NN accuracy (cosine, k = 20, T = 0.07) of the trained network, of the untrained one with calibrated batch norm,
and of raw pixels. Made with torch 2.15, torchvision on Pillow, pyarrow.

Usage: python tools/rivals/smoke.py --train DIR --test DIR [--steps 468] [--batch 64] [--seed 1] [--limit-train N] [--limit-test N]
"""

import argparse
import copy
import io
import json
import math
import pathlib
import time

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms as T

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 32


# ---- data ----------------------------------------------------------------------------------------------------------------

def read(folder, limit):
    """All images of a folder's shards, or of one shard, decoded, and their labels."""
    images, labels = [], []
    paths = sorted(pathlib.Path(folder).glob("*.parquet")) if pathlib.Path(folder).is_dir() else [pathlib.Path(folder)]
    for path in paths:
        table = pq.read_table(path, columns=["image", "label"])
        for row in table.to_pylist():
            if limit and len(images) == limit:
                return images, torch.tensor(labels)
            images.append(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
            labels.append(row["label"])
    return images, torch.tensor(labels)


def train_view():
    return T.Compose([
        T.RandomResizedCrop(SIZE, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), interpolation=T.InterpolationMode.BICUBIC),
        T.RandomHorizontalFlip(0.5),
        T.RandomApply([T.ColorJitter(0.72, 0.72, 0.36, 0.5)], p=0.8),
        T.RandomGrayscale(0.5),
        T.ToTensor(),
        T.Normalize(MEAN, STD),
    ])


def eval_images(images):
    """Whole images at the training size, normalised: [N, 3, 32, 32]."""
    view = T.Compose([
        T.Resize(SIZE, interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(SIZE), T.ToTensor(), T.Normalize(MEAN, STD)
    ])
    return torch.stack([view(image) for image in images])


# ---- network -------------------------------------------------------------------------------------------------------------

class Block(nn.Module):
    """ResNet's basic block; a 1x1 projection where the shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Encoder(nn.Module):
    def __init__(self, widths=(16, 32, 64)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = (widths[0], *widths[:-1])
        self.blocks = nn.Sequential(*[Block(i, o, 1 if n == 0 else 2) for n, (i, o) in enumerate(zip(inputs, widths))])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        return self.blocks(F.relu(self.bn1(self.conv1(x)))).mean(dim=(2, 3))


def expander(features=64, dims=(256, 256, 256)):
    layers, inputs = [], features
    for outputs in dims[:-1]:
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, dims[-1], bias=False))


# ---- method --------------------------------------------------------------------------------------------------------------

def vicreg(a, b):
    """Loss, invariance, variance, covariance: official form, 25 / 25 / 1."""
    n, d = a.shape
    s = F.mse_loss(a, b)
    v = c = 0.0
    for z in (a, b):
        z = z - z.mean(dim=0)
        v = v + F.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean() / 2
        cov = z.T @ z / (n - 1)
        c = c + (cov.square().sum() - cov.diagonal().square().sum()) / d
    return 25 * s + 25 * v + c, s, v, c


def rate(step, steps, peak=5e-3, final=0.001):
    warmup = 0.1 * steps
    if step < warmup:
        return peak * step / warmup
    q = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    return peak * q + final * peak * (1 - q)


def train(encoder, images, args):
    net, view = expander(), train_view()
    parameters = [*encoder.parameters(), *net.parameters()]
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 1e-4},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.0,
    )
    order, start = [], time.time()
    encoder.train()
    for step in range(args.steps):
        if len(order) < args.batch:  # the tail of an epoch is dropped
            order = torch.randperm(len(images)).tolist()
        batch, order = order[: args.batch], order[args.batch :]
        # One view at a time through the network: batch norm must not mix them.
        a, b = (net(encoder(torch.stack([view(images[i]) for i in batch]))) for _ in range(2))
        loss, s, v, c = vicreg(a, b)
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = rate(step, args.steps)
        optimiser.step()
        if step % 26 == 0 or step == args.steps - 1:
            std = torch.cat([a, b]).std(dim=0).mean()
            terms = {"loss": loss, "invariance": s, "variance": v, "covariance": c, "embedding_std": std}
            terms = {name: round(x.item(), 4) for name, x in terms.items()}
            print(json.dumps({"step": step, **terms, "seconds": round(time.time() - start, 1)}), flush=True)


# ---- measurement ---------------------------------------------------------------------------------------------------------

@torch.no_grad()
def features(encoder, x):
    encoder.eval()
    return torch.cat([encoder(part) for part in x.split(500)])


@torch.no_grad()
def calibrate(encoder, x):
    """Batch-norm statistics as the plain average over batches of the training images."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    encoder.train()
    for part in x.split(500):
        encoder(part)
    return encoder


def knn(train_x, train_y, test_x, test_y, k=20, temperature=0.07):
    train_x, test_x = (F.normalize(x.flatten(1), dim=1) for x in (train_x, test_x))
    right = 0
    for part, labels in zip(test_x.split(500), test_y.split(500)):
        similarity, nearest = (part @ train_x.T).topk(k)
        votes = torch.zeros(len(part), int(train_y.max()) + 1)
        votes.scatter_add_(1, train_y[nearest], (similarity / temperature).exp())
        right += (votes.argmax(1) == labels).sum().item()
    return round(100 * right / len(test_y), 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="folder of Parquet shards, or one shard")
    parser.add_argument("--test", required=True, help="likewise")
    parser.add_argument("--steps", type=int, default=468)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit-train", type=int, default=0)
    parser.add_argument("--limit-test", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    images, train_y = read(args.train, args.limit_train)
    test_images, test_y = read(args.test, args.limit_test)
    train_x, test_x = eval_images(images), eval_images(test_images)

    encoder = Encoder()
    untrained = calibrate(copy.deepcopy(encoder), train_x)
    train(encoder, images, args)
    measure = lambda net: knn(features(net, train_x), train_y, features(net, test_x), test_y)
    print(json.dumps({
        "trained": measure(encoder),
        "untrained": measure(untrained),
        "raw_pixels": knn(train_x, train_y, test_x, test_y),
        "k": 20,
        "train_images": len(images),
        "test_images": len(test_images),
    }))


if __name__ == "__main__":
    main()
