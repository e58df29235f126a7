"""What a backbone does for its user: a head on its features, trained by the same loop as a method."""

from headstart.contracts import Objective
from headstart.tasks.classification import Classifier

TASKS: dict[str, type[Objective]] = {
    "classify": Classifier,
}
