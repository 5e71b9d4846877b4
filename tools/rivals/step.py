"""The training step in PyTorch alone: what `vicreg-stream bench step` is held against.

Written from the published method (He et al. 1512.03385, VICReg 2105.04906, LARS 1708.03888): no code of others. One synthetic
batch, uint8 [V, N, H, W, 3], lies on the device; nothing is read or augmented. A step normalises it, encodes each view by
itself (batch norm must not mix them), takes the official loss (25, 25, 1), goes backward and updates. Needs torch 2.1 or later;
a recipe file also needs Python 3.11.

Usage: python tools/rivals/step.py [--recipe FILE] [--precision f32|bf16] [--batch-size N] [--size S] [--seconds 10] [--json]
"""

import argparse
import contextlib
import json
import pathlib
import time

import torch
import torch.nn.functional as F
from torch import nn

BLOCKS = {8: (1, 1, 1), 10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
VIEWS = 2


# ---- network -------------------------------------------------------------------------------------------------------------

class Block(nn.Module):
    """Residual block: 3x3, 3x3, or as a bottleneck 1x1, 3x3 (with the stride), 1x1; a 1x1 projection where the shape changes."""

    def __init__(self, inputs, planes, outputs, stride, bottleneck):
        super().__init__()
        kernels = ((inputs, planes, 1, 1), (planes, planes, 3, stride), (planes, outputs, 1, 1))
        if not bottleneck:
            kernels = ((inputs, planes, 3, stride), (planes, outputs, 3, 1))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in kernels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in kernels)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y, last = x, len(self.convs) - 1
        for n, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            y = norm(conv(y))
            if n < last:
                y = F.relu(y, inplace=True)
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


def encoder(depth, width, stem, stem_padding):
    """ResNet up to its pooled features: the network, and how many features."""
    filters = max(1, int(64 * width + 0.5))
    kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
    padding = kernel // 2 if stem_padding is None else stem_padding
    layers = [nn.Conv2d(3, filters, kernel, stride, padding, bias=False), nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
    if stem == "imagenet":
        layers.append(nn.MaxPool2d(3, 2, 1))
    bottleneck, inputs = depth >= 50, filters
    for stage, blocks in enumerate(BLOCKS[depth]):
        planes = filters << stage
        outputs = planes * (4 if bottleneck else 1)
        for block in range(blocks):
            layers.append(Block(inputs, planes, outputs, 2 if stage > 0 and block == 0 else 1, bottleneck))
            inputs = outputs
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net, inputs


def expander(features, dims, hidden_bias, last_bias):
    layers, inputs = [], features
    for outputs in dims[:-1]:
        layers += [nn.Linear(inputs, outputs, bias=hidden_bias), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, dims[-1], bias=last_bias))


# ---- method --------------------------------------------------------------------------------------------------------------

def vicreg(a, b):
    """Official form, 25 / 25 / 1, in float32; the covariance matrix is [D, D], as published."""
    n, d = a.shape
    variance = covariance = 0.0
    for z in (a, b):
        z = z - z.mean(dim=0)
        variance = variance + F.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean() / 2
        cov = z.T @ z / (n - 1)
        covariance = covariance + (cov.square().sum() - cov.diagonal().square().sum()) / d
    return 25 * F.mse_loss(a, b) + 25 * variance + covariance


class Lars:
    """LARS with momentum, official formula: q = trust |p| / |g + wd p|; parameters with one dimension are plain SGD."""

    def __init__(self, parameters, lr, weight_decay=1e-6, momentum=0.9, trust=0.001):
        parameters = list(parameters)
        self.scaled = [p for p in parameters if p.ndim > 1]
        self.plain = [p for p in parameters if p.ndim == 1]
        self.buffers = [torch.zeros_like(p) for p in self.scaled + self.plain]
        self.lr, self.weight_decay, self.momentum, self.trust = lr, weight_decay, momentum, trust

    def zero_grad(self):
        for p in self.scaled + self.plain:
            p.grad = None

    @torch.no_grad()
    def step(self):
        grads = list(torch._foreach_add([p.grad for p in self.scaled], self.scaled, alpha=self.weight_decay))
        # The ratios stay on the device: nothing waits for them.
        p_norms = torch.stack(list(torch._foreach_norm(self.scaled)))
        g_norms = torch.stack(list(torch._foreach_norm(grads)))
        ratios = torch.where((p_norms > 0) & (g_norms > 0), self.trust * p_norms / g_norms, torch.ones_like(p_norms))
        torch._foreach_mul_(grads, list(ratios.unbind()))
        torch._foreach_mul_(self.buffers, self.momentum)
        torch._foreach_add_(self.buffers, grads + [p.grad for p in self.plain])
        torch._foreach_add_(self.scaled + self.plain, self.buffers, alpha=-self.lr)


def optimiser(kind, parameters):
    """The update rule. The rate is small and fixed: it costs the same as any other."""
    parameters = list(parameters)
    if kind == "lars":
        return Lars(parameters, lr=0.1)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 1e-4},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    rule, options = (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}) if kind == "sgd" else (torch.optim.AdamW, {"lr": 1e-4})
    try:
        return rule(groups, fused=True, **options)
    except (TypeError, RuntimeError):  # an older torch has none for this rule or device
        return rule(groups, foreach=True, **options)


# ---- measurement ---------------------------------------------------------------------------------------------------------

def wait(device):
    """Until the device is done. The event lets the thread sleep: a spinning wait would count as CPU time."""
    if device.type == "cuda":
        event = torch.cuda.Event(blocking=True)
        event.record()
        event.synchronize()
        torch.cuda.synchronize()


def run(step, steps, device):
    """Wall and CPU seconds of that many steps; CPU time is that of all threads of the process."""
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    wait(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def timed(step, seconds, device, warm_up):
    """Steps, wall and CPU seconds of a run of about that many seconds. How many fit is known from the steps that warm up."""
    run(step, warm_up, device)
    each = run(step, 2, device)[0] / 2
    steps = max(1, round(seconds / each))
    return steps, *run(step, steps, device)


def matmul_tflops(device, dtype):
    """The best of ten short runs of a large square product: what this device reaches, not what its maker states."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = lambda: torch.mm(a, b, out=out)
    best = min(wall / steps for steps, wall, _ in (timed(product, 0.1, device, 3) for _ in range(10)))
    return 2 * side**3 / best / 1e12


def flops(step):
    """Floating-point operations of one step's convolutions and products (2 a multiply-add), or None where torch cannot count."""
    try:
        from torch.utils.flop_counter import FlopCounterMode
    except ImportError:
        return None
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measure(args):
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    if args.threads:
        torch.set_num_threads(args.threads)
    if cuda:
        torch.set_float32_matmul_precision("high")  # TF32
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(1)

    backbone, features = encoder(args.depth, args.width, args.stem, args.stem_padding)
    net = nn.Sequential(backbone, expander(features, args.expander, args.hidden_bias, args.last_bias)).to(device).train()
    if args.channels_last:
        net = net.to(memory_format=torch.channels_last)
    batch = torch.randint(0, 256, (VIEWS, args.batch_size, args.size, args.size, 3), dtype=torch.uint8, device=device)
    mean, std = (torch.tensor(x, device=device).mul(255).view(1, 3, 1, 1) for x in (args.mean, args.std))
    update = optimiser(args.optimizer, net.parameters())

    def autocast():
        return torch.autocast(device.type, torch.bfloat16) if args.precision == "bf16" else contextlib.nullcontext()

    def embed(view):
        x = (view.permute(0, 3, 1, 2) - mean) / std  # float32; already channels-last in memory
        if not args.channels_last:
            x = x.contiguous()
        return net(x)

    def loss_of(batch):
        with autocast():
            a, b = (embed(view) for view in batch.unbind())
        return vicreg(a.float(), b.float())

    def step_with(forward):
        def step():
            update.zero_grad()
            loss = forward(batch)
            loss.backward()
            update.step()
            return loss.detach()  # never read in the timed part: that would wait for the device
        return step

    count = flops(step_with(loss_of))
    step = step_with(torch.compile(loss_of) if args.compile else loss_of)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    steps, wall, cpu = timed(step, args.seconds, device, args.warm_up)
    memory = torch.cuda.max_memory_allocated() if cuda else None
    loss = step().item()
    peak = matmul_tflops(device, torch.bfloat16 if args.precision == "bf16" else torch.float32)

    report = {
        "program": "pytorch",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "precision": args.precision,
        "channels_last": args.channels_last,
        "compile": args.compile,
        "depth": args.depth,
        "width": args.width,
        "stem": args.stem,
        "expander": args.expander,
        "optimizer": args.optimizer,
        "size": args.size,
        "batch_size": args.batch_size,
        "steps": steps,
        "wall_s_per_step": wall / steps,
        "cpu_s_per_step": cpu / steps,
        "images_per_s": args.batch_size * steps / wall,
        "matmul_tflops": peak,
        "flops_per_step": count,
        "share_of_matmul_peak": None if count is None else count * steps / wall / (peak * 1e12),
        "device_memory_mb": None if memory is None else memory / 2**20,
        "loss": loss,
    }
    return report


def show(report):
    """A few lines for people."""
    r = report
    print(f"PyTorch {r['torch']}, {r['device']}, {r['precision']}, threads {r['threads']}")
    print(f"ResNet-{r['depth']} x {r['width']:g} ({r['stem']}), expander {'-'.join(map(str, r['expander']))}, {r['optimizer']}; "
          f"{r['batch_size']} images of {r['size']} pixels, {VIEWS} views")
    print(f"{r['steps']} steps: {1e3 * r['wall_s_per_step']:.2f} ms a step ({1e3 * r['cpu_s_per_step']:.2f} ms of CPU time), "
          f"{r['images_per_s']:.1f} images a second")
    if r["flops_per_step"] is not None:
        rate = r["flops_per_step"] / r["wall_s_per_step"] / 1e12
        print(f"{r['flops_per_step'] / 1e9:.1f} GFLOP a step: {rate:.3f} TFLOP/s, "
              f"{100 * r['share_of_matmul_peak']:.0f} % of a large product's {r['matmul_tflops']:.3f}")
    else:
        print(f"a large product reaches {r['matmul_tflops']:.3f} TFLOP/s")
    if r["device_memory_mb"] is not None:
        print(f"peak device memory: {r['device_memory_mb']:.0f} MiB")


# ---- options -------------------------------------------------------------------------------------------------------------

def recipe_defaults(path):
    """What a recipe says of the step, by our option names. Its loss, LARS variant and rates are not read: they cost the same."""
    import tomllib

    recipe = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    names = {
        "encoder": {"depth": "depth", "width": "width", "stem": "stem", "stem_padding": "stem_padding"},
        "expander": {"dims": "expander", "hidden_bias": "hidden_bias", "last_bias": "last_bias"},
        "optimizer": {"kind": "optimizer"},
        "train": {"batch_size": "batch_size", "precision": "precision"},
        "views": {"size": "size", "mean": "mean", "std": "std"},
    }
    return {
        option: recipe[table][key]
        for table, keys in names.items()
        for key, option in keys.items()
        if key in recipe.get(table, {})
    }


def options():
    dims = lambda text: [int(x) for x in text.split(",")]
    boolean = argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", metavar="FILE", help="take network, optimizer, batch, size and precision from it; options given here win")
    parser.add_argument("--depth", type=int, help="8, 10, 18, 34 or 50")
    parser.add_argument("--width", type=float, help="multiplies the filters")
    parser.add_argument("--stem", choices=("imagenet", "cifar"))
    parser.add_argument("--expander", type=dims, metavar="D,D,D")
    parser.add_argument("--optimizer", choices=("lars", "sgd", "adamw"))
    parser.add_argument("--batch-size", type=int, metavar="N")
    parser.add_argument("--size", type=int, metavar="S", help="side of a view, pixels")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="f32 is TF32 on CUDA; bf16 is autocast")
    parser.add_argument("--channels-last", action=boolean, default=True)
    parser.add_argument("--compile", action=boolean, default=False)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the timed part takes, about")
    parser.add_argument("--warm-up", type=int, default=3, metavar="STEPS")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 is torch's own choice")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(
        depth=50, width=1.0, stem="imagenet", stem_padding=None, expander=[8192] * 3, hidden_bias=True, last_bias=False,
        optimizer="lars", batch_size=256, size=224, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225],
    )
    recipe = parser.parse_args().recipe
    if recipe:
        parser.set_defaults(**recipe_defaults(recipe))
    args = parser.parse_args()
    if args.depth not in BLOCKS:
        parser.error(f"depth {args.depth}: only {', '.join(map(str, BLOCKS))} are here")
    if args.seconds <= 0 or args.batch_size < 2:
        parser.error("--seconds must be above 0 and --batch-size at least 2")
    return args


def main():
    args = options()
    report = measure(args)
    if args.json:
        print(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    main()
