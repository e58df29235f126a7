"""Views: what an augmentation is, and how it is applied to whole batches with parameters drawn per image."""

from headstart.views.augment import PRESETS, Augment, Blur, Jitter, Key, preset
from headstart.views.geometry import crop_boxes, crop_one, nearest_crops
from headstart.views.joint import finish_masks, render_masks, view_objects
from headstart.views.rendering import finish, render

__all__ = [
    "Augment",
    "Blur",
    "Jitter",
    "Key",
    "PRESETS",
    "preset",
    "render",
    "finish",
    "crop_boxes",
    "crop_one",
    "render_masks",
    "finish_masks",
    "nearest_crops",
    "view_objects",
]
