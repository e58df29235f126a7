"""A query of MoCo or DenseCL cannot tell its own key from what it should not know.

Neither by meeting a key of its own step among the negatives (lightly, issue 564), nor by batch statistics that only its
own key shares (MoCo, arXiv:1911.05722, section 3.3).
"""

import pytest
import torch
from torch.nn.functional import normalize

from headstart.methods import densecl, moco

COUNT, SPLITS = 16, 4
MODULES = {"moco": (moco, "info_nce"), "densecl": (densecl, "info_nce"), "densecl-dense": (densecl, "dense_info_nce")}


@pytest.fixture
def compare(monkeypatch, make_batch):
    """Return a function that gives what each call of a method's loss compares: queries, keys and negatives."""

    def run(method, name, batch, *, seed=0):
        module, loss = MODULES[name]
        seen, original = [], getattr(module, loss)

        def spy(queries, keys, negatives, **named):
            seen.append((queries.detach(), keys.detach(), negatives.clone()))
            return original(queries, keys, negatives, **named)

        torch.manual_seed(seed)
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(module, loss, spy)
            method.losses(batch)
        return seen

    return run


def changed(before, after):
    """Return which images' embeddings are not the same any more, bool ``[b]``."""
    return (before != after).flatten(1).any(dim=1)


def perturbed(batch, view, image):
    """Return the batch with a little noise on one view of one image."""
    views = [each.clone() for each in batch.views]
    views[view][image] += 0.1 * torch.randn_like(views[view][image])
    return batch._replace(views=tuple(views))


def seen_by(method, name, batch, compare, *, view, seed=0):
    """Return which queries (view 0) or keys (view 1) change with which image, bool ``[b images]``."""
    (before,) = compare(method, name, batch, seed=seed)
    columns = []
    for image in range(COUNT):
        (after,) = compare(method, name, perturbed(batch, view, image), seed=seed)
        if name != "densecl-dense":  # where a query chooses the place that its key is of
            assert not changed(before[1 - view], after[1 - view]).any()
        columns.append(changed(before[view], after[view]))
    return torch.stack(columns, dim=1)


def pieces_of_keys(method, batch, *, seed):
    """Return with which images each image's key is normalised, bool ``[b images]``, as the network is given them."""
    pieces, images = [], batch.views[1].flatten(1)

    def spy(_, arguments):
        given = arguments[0].flatten(1)
        pieces.append((given[:, None] == images).all(dim=2).nonzero()[:, 1])

    # embed_target and features, not the module, are what is called: so the first layer tells
    hook = method.teacher_backbone.net.conv1.register_forward_pre_hook(spy)
    torch.manual_seed(seed)
    with torch.no_grad():
        method.losses(batch)
    hook.remove()
    together = torch.zeros(COUNT, COUNT, dtype=torch.bool)
    for piece in pieces:
        together[piece[:, None], piece] = True
    return together


@pytest.mark.parametrize(
    ("name", "queue", "arguments"),
    [
        ("moco", "queue", {"symmetric": False}),
        ("moco", "queue", {"symmetric": True}),
        ("densecl", "queue", {}),
        ("densecl-dense", "dense_queue", {}),
    ],
)
def test_no_query_meets_a_key_of_its_own_step(name, queue, arguments, compare, make_method, make_batch):
    method = make_method(name.removesuffix("-dense"), queue=40, **arguments).double().train()
    entries = getattr(method, queue).entries
    fresh = torch.empty(0, entries.shape[1], dtype=torch.float64)
    for step in range(4):  # 16 or 32 keys each, so that the queue begins anew
        before = entries.clone()
        seen = compare(method, name, make_batch(method, seed=step, dtype=torch.float64), seed=step)
        assert len(seen) == (2 if arguments.get("symmetric") else 1)
        method.after_step((step + 1) / 4)
        earlier, fresh = fresh, entries[~near(entries, before).any(dim=1)]
        assert len(fresh) == COUNT * len(seen)
        for _, keys, negatives in seen:
            assert torch.equal(negatives, before)
            assert not near(negatives, fresh).any()
            # what makes this able to fail: keys of the step before are there, and those of this step come
            assert near(negatives, earlier).any(dim=0).all()
            if name != "densecl-dense":  # which puts the mean over an image's places into the queue
                assert near(fresh, normalize(keys, dim=1)).any(dim=0).all()


def near(ones, others):
    """Return which are the same, bool ``[ones others]``."""
    return (ones[:, None] - others).norm(dim=2) < 1e-9


@pytest.mark.parametrize("name", MODULES)
def test_a_query_changes_with_the_images_of_its_piece_only(name, compare, make_method, make_batch):
    method = make_method(name.removesuffix("-dense"), splits=SPLITS, **one_way(name)).double().train()
    batch = make_batch(method, dtype=torch.float64)
    pieces = torch.arange(COUNT) * SPLITS // COUNT
    assert torch.equal(seen_by(method, name, batch, compare, view=0), pieces[:, None] == pieces)


@pytest.mark.parametrize("name", ["moco", "densecl"])
def test_a_key_changes_with_the_images_of_a_piece_of_its_own(name, compare, make_method, make_batch):
    method = make_method(name, splits=SPLITS, **one_way(name)).double().train()
    batch = make_batch(method, dtype=torch.float64)
    found = seen_by(method, name, batch, compare, view=1, seed=5)
    assert torch.equal(found, pieces_of_keys(method, batch, seed=5))
    assert torch.equal(found, found.T)
    assert (found.sum(dim=1) == COUNT // SPLITS).all()
    assert not torch.equal(found, seen_by(method, name, batch, compare, view=0, seed=5))


def one_way(name):
    return {"symmetric": False} if name == "moco" else {}


@pytest.mark.parametrize("name", ["moco", "densecl"])
def test_the_piece_of_a_query_says_nothing_about_that_of_its_key(name, make_method, make_batch):
    method = make_method(name, size=8, splits=SPLITS, **one_way(name)).train()
    batch, draws = make_batch(method, size=8), 60
    together = torch.stack([pieces_of_keys(method, batch, seed=seed) for seed in range(draws)])
    pieces = torch.arange(COUNT) * SPLITS // COUNT
    others, own = ~torch.eye(COUNT, dtype=torch.bool), pieces[:, None] == pieces
    expected = (COUNT / SPLITS - 1) / (COUNT - 1)  # that a key is normalised with another image
    # 24 pairs of images share a piece as queries, 96 do not; four standard errors of the fewer
    bound = 4 * (expected * (1 - expected) / (24 * draws)) ** 0.5
    for pairs in (own & others, ~own):
        assert float(together[:, pairs].double().mean()) == pytest.approx(expected, abs=bound)
    alike = float((together == own).all(dim=2).double().mean())
    assert alike < 0.02  # 1 in 455 by chance


@pytest.mark.parametrize("name", ["moco", "densecl"])
def test_without_pieces_every_key_shares_the_statistics_of_its_query(name, make_method, make_batch):
    # What the tests above measure, where it has to be there: so they would see a leak
    method = make_method(name, splits=1, **one_way(name)).train()
    batch = make_batch(method)
    assert all(pieces_of_keys(method, batch, seed=seed).all() for seed in range(5))


@pytest.mark.parametrize("name", MODULES)
def test_pieces_are_what_separate_networks_see(name, compare, make_method, make_batch):
    kind = name.removesuffix("-dense")
    method = make_method(kind, splits=SPLITS, **one_way(name)).double().train()
    batch = make_batch(method, dtype=torch.float64)
    ((queries, keys, _),) = compare(method, name, batch, seed=3)
    order = pieces_of_keys(method, batch, seed=3)
    for piece in torch.arange(COUNT).tensor_split(SPLITS):
        torch.testing.assert_close(queries[piece], embedded(method, name, batch.views[0][piece], teacher=False))
    if name != "densecl-dense":
        for row in order.unique(dim=0):
            torch.testing.assert_close(keys[row], embedded(method, name, batch.views[1][row], teacher=True))
    alone = make_method(kind, splits=1, **one_way(name)).double().train()
    ((whole, _, _),) = compare(alone, name, batch)
    torch.testing.assert_close(whole, embedded(alone, name, batch.views[0], teacher=False))
    assert (whole - queries).abs().max() > 1e-3


@torch.no_grad()
def embedded(method, name, images, *, teacher):
    prefix = "teacher_" if teacher else ""
    backbone = getattr(method, f"{prefix}backbone")
    if name == "densecl-dense":
        return getattr(method, f"{prefix}dense_projector")(backbone.features(images).maps[-1]).flatten(2)
    return getattr(method, f"{prefix}projector")(backbone(images))
