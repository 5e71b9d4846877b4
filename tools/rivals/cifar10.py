"""The recipe `pipelines/cifar10-cpu.toml` in PyTorch: what `vicreg-stream train` learns with it is held against this.

Written from the published method (VICReg 2105.04906, ResNet 1512.03385, AdamW 1711.05101) and from the recipe: no code of others, none of
the Rust code. Views are torchvision's on Pillow, as published. A recipe that asks for what is not here is refused. The order of an
epoch and the views of a step are functions of seed and step alone, so that a run that was cut off goes on as if it had not been.

Writes into `--out`: `metrics.jsonl` (the keys that our runs have, and CPU seconds of all processes), `checkpoint.pt`, at the end
`encoder.pt` (torchvision's names) and `result.json` (weighted k-NN and linear probe, protocols of `vicreg-stream eval`).
Needs torch 2.4 or later, torchvision, pyarrow, Python 3.11 or later, Linux; `smoke.py` and `step.py` beside it, whose layers it shares.

Usage: python tools/rivals/cifar10.py --data DIR --recipe FILE --out DIR [--epochs N] [--seed 1] [--threads 2] [--eval-only]
"""

import argparse
import hashlib
import io
import json
import math
import multiprocessing
import os
import pathlib
import time
import tomllib

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that wait must not spin where cores are shared

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms as T

from smoke import Block
from step import expander

BLOCKS = {8: (1, 1, 1), 10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
LOG_EVERY, CHECKPOINT_EVERY = 10, 100
ORDER, VIEWS, WEIGHTS = range(3)  # what a random stream is for


# ---- recipe --------------------------------------------------------------------------------------------------------------

# Defaults of `pipelines/REFERENCE.md`. A tuple holds all that this script can do; the recipe may ask for nothing else.
RECIPE = {
    "views": {"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "view": None},
    "view": {
        "order": ["flip", "jitter", "grey", "blur", "solarize"], "crop_scale": [0.08, 1.0], "crop_ratio": [3 / 4, 4 / 3],
        "interpolation": "bicubic", "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1,
        "grey": 0.2, "blur": 1.0, "solarize": 0.0, "solarize_threshold": 128,
    },
    "encoder": {"depth": 50, "width": 1.0, "stem": "imagenet", "stem_padding": 1, "zero_init_residual": True, "init": "kaiming-fan-out"},
    "expander": {"dims": [8192] * 3, "hidden_bias": True, "last_bias": False},
    "loss": {"kind": "official", "invariance": 25.0, "variance": 25.0, "covariance": 1.0},
    "optimizer": {"kind": "lars", "weight_decay": 1e-6, "betas": [0.9, 0.999], "eps": 1e-8},
    "schedule": {
        "base_lr": 0.2, "scale_by_batch": True, "warmup_epochs": 10.0, "warmup_start_lr": 0.0,
        "warmup_reaches_peak": "first-step-after", "final_fraction": 0.001, "final_lr": None,
    },
    "train": {"batch_size": 2048, "epochs": 100, "precision": "f32"},
    "eval": {"resize": None, "k": 20, "temperature": 0.07},
}
ONLY = {
    ("view", "interpolation"): ("bicubic", "bilinear"), ("view", "blur"): (0.0,), ("encoder", "depth"): tuple(BLOCKS),
    ("encoder", "stem"): ("cifar",), ("encoder", "init"): ("pytorch", "kaiming-fan-out"), ("loss", "kind"): ("official",),
    ("optimizer", "kind"): ("adamw",), ("schedule", "warmup_reaches_peak"): ("first-step-after",), ("train", "precision"): ("f32",),
}
# Free to differ: where data lie, how often something is written, how the feed works. The seed is an option here.
FREE = {
    "data": ("path", "test"), "feed": None, "order": None, "device": None,
    "train": ("checkpoint_every", "keep_checkpoints", "log_every", "on_collapse", "seed"),
    "eval": ("batch_size", "every_epochs", "knn_at_end"), "view": ("blur_sigma",),
}


def read_recipe(path):
    """All keys with their defaults filled in; ends the program where it asks for something else."""
    given = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    views = given.get("views", {}).get("view", [])
    if len(views) != 1:
        raise SystemExit(f"{path}: one table [[views.view]] is done here, not {len(views)}")
    given["view"] = views[0]
    recipe = {}
    for table in given.keys() - RECIPE.keys() - FREE.keys():
        raise SystemExit(f"{path}: [{table}] is not done here")
    for table, defaults in RECIPE.items():
        free = FREE.get(table, ())
        for key in given.get(table, {}).keys() - defaults.keys() - set(free):
            raise SystemExit(f"{path}: {table}.{key} is not done here")
        recipe[table] = defaults | {k: v for k, v in given.get(table, {}).items() if k not in free}
    for table in given.keys() & FREE.keys() - RECIPE.keys():
        for key in given[table].keys() - set(FREE[table] or given[table]):
            raise SystemExit(f"{path}: {table}.{key} is not done here")
    for (table, key), values in ONLY.items():
        if recipe[table][key] not in values:
            raise SystemExit(f"{path}: {table}.{key} = {recipe[table][key]!r}; here it can be {' or '.join(map(repr, values))}")
    if recipe["eval"]["resize"] != recipe["views"]["size"]:
        raise SystemExit(f"{path}: eval.resize must be views.size: whole images are judged here")
    recipe["views"].pop("view")
    return recipe


# ---- data ----------------------------------------------------------------------------------------------------------------

def read(folder, split, limit):
    """Images of a split's shards, each decoded once, in the order of the shards, and their labels."""
    images, labels = [], []
    for path in sorted(pathlib.Path(folder).glob(f"{split}-*.parquet")):
        table = pq.read_table(path, columns=["image", "label"])
        for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist()):
            if limit and len(images) == limit:
                break
            images.append(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
            labels.append(label)
    if not images:
        raise SystemExit(f"{folder}: no shard {split}-*.parquet")
    return images, torch.tensor(labels)


def augmentation(view, size):
    """One view of a Pillow image, as a Pillow image: the crop, then the recipe's operations in its order."""
    jitter = T.ColorJitter(view["brightness"], view["contrast"], view["saturation"], view["hue"])
    operations = {
        "flip": T.RandomHorizontalFlip(view["flip"]),
        "jitter": T.RandomApply([jitter], p=view["jitter"]),
        "grey": T.RandomGrayscale(view["grey"]),
        "solarize": T.RandomSolarize(view["solarize_threshold"], p=view["solarize"]),
    }
    crop = T.RandomResizedCrop(
        size, scale=view["crop_scale"], ratio=view["crop_ratio"], interpolation=T.InterpolationMode(view["interpolation"])
    )
    return T.Compose([crop, *(operations[name] for name in view["order"] if name != "blur")])


def stream(seed, what, number):
    """A seed for torch, a function of the run's seed, of what it is for, and of the step or epoch."""
    return int(np.random.SeedSequence([seed, what, number]).generate_state(1)[0])


class Batches(torch.utils.data.Dataset):
    """Step -> uint8 [2, N, S, S, 3]: two views of each image of the batch. The last, incomplete batch of an epoch is dropped."""

    def __init__(self, images, recipe, seed):
        self.images, self.seed = images, seed
        self.batch = recipe["train"]["batch_size"]
        self.view = augmentation(recipe["view"], recipe["views"]["size"])
        self.per_epoch = len(images) // self.batch
        self.epoch, self.order = None, None
        if self.per_epoch == 0:
            raise SystemExit(f"{len(images)} images make no batch of {self.batch}")

    def __getitem__(self, step):
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(stream(self.seed, ORDER, epoch))
            self.epoch, self.order = epoch, torch.randperm(len(self.images), generator=generator).tolist()
        torch.manual_seed(stream(self.seed, VIEWS, step))
        batch = self.order[place * self.batch : (place + 1) * self.batch]
        views = [[np.asarray(self.view(self.images[i])) for i in batch] for _ in range(2)]
        return torch.from_numpy(np.stack([np.stack(view) for view in views]))


class Normalise:
    """uint8 [N, S, S, 3] -> float32 [N, 3, S, S], channels-last in memory."""

    def __init__(self, views):
        self.mean, self.std = (torch.tensor(views[key]) for key in ("mean", "std"))

    def __call__(self, x):
        return ((x / 255 - self.mean) / self.std).permute(0, 3, 1, 2)


# ---- network -------------------------------------------------------------------------------------------------------------

class Encoder(nn.Module):
    """ResNet of basic blocks with a 3x3 stem and no pool, up to its pooled features; torchvision's names."""

    def __init__(self, depth, width, stem, stem_padding, zero_init_residual, init):
        super().__init__()
        filters = max(1, int(64 * width + 0.5))
        self.conv1 = nn.Conv2d(3, filters, 3, 1, stem_padding, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.stages, inputs = [], filters
        for stage, blocks in enumerate(BLOCKS[depth]):
            outputs = filters << stage
            strides = [2 if stage > 0 and block == 0 else 1 for block in range(blocks)]
            shapes = zip([inputs] + [outputs] * (blocks - 1), strides)
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*(Block(i, outputs, stride) for i, stride in shapes)))
            inputs = outputs
        self.features = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and init == "kaiming-fan-out":  # else nn.Conv2d's own
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, Block) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return x.mean(dim=(2, 3))


def network(recipe, seed):
    """Encoder and expander as they are before the first step."""
    torch.manual_seed(stream(seed, WEIGHTS, 0))
    encoder = Encoder(**recipe["encoder"])
    net = nn.Sequential(encoder, expander(encoder.features, **recipe["expander"]))
    return net.to(memory_format=torch.channels_last)


# ---- method --------------------------------------------------------------------------------------------------------------

def vicreg(a, b, invariance, variance, covariance, kind="official"):
    """Loss, invariance, variance, covariance in the official form: the variance of the branches is averaged, the covariance added."""
    n, d = a.shape
    s = F.mse_loss(a, b)
    v = c = 0.0
    for z in (a, b):
        z = z - z.mean(dim=0)
        v = v + F.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean() / 2
        cov = z.T @ z / (n - 1)
        c = c + (cov.square().sum() - cov.diagonal().square().sum()) / d
    return invariance * s + variance * v + covariance * c, s, v, c


def rate(step, per_epoch, steps, schedule, batch):
    """Learning rate of a step, from 0: a straight line to the peak, which the first step after it has; then half a cosine."""
    peak = schedule["base_lr"] * (batch / 256 if schedule["scale_by_batch"] else 1)
    final = schedule["final_fraction"] * peak if schedule["final_lr"] is None else schedule["final_lr"]
    start, warmup = schedule["warmup_start_lr"], schedule["warmup_epochs"] * per_epoch
    if step < warmup:
        return start + (peak - start) * step / warmup
    q = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    return peak * q + final * (1 - q)


def optimiser(parameters, options):
    """AdamW; parameters with one dimension (biases, batch norm) are not decayed."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options["weight_decay"]},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=tuple(options["betas"]), eps=options["eps"], fused=True)


# ---- run -----------------------------------------------------------------------------------------------------------------

def cpu_seconds():
    """User and system time of this process and of its workers."""
    tick, times = os.sysconf("SC_CLK_TCK"), os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for worker in multiprocessing.active_children():
        try:
            stat = pathlib.Path(f"/proc/{worker.pid}/stat").read_text()
        except OSError:
            continue  # it ended meanwhile
        total += sum(map(int, stat.rsplit(")", 1)[1].split()[11:13])) / tick
    return total


def write_whole(path, write):
    """A file that is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def load(path, identity, net, update=None):
    """Brings back a checkpoint of the same run; returns steps done, seconds and CPU seconds."""
    saved = torch.load(path, weights_only=True)
    if saved["identity"] != identity:
        raise SystemExit(f"{path} is of another run: {saved['identity']}, not {identity}")
    net.load_state_dict(saved["model"])
    if update:
        update.load_state_dict(saved["optimizer"])
    return saved["step"], saved["seconds"], saved["cpu_seconds"]


def cut(path, step):
    """Keeps the metrics of steps up to `step`: what came after the checkpoint is done again."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    write_whole(path, lambda p: p.write_text("".join(line + "\n" for line in kept)))


def train(net, images, recipe, identity, args):
    batches = Batches(images, recipe, args.seed)
    steps = batches.per_epoch * identity["epochs"]
    normalise = Normalise(recipe["views"])
    update = optimiser(net.parameters(), recipe["optimizer"])
    checkpoint, metrics = args.out / "checkpoint.pt", args.out / "metrics.jsonl"
    first, seconds, cpu = load(checkpoint, identity, net, update) if checkpoint.exists() else (0, 0.0, 0.0)
    cut(metrics, first)
    seconds, cpu = time.time() - seconds, cpu_seconds() - cpu
    if first:
        print(f"goes on after step {first}", flush=True)

    net.train()
    feed = torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(first, steps), num_workers=args.workers)
    with metrics.open("a") as log:
        for step, batch in enumerate(feed, first):
            # One view at a time through the network: batch norm must not mix them.
            a, b = (net(normalise(view)) for view in batch)
            loss, s, v, c = vicreg(a, b, **recipe["loss"])
            update.zero_grad()
            loss.backward()
            for group in update.param_groups:
                group["lr"] = rate(step, batches.per_epoch, steps, recipe["schedule"], batches.batch)
            update.step()

            done = step + 1
            if done % LOG_EVERY == 0 or done in (1, steps):
                std = torch.stack([z.detach().std(dim=0).mean() for z in (a, b)]).mean()
                terms = {"loss": loss, "invariance": s, "variance": v, "covariance": c, "embedding_std": std}
                line = {"step": done, "epoch": done / batches.per_epoch} | {name: x.item() for name, x in terms.items()}
                line |= {"lr": update.param_groups[0]["lr"], "seconds": time.time() - seconds, "cpu_seconds": cpu_seconds() - cpu}
                print(json.dumps(line), file=log, flush=True)
                if not math.isfinite(line["loss"]):
                    raise SystemExit(f"step {done}: the loss is {line['loss']}")
            if done % CHECKPOINT_EVERY == 0 or done == steps:
                state = {
                    "identity": identity, "step": done, "model": net.state_dict(), "optimizer": update.state_dict(),
                    "seconds": time.time() - seconds, "cpu_seconds": cpu_seconds() - cpu,
                }
                write_whole(checkpoint, lambda p: torch.save(state, p))
                print(json.dumps(line), flush=True)  # multiples of CHECKPOINT_EVERY are ones of LOG_EVERY too


# ---- measurement ---------------------------------------------------------------------------------------------------------

def whole(images, recipe):
    """Whole images, normalised: [N, 3, S, S]."""
    size, normalise = recipe["views"]["size"], Normalise(recipe["views"])
    if any(image.size != (size, size) for image in images):
        raise SystemExit(f"an image is not of {size} x {size} pixels: whole images are judged here, without a resize")
    x = torch.empty(len(images), 3, size, size).contiguous(memory_format=torch.channels_last)
    for start in range(0, len(images), 1000):
        part = np.stack([np.asarray(image) for image in images[start : start + 1000]])
        x[start : start + 1000] = normalise(torch.from_numpy(part))
    return x


@torch.no_grad()
def features(encoder, x):
    encoder.eval()
    return torch.cat([encoder(part) for part in x.split(500)])


@torch.no_grad()
def calibrate(encoder, x):
    """Batch-norm statistics as the plain average over 32 batches of the training images, drawn without replacement."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    encoder.train()
    for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(128)[:32]:
        encoder(x[batch])
    return encoder


def knn(train_x, train_y, test_x, test_y, k, temperature):
    """Weighted k-NN, cosine, of features [N, D]: accuracy in per cent."""
    norms = torch.cat([part.norm(dim=1) for part in train_x.split(5000)]).clamp_min(1e-12)
    right = 0
    for part, labels in zip(test_x.split(500), test_y.split(500)):
        # The training images are divided in the product: raw pixels would else be in memory twice.
        similarity, nearest = (F.normalize(part, dim=1) @ train_x.T).div_(norms).topk(min(k, len(train_x)))
        votes = torch.zeros(len(part), int(train_y.max()) + 1)
        votes.scatter_add_(1, train_y[nearest], (similarity / temperature).exp())
        right += (votes.argmax(1) == labels).sum().item()
    return round(100 * right / len(test_y), 2)


def lbfgs(function, point, iterations, tolerance, history=10):
    """Nocedal and Wright, algorithms 7.4 and 7.5, backtracking from 1; where rounding hides the fall, the slopes decide."""
    pairs, taken = [], 0
    value, gradient = function(point)
    while taken < iterations and gradient.abs().max() > tolerance:
        q, weights = -gradient, []
        for step, change in reversed(pairs):
            weights.append(step @ q / (step @ change))
            q = q - weights[-1] * change
        if pairs:
            q = q * (pairs[-1][0] @ pairs[-1][1] / pairs[-1][1].square().sum())
        for (step, change), weight in zip(pairs, reversed(weights)):
            q = q + (weight - change @ q / (step @ change)) * step
        slope, length = q @ gradient, 1.0 if pairs else min(1.0, 1 / gradient.norm().item())
        for _ in range(21):
            there = point + length * q
            value_there, gradient_there = function(there)
            falls = value_there <= value + 1e-4 * length * slope
            level = value_there <= value + 1e-6 * abs(value) and q @ gradient_there <= (2e-4 - 1) * slope
            if falls or level:
                break
            length /= 2
        else:
            if not pairs:
                break
            pairs = []
            continue
        step, change = there - point, gradient_there - gradient
        if step @ change > 2.2e-16 * change.square().sum():
            pairs = [*pairs, (step, change)][-history:]
        point, value, gradient, taken = there, value_there, gradient_there, taken + 1
    return point, taken


def linear(train_x, train_y, test_x, test_y, l2=1e-3, iterations=100, tolerance=1e-3):
    """Softmax regression on standardised features; mean cross-entropy + l2 / 2 |W|^2, by L-BFGS from 0: accuracy in per cent."""
    n, d = train_x.shape
    classes = int(train_y.max()) + 1
    mean, deviation = train_x.double().mean(0), train_x.double().std(0, correction=0)
    constant = deviation <= 4 * torch.finfo(torch.float32).eps * mean.abs()
    inverse = torch.where(constant, 0.0, 1 / deviation)
    scale = lambda x: (x - mean.float()) * inverse.float()
    x, one_hot = scale(train_x), F.one_hot(train_y, classes).double()

    def function(at):
        weights, biases = at[: d * classes].view(d, classes), at[d * classes :]
        logits = (x @ weights.float()).double() + biases
        residuals = (logits.softmax(1) - one_hot) / n
        loss = F.cross_entropy(logits, train_y) + l2 / 2 * weights.square().sum()
        of_weights = (x.T @ residuals.float()).double() + l2 * weights
        return loss, torch.cat([of_weights.flatten(), residuals.sum(0)])

    at, steps = lbfgs(function, torch.zeros((d + 1) * classes, dtype=torch.float64), iterations, tolerance)
    logits = scale(test_x) @ at[: d * classes].view(d, classes).float() + at[d * classes :].float()
    return round(100 * (logits.argmax(1) == test_y).float().mean().item(), 2), steps


def evaluate(net, train_images, train_y, test_images, test_y, recipe, identity, args):
    """Writes `result.json` and `encoder.pt`."""
    started = time.time()
    train_x, test_x = whole(train_images, recipe), whole(test_images, recipe)
    options = {key: recipe["eval"][key] for key in ("k", "temperature")}

    def judge(encoder):
        sets = features(encoder, train_x), train_y, features(encoder, test_x), test_y
        accuracy, steps = linear(*sets)
        return {"knn": knn(*sets, **options), "linear": accuracy, "linear_steps": steps}

    result = {"trained": judge(net[0])}
    print(json.dumps(result), flush=True)
    result["untrained"] = judge(calibrate(network(recipe, args.seed)[0], train_x))
    pixels = lambda x: x.permute(0, 2, 3, 1).flatten(1)  # as they lie in memory: no copy
    result["raw_pixels"] = {"knn": knn(pixels(train_x), train_y, pixels(test_x), test_y, **options)}
    lines = (args.out / "metrics.jsonl").read_text().splitlines()
    result |= options | identity | {
        "train_images": len(train_y), "test_images": len(test_y), "torch": torch.__version__, "threads": torch.get_num_threads(),
        "workers": args.workers, "last_line": json.loads(lines[-1]), "evaluation_seconds": time.time() - started,
    }
    write_whole(args.out / "result.json", lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))
    weights = {name: value.contiguous() for name, value in net[0].state_dict().items()}
    write_whole(args.out / "encoder.pt", lambda p: torch.save(weights, p))
    print(json.dumps(result), flush=True)


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of Parquet shards train-* and test-*")
    parser.add_argument("--recipe", required=True, metavar="FILE")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="of a run that was cut off: it goes on")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's; the schedule then spans these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of the network")
    parser.add_argument("--workers", type=int, default=1, help="processes that make views; 0: the trainer does it")
    parser.add_argument("--eval-only", action="store_true", help="judge the checkpoint as it is")
    parser.add_argument("--limit-train", type=int, default=0, metavar="N", help="only the first N images; 0: all")
    parser.add_argument("--limit-test", type=int, default=0, metavar="N")
    return parser.parse_args()


def main():
    args = options()
    torch.set_num_threads(args.threads)
    recipe = read_recipe(args.recipe)
    epochs = args.epochs or recipe["train"].pop("epochs")
    recipe["train"].pop("epochs", None)
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    identity = {"recipe": digest, "epochs": epochs, "seed": args.seed, "limit_train": args.limit_train}
    args.out.mkdir(parents=True, exist_ok=True)
    images, labels = read(args.data, "train", args.limit_train)
    net = network(recipe, args.seed)
    if args.eval_only:
        step, *_ = load(args.out / "checkpoint.pt", identity, net)
        print(f"checkpoint of step {step}", flush=True)
    else:
        train(net, images, recipe, identity, args)
    test_images, test_labels = read(args.data, "test", args.limit_test)
    evaluate(net, images, labels, test_images, test_labels, recipe, identity, args)


if __name__ == "__main__":
    main()
