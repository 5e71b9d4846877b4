"""Is it the same work? Statistics of a peer's views, held against torchvision's on Pillow over the same images.

The bounds are loose: draws differ, and so do filters and colour arithmetic. They catch a view that is not blurred, grey, solarised or
jittered as often or as strongly as the recipe says, another crop scale, a wrong channel order, two views that are one.
"""

import dataclasses
import json
import math

import numpy as np


def as_pixels(view, work):
    """uint8 [N, H, W, 3] of a batch as the peer gives it."""
    view = np.asarray(view)
    if view.shape[1:] == (3, work.size, work.size):
        view = view.transpose(0, 2, 3, 1)
    if work.float:
        view = np.clip(255 * (view * np.float32(work.std) + np.float32(work.mean)) + 0.5, 0, 255).astype(np.uint8)
    return view


def describe(views):
    """Numbers of one view of each image, each with its mean over the images and that mean's standard error."""
    x = views.astype(np.float32)
    luma = x @ np.float32([0.299, 0.587, 0.114])
    spread = x.max(axis=3) - x.min(axis=3)
    by_image = {
        "brightness": luma.mean(axis=(1, 2)),
        "contrast": luma.std(axis=(1, 2)),
        "red_minus_blue": (x[..., 0] - x[..., 2]).mean(axis=(1, 2)),
        "colour": spread.mean(axis=(1, 2)),
        "gradient": np.abs(np.diff(luma, axis=2)).mean(axis=(1, 2)),
        "grey": (spread.max(axis=(1, 2)) <= 3).astype(np.float32),
        # Solarisation leaves nothing above the threshold: the brightest channel values are missing.
        "dark_max": (x.max(axis=(1, 2, 3)) <= 128).astype(np.float32),
    }
    return means(by_image)


def means(by_image):
    return {name: (float(v.mean()), float(v.std() / math.sqrt(len(v)))) for name, v in by_image.items()}


def describe_pairs(first, second):
    """How far apart an image's two views are: less where the jitter is weak or the crops are large."""
    luma = [views.astype(np.float32) @ np.float32([0.299, 0.587, 0.114]) for views in (first, second)]
    brightness = [x.mean(axis=(1, 2)) for x in luma]
    n, cell = len(first), first.shape[1] // 8
    thumbs = [x[:, : 8 * cell, : 8 * cell].reshape(n, 8, cell, 8, cell).mean(axis=(2, 4)) for x in luma]
    thumbs = [(x - x.mean(axis=(1, 2), keepdims=True)) / (x.std(axis=(1, 2), keepdims=True) + 1) for x in thumbs]
    a, b = thumbs
    return means({
        "brightness_apart": np.abs(brightness[0] - brightness[1]),
        # Correlation of 8x8 thumbnails, either way round, since one view may be flipped.
        "likeness": np.maximum((a * b).mean(axis=(1, 2)), (a * b[:, :, ::-1]).mean(axis=(1, 2))),
        "same": (first == second).all(axis=(1, 2, 3)).astype(np.float32),
    })


# What may differ beside chance (4 standard errors): a share of the reference, and an absolute part.
SLACK = {
    "brightness": (0.03, 1.0),
    "contrast": (0.08, 0.5),
    "red_minus_blue": (0.15, 1.0),
    "colour": (0.15, 0.5),
    "gradient": (0.35, 0.2),
    "grey": (0.0, 0.01),
    "dark_max": (0.0, 0.01),
    "brightness_apart": (0.05, 0.5),
    "likeness": (0.0, 0.02),
    "same": (0.0, 0.01),
}


def differences(seen, expected):
    for name, (a, error_a) in seen.items():
        (b, error_b), (share, part) = expected[name], SLACK[name]
        bound = share * abs(b) + part + 4 * math.hypot(error_a, error_b)
        if abs(a - b) > bound:
            yield f"{name} {a:.3f}, expected {b:.3f} +- {bound:.3f}"


def statistics(feed, work):
    """Of either view, and of the pairs."""
    pairs = [[as_pixels(view, work).copy() for view in pair] for pair in feed.run(work.images)]
    feed.close()
    first, second = (np.concatenate(views) for views in zip(*pairs))
    assert first.shape == second.shape == (work.images, work.size, work.size, 3), (first.shape, second.shape)
    return {"view 1": describe(first), "view 2": describe(second), "pairs": describe_pairs(first, second)}


def main(name, feed, work):
    """Prints both sets of statistics and what differs; 0 where nothing does."""
    import torchvision_pillow  # here, since it imports what imports this

    plain = dataclasses.replace(work, workers=0, float=False)
    seen, expected = statistics(feed(work), work), statistics(torchvision_pillow.Feed(plain), plain)
    faults = [f"{of}: {fault}" for of in seen for fault in differences(seen[of], expected[of])]
    rounded = lambda sets: {of: {key: round(mean, 3) for key, (mean, _) in values.items()} for of, values in sets.items()}
    print(json.dumps({"name": name, "images": work.images, "seen": rounded(seen), "expected": rounded(expected), "faults": faults}, indent=1))
    return 1 if faults else 0
