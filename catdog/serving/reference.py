"""Compute the header entry `reference` of a network from its data: the monitor compares the service with it.

The entry has the detector of images that are probably none of the classes, the shares of classes and confidences among
the validation images, the alert thresholds, and images with known answers for the self-test.
"""

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from catdog.data.dataset import Data, ImageSubset
from catdog.data.decode import read_image
from catdog.data.synthetic import draw
from catdog.explain import OODDetector, extract_features, margin_of
from catdog.model import CNN

NUM_USUAL = 1000  # training images that the detector is fitted to
ABSTAINED = 0.02  # share of the validation images that the detector rejects
NUM_BINS = 10  # of the confidence, with equally many validation images each
WINDOW = 300  # last images in service, which are compared with the validation images
ERRORS = 0.2  # share of requests that may fail
NUM_KNOWN, KNOWN_SIZE = 8, 96  # images with known answers, and their width in pixels
BATCH_PIXELS = 64 * 64 * 64
FALSE_ALARM_RATE = 1e-4  # probability that an unchanged window exceeds a threshold
MIN_PSI = 0.2  # a smaller shift needs no alert: the usual rule of credit scoring (Siddiqi 2006)
MIN_RATE = 0.1  # likewise for a share


def make_reference(model: CNN, data: Data, device: str) -> dict[str, Any]:
    """Return the header entry `reference` of a network, from its training and validation images, JSON-able."""
    where = torch.device(device)
    model.to(where).eval()
    step = max(1, len(data.training) // NUM_USUAL)
    usual = _extract(model, data.training, data.training.rows[::step], where)[1]
    detector = OODDetector.fit(usual, model.config)
    logits, statistics = _extract(model, data.validation, data.validation.rows, where)
    distance = detector.distance(statistics)
    detector = replace(detector, limit=float(torch.quantile(distance, 1 - ABSTAINED)))
    called, margins = logits.argmax(1).numpy(), margin_of(logits).numpy()
    edges = np.quantile(margins, np.linspace(0, 1, NUM_BINS + 1)[1:-1]).tolist()
    classes = shares_of(np.bincount(called, minlength=len(data.classes)))
    abstained = float((distance > detector.limit).float().mean())
    return {
        "norm": detector.for_header(),
        "pictures": len(data.validation),
        "classes": classes,
        "margin_edges": edges,
        "margins": shares_of(np.bincount(np.digitize(margins, edges), minlength=NUM_BINS)),
        "abstained": abstained,
        "window": WINDOW,
        "thresholds": {
            "class_psi": psi_threshold(len(classes), WINDOW, len(data.validation)),
            "confidence_psi": psi_threshold(NUM_BINS, WINDOW, len(data.validation)),
            "abstained": rate_threshold(abstained, WINDOW, len(data.validation)),
            "errors": ERRORS,
        },
        "known_answers": _known_answers(model, detector, where),
    }


def known_answers(entry: Mapping[str, Any]) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Return the image files of a `reference`, their (n, classes) probabilities and (n,) distances."""
    known = entry["known_answers"]
    probabilities, distances = ([one[name] for one in known] for name in ("probabilities", "distance"))
    return [b64decode(one["picture"]) for one in known], np.array(probabilities), np.array(distances)


def _known_answers(model: CNN, detector: OODDetector, device: torch.device) -> list[dict[str, Any]]:
    """Draw images, and return them as small files with the network's answers."""
    files = []
    for seed in range(NUM_KNOWN):
        file = BytesIO()
        draw(seed % 2, KNOWN_SIZE, seed).save(file, "JPEG", quality=80)
        files.append(file.getvalue())
    images = np.stack([np.array(read_image(file, model.config.image_size)) for file in files])
    features = extract_features(model, torch.from_numpy(images), device)
    probabilities, distances = features.logits.softmax(1).tolist(), detector.distance(features.statistics).tolist()
    answers = zip(files, probabilities, distances, strict=True)
    return [
        {"picture": b64encode(file).decode(), "probabilities": answer, "distance": distance}
        for file, answer, distance in answers
    ]


def _extract(model: CNN, subset: ImageSubset, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return logits (N, classes) and feature statistics (N, T) of some rows."""
    size = subset.images.shape[1]
    batches = torch.split(rows, max(1, BATCH_PIXELS // size**2))
    features = [extract_features(model, subset.images[batch], device) for batch in batches]
    return torch.cat([one.logits for one in features]), torch.cat([one.statistics for one in features])


def shares_of(counts: ArrayLike) -> list[float]:
    """Turn counts into shares, none of which is 0: half an image is added to each bin."""
    counts = np.asarray(counts) + 0.5
    return list(map(float, counts / counts.sum()))


def psi(shares: Sequence[float], reference: Sequence[float]) -> float:
    """Return the population stability index: the sum of (p - q) log(p / q) over bins, none of which is empty."""
    p, q = np.asarray(shares), np.asarray(reference)
    return float(((p - q) * np.log(p / q)).sum())


def psi_threshold(num_bins: int, window: int, num_images: int) -> float:
    """Return the index that samples of these sizes from the same images exceed with probability FALSE_ALARM_RATE.

    The index times nm / (n + m) is chi-squared with one degree less than bins (Yurdakul 2018); the quantile is Wilson
    and Hilferty's.
    """
    free, z = num_bins - 1, NormalDist().inv_cdf(1 - FALSE_ALARM_RATE)
    quantile = free * (1 - 2 / (9 * free) + z * (2 / (9 * free)) ** 0.5) ** 3
    return float(max(MIN_PSI, quantile * (1 / window + 1 / max(1, num_images))))


def rate_threshold(rate: float, window: int, num_images: int) -> float:
    """Return the share that a window exceeds with probability FALSE_ALARM_RATE, given `rate` (normal approximation)."""
    z = NormalDist().inv_cdf(1 - FALSE_ALARM_RATE)
    spread = (max(rate, 1 / window) * (1 - rate) * (1 / window + 1 / max(1, num_images))) ** 0.5
    return float(max(MIN_RATE, rate + z * spread))
