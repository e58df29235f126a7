"""MAE: from a quarter of an image's patches a transformer paints the others.

He, Chen, Xie, Li, Dollár, Girshick: Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv:2111.06377.
"""

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from headstart.contracts import Backbone, Batch, Method, Planned, Recipe, Recipes, TokenBackbone
from headstart.errors import UserError
from headstart.losses.masked import masked_patches
from headstart.settings import Positive, Share


class Decoder(nn.Module):
    """A small transformer from the tokens of some patches to the pixels of all (section 3 of the paper)."""

    positions: Tensor

    def __init__(self, backbone: TokenBackbone, *, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(backbone.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", build_sincos2d_pos_embed(list(backbone.grid), dim), persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.pixels = nn.Linear(dim, 3 * backbone.patch_size**2)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """Return pixels ``[b n p]`` of all patches, given the tokens ``[b k d]`` of those that were kept."""
        shown = self.embed(tokens)
        every = self.mask_token.to(shown.dtype).repeat(len(shown), len(self.positions), 1)
        every = every.scatter(1, keep[:, :, None].expand(-1, -1, shown.shape[2]), shown)
        pixels: Tensor = self.pixels(self.norm(self.blocks(every + self.positions.to(shown.dtype))))
        return pixels


def patches_of(images: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Return the pixels of square patches, row by row from the upper left: ``[b n side·side·c]``.

    Images that the patches do not divide are padded with zeros below and on the right, as timm does.
    """
    (rows, columns), (height, width) = grid, images.shape[2:]
    whole = F.pad(images, (0, columns * side - width, 0, rows * side - height))
    cut = whole.view(*whole.shape[:2], rows, side, columns, side)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


@final
class MAE(Method):
    """MAE with the paper's decoder; needs a vision transformer of timm."""

    paper = "He et al. 2022, arXiv:2111.06377"
    views = ("mae",)
    needs = ("vit",)
    # app. A.1: adamw with betas 0.9 and 0.95, 1.5e-4 at batch 256, weight decay 0.05, 40 of 800 epochs to warm up
    recipes = Recipes(
        natural=Recipe(800, 256, "adamw", 1.5e-4, weight_decay=0.05, warmup=0.05, betas=(0.9, 0.95)),
        small_images=Recipe(
            800,
            256,
            "adamw",
            6e-4,
            weight_decay=0.05,
            warmup=0.05,
            betas=(0.9, 0.95),
            method_args={"decoder_dim": 192, "decoder_depth": 4, "decoder_heads": 3},
        ),
        small_data={"epochs": 2000, "batch_size": 128},
    )
    remedy = "a lower learning rate or a higher method_args.masked"

    def __init__(
        self,
        backbone: Backbone,
        *,
        masked: Share = 0.75,
        normalise: bool = True,
        decoder_dim: Positive = 512,
        decoder_depth: Positive = 8,
        decoder_heads: Positive = 16,
    ) -> None:
        super().__init__(backbone)
        assert isinstance(backbone, TokenBackbone)
        self.grid, self.patch_size = backbone.grid, backbone.patch_size
        self.patches = self.grid[0] * self.grid[1]
        self.kept = max(1, round(self.patches * (1 - masked)))
        if self.kept >= self.patches:
            raise UserError(
                f"method_args.masked: {masked} of {self.patches} patches is none"
                " (allowed: up to 1, and images of two patches or more)"
            )
        self.normalise = normalise
        self.projector = Decoder(backbone, dim=decoder_dim, depth=decoder_depth, heads=decoder_heads)

    @classmethod
    def planned(cls, arguments: dict[str, Any], plan: Planned) -> dict[str, Any]:
        """Return the hyper-parameters as they are; raise a UserError when the heads cannot share their width."""
        dim, heads = arguments["decoder_dim"], arguments["decoder_heads"]
        unit = math.lcm(4, heads)  # positions are four equal parts: sine and cosine of rows and columns
        if dim % unit:
            raise UserError(
                f"method_args.decoder_dim: {dim} cannot be shared by {heads} heads (allowed: multiples of {unit})"
            )
        return arguments

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error over the pixels of masked patches (section 3 of the paper)."""
        (images,) = batch.views
        assert isinstance(self.backbone, TokenBackbone)
        order = torch.rand(len(images), self.patches, device=images.device).argsort(dim=1)
        keep = order[:, : self.kept]
        masked = torch.ones_like(order, dtype=torch.bool).scatter(1, keep, False)
        predictions = self.projector(self.backbone.tokens(images, keep), keep)
        patches = patches_of(images, self.grid, self.patch_size)
        return {"loss": masked_patches(predictions, patches, masked, normalise=self.normalise)}

    def embed(self, images: Tensor) -> Tensor:
        """Return the features ``[b d]``: there is no other space in which images are compared."""
        features: Tensor = self.backbone(images)
        return features
