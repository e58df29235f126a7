"""Time headstart's batched linear probes against scikit-learn's, one problem after the other, in one process."""

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from headstart.evaluation.linear import PENALTIES, fit_linear


def synthetic(rows: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rectified features with a decaying spectrum, as backbones give them, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (rows,), generator=generator)
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    return ((0.3 * centres[labels] + noise) * torch.logspace(0, -2, width) @ mixing).relu(), labels


def objective(model: LogisticRegression, features: torch.Tensor, labels: torch.Tensor) -> float:
    logits = torch.from_numpy(model.decision_function(features))
    targets = torch.searchsorted(torch.from_numpy(model.classes_), labels)
    return float(model.C * F.cross_entropy(logits, targets, reduction="sum") + 0.5 * np.square(model.coef_).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 50, 100, 200, 500, 1000], help="rows per subset")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tolerance", type=float, default=1e-8, help="of scikit-learn's lbfgs")
    options = parser.parse_args()

    features, labels = synthetic(2 * options.rows, options.width, options.classes)
    train, test = features[: options.rows], features[options.rows :]
    generator = torch.Generator().manual_seed(1)
    drawn = [
        torch.randperm(options.rows, generator=generator)[:budget]
        for budget in options.budgets
        for _ in range(options.seeds)
    ]
    subsets = [rows for rows in drawn for _ in PENALTIES]
    penalties = PENALTIES.repeat(len(drawn))

    start = time.perf_counter()
    models = fit_linear(train, labels[: options.rows], options.classes, subsets, penalties)
    ours = time.perf_counter() - start

    scaled, scaled_test = ((part - models.mean) / models.scale for part in (train, test))
    truth, theirs, losses, accuracies = labels[options.rows :], 0.0, [0.0], [0.0]
    predictions = models.predict(test)
    for problem, (rows, penalty) in enumerate(zip(subsets, penalties.tolist(), strict=True)):
        inputs, targets = scaled[rows].numpy(), labels[rows].numpy()
        start = time.perf_counter()
        model = LogisticRegression(C=penalty, tol=options.tolerance, max_iter=20_000).fit(inputs, targets)
        theirs += time.perf_counter() - start
        losses.append(float(models.loss[problem]) / objective(model, scaled[rows], labels[rows]) - 1)
        accuracy = float((predictions[problem] == truth).double().mean())
        accuracies.append(abs(accuracy - model.score(scaled_test.numpy(), truth.numpy())))

    print(f"{len(subsets)} problems, {options.rows} x {options.width}, {torch.get_num_threads()} threads")
    print(f"headstart {ours:.2f} s, scikit-learn {theirs:.2f} s, ratio {theirs / ours:.1f}")
    print(f"converged: {int(models.converged.sum())} of {len(subsets)}")
    print(f"relative difference of the loss: highest {max(losses):.1e}, lowest {min(losses):.1e} (below 0: ours lower)")
    print(f"largest difference of the test accuracy: {max(accuracies):.4f}")


if __name__ == "__main__":
    main()
