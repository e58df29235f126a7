"""Score the detections of a RUN once more: pycocotools, faster-coco-eval and what the RUN says, side by side.

    python benchmarks/detection_scores.py RUN

RUN is a finished `headstart finetune --task detect`. Both libraries read the same two files of the run, with the same
limit of detections for each image; they should agree to 1e-3. Ultralytics interpolates the curve in another way.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import faster_coco_eval
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

AREAS = ("map50_95", "ap_small", "ap_medium", "ap_large")


def scores(dataset: Any, found: list[dict[str, Any]], evaluator: Any, limit: int) -> dict[str, float]:
    """Return the average precisions that a library counts."""
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
        counted = evaluator(dataset, dataset.loadRes(found), "bbox")
        counted.params.maxDets = [1, 10, limit]
        counted.evaluate()
        counted.accumulate()
    precision = counted.eval["precision"][..., -1]

    def mean(part: np.ndarray) -> float:
        return float(part[part > -1].mean()) if (part > -1).any() else float("nan")

    return {
        **{name: mean(precision[..., area]) for area, name in enumerate(AREAS)},
        "map50": mean(precision[0, ..., 0]),
    }


def main(run: Path) -> None:
    """Print a line for each score."""
    truth = json.loads((run / "detections" / "truth.json").read_text())
    found = json.loads((run / "detections" / "found.json").read_text())
    result = json.loads((run / "result.json").read_text())
    limit = result["max_detections"]
    ours, theirs = COCO(), faster_coco_eval.COCO()
    ours.dataset = truth
    theirs.dataset = truth
    columns = {
        "pycocotools": scores(ours, found, COCOeval, limit),
        "faster-coco-eval": scores(theirs, found, faster_coco_eval.COCOeval_faster, limit),
        "result.json": result["scores"],
    }
    print(f"{len(truth['images'])} images, {len(truth['annotations'])} objects, {len(found)} detections")
    print(f"{'':10}" + "".join(f"{name:>18}" for name in [*columns, "Ultralytics"]))
    for name in ("map50_95", "map50", "ap_small", "ap_medium", "ap_large"):
        values = [column[name] for column in columns.values()] + [result["scores"].get(f"ultralytics_{name}")]
        print(f"{name:10}" + "".join(f"{value:18.6f}" if value is not None else f"{'-':>18}" for value in values))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
