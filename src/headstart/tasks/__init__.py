"""What a backbone does for its user: a head on its features, trained by the same loop as a method."""

from headstart.contracts import Task
from headstart.tasks.classification import Classifier
from headstart.tasks.detection import Detector
from headstart.tasks.segmentation import Segmenter

TASKS: dict[str, type[Task]] = {
    "classify": Classifier,
    "segment": Segmenter,
    "detect": Detector,
}
