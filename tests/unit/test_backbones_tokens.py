"""Tokens of a part of an image's patches: the library's own where all are kept, and blind to what is left out."""

from functools import cache

import pytest
import torch

from headstart.backbones import build, has_tokens
from headstart.contracts import TokenBackbone
from headstart.errors import UserError

NARROW = {"depth": 2, "embed_dim": 32, "num_heads": 2}
# what timm's vision transformers differ in: additional tokens, positions, normalisation, pooling and blocks
KINDS = {
    "class token": ("test_vit", NARROW),
    "deit": ("deit_tiny_patch16_224", NARROW),
    "distillation token": ("deit_tiny_distilled_patch16_224", NARROW),
    "positions without class token": ("deit3_small_patch16_224", NARROW),
    "dinov2": ("vit_small_patch14_dinov2", NARROW),
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", NARROW),
    "average of patches": ("vit_medium_patch16_gap_240", NARROW),
    "registers without class token": ("vit_wee_patch16_reg1_gap_256", NARROW),
    "attention pooling": ("vit_base_patch16_siglip_224", NARROW),
    "normalisation in front": ("vit_base_patch32_clip_224", NARROW),
    "no positions": ("test_vit", {**NARROW, "pos_embed": "none"}),
    "normalisation behind": ("vit_base_patch16_rpn_224", NARROW),
    "parallel blocks": ("vit_base_patch16_xp_224", NARROW),
}


@cache
def built(kind: str, size: int) -> TokenBackbone:
    torch.manual_seed(0)
    name, model_args = KINDS[kind]
    backbone = build(f"timm/{name}", image_size=size, model_args=model_args).eval()
    with torch.no_grad():  # positions and additional tokens start so small that one would not miss them
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return backbone


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size))


def some(backbone: TokenBackbone, count: int, images: int = 2) -> torch.Tensor:
    """Numbers of patches in any order, other ones for each image."""
    patches = backbone.grid[0] * backbone.grid[1]
    generator = torch.Generator().manual_seed(count)
    return torch.stack([torch.randperm(patches, generator=generator)[:count] for _ in range(images)])


def library_tokens(backbone: TokenBackbone, views: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
    return backbone.net.forward_features(views, **named)[:, backbone.net.num_prefix_tokens :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [45, 96], ids=["small and padded", "standard"])
@torch.no_grad()
def test_tokens_of_all_patches_are_the_library_own(kind, size):
    backbone = built(kind, size)
    expected = library_tokens(backbone, images(size))
    everything = torch.arange(expected.shape[1]).expand(2, -1)
    assert expected.shape[1] == backbone.grid[0] * backbone.grid[1]
    torch.testing.assert_close(backbone.tokens(images(size), everything), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_come_in_the_order_of_keep(kind):
    backbone = built(kind, 32)
    shuffled = some(backbone, backbone.grid[0] * backbone.grid[1])
    expected = library_tokens(backbone, images(32)).take_along_dim(shuffled[:, :, None], 1)
    torch.testing.assert_close(backbone.tokens(images(32), shuffled), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("normalisation behind", "parallel blocks")])
@torch.no_grad()
def test_tokens_of_a_part_are_those_of_attention_that_is_masked(kind):
    backbone = built(kind, 32)
    keep = some(backbone, 5)
    extra, patches = backbone.net.num_prefix_tokens, backbone.grid[0] * backbone.grid[1]
    seen = torch.zeros(2, extra + patches, dtype=torch.bool)
    seen[:, :extra] = True
    seen.scatter_(1, keep + extra, True)
    mask = torch.zeros(2, 1, 1, extra + patches).masked_fill(~seen[:, None, None], -torch.inf)
    everything = library_tokens(backbone, images(32), attn_mask=mask.expand(-1, -1, extra + patches, -1))
    expected = everything.take_along_dim(keep[:, :, None], 1)
    torch.testing.assert_close(backbone.tokens(images(32), keep), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(library_tokens(backbone, images(32)).take_along_dim(keep[:, :, None], 1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_kept_patches_and_no_others(kind):
    backbone = built(kind, 32)
    keep = some(backbone, 3)
    views = images(32).requires_grad_()
    backbone.zero_grad()
    backbone.tokens(views, keep).square().sum().backward()
    side, (rows, columns) = backbone.patch_size, backbone.grid
    # DINOv2's patches of 3 pixels do not divide 32: the last ones hang over the edge
    padded = torch.nn.functional.pad(views.grad.abs().sum(1), (0, columns * side - 32, 0, rows * side - 32))
    touched = padded.unflatten(2, (columns, side)).unflatten(1, (rows, side)).sum((2, 4)).flatten(1) > 0
    assert [row.nonzero().flatten().tolist() for row in touched] == keep.sort(1).values.tolist()
    unreached = {name.split(".")[0] for name, weight in backbone.net.named_parameters() if weight.grad is None}
    assert unreached <= {"fc_norm", "attn_pool"}  # pooling alone has them


def test_attributes_are_those_of_the_stem():
    small, standard = built("class token", 32), built("class token", 96)
    assert (small.patch_size, small.grid) == (4, (8, 8))
    assert (standard.patch_size, standard.grid) == (16, (6, 6))
    assert (built("class token", 45).patch_size, built("class token", 45).grid) == (4, (12, 12))


@pytest.mark.parametrize(
    ("model", "model_args"),
    [
        ("torchvision/resnet18", {}),
        ("timm/test_resnet", {}),
        ("timm/test_vit", {"patch_drop_rate": 0.5}),  # drops patches of its own accord
        ("timm/test_vit", {"patch_size": (8, 4)}),
        ("timm/vit_tiny_r_s16_p8_224", {"depth": 1}),  # its convolutions look beyond a patch
        ("timm/eva02_tiny_patch14_224", {"depth": 1}),  # a class of its own
        ("timm/swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}),
    ],
)
def test_what_cannot_leave_patches_out_has_no_tokens(model, model_args):
    assert not has_tokens(model, model_args)
    assert not isinstance(build(model, stem="standard", image_size=224, model_args=model_args), TokenBackbone)


def test_asking_for_tokens_takes_neither_memory_nor_random_numbers():
    before = torch.get_rng_state()
    assert has_tokens("timm/vit_large_patch16_224")  # 1.2 GB of weights
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("model", "model_args", "message"),
    [
        ("timm/vit_tini_patch16_224", {}, "did you mean 'timm/vit_tiny_patch16_224'"),
        ("torchvision/resnet81", {}, "did you mean 'torchvision/resnet18'"),
        ("torchvision/vit_b_16", {}, "gives no feature maps here"),
        ("vit_tiny_patch16_224", {}, "^model: unknown 'vit_tiny_patch16_224'"),
        ("timm/test_vit", {"widht": 3}, "^model_args: timm/test_vit .*widht"),
        ("torchvision/resnet18", {"widht": 3}, "^model_args: torchvision/resnet18 .*widht"),
    ],
)
def test_unknown_models_and_arguments_are_refused_as_by_build(model, model_args, message):
    with pytest.raises(UserError, match=message) as asked:
        has_tokens(model, model_args)
    with pytest.raises(UserError) as building:
        build(model, image_size=32, model_args=model_args)
    assert str(asked.value) == str(building.value)
