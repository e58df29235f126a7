import pickle

import pytest
import torch

from headstart.data.sampling import Anchored, Balanced, EveryImage
from headstart.errors import UserError
from headstart.randomness import permutation

SIZES = (1, 2, 3, 7, 12, 40)  # images of each class; the names of the classes leave gaps
LABELS = torch.repeat_interleave(2 * torch.arange(len(SIZES)), torch.tensor(SIZES))
LABELS = LABELS[permutation(len(LABELS), 0)]
SEMI = torch.where(torch.arange(len(LABELS)) % 4 == 0, -1, LABELS)
EVEN = torch.arange(90) % 3

SAMPLERS = {
    "every": EveryImage(65, 12, 3),
    "balanced": Balanced(LABELS, 12, 3),
    "balanced-semi": Balanced(SEMI, 12, 3, pieces=2),
    "anchored": Anchored(LABELS, 12, 3, anchors=1, background=None),
    "anchored-background": Anchored(SEMI, 12, 3, anchors=2, background=10, pieces=2),
}


def draws(sampler, steps):
    return torch.cat([sampler(step) for step in range(steps)])


def counts(labels):
    return torch.unique(labels, return_counts=True)[1].tolist()


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_depend_on_the_step_and_seed_alone(name):
    sampler = SAMPLERS[name]
    copy = pickle.loads(pickle.dumps(sampler))
    alone = copy(7)
    steps = [sampler(step) for step in range(8)]
    assert torch.equal(alone, steps[7])
    assert torch.equal(copy(3), steps[3])
    assert not torch.equal(steps[3], steps[7])
    assert alone.dtype == torch.int64
    assert len(alone) == getattr(sampler, "images", sampler.batch_size)
    state = {**sampler.__dict__, "seed": 4}
    other = type(sampler)(**{key: value for key, value in state.items() if not key.startswith("_")})
    assert not torch.equal(torch.cat([other(step) for step in range(8)]), torch.cat(steps))


def test_every_image_is_a_cut_permutation():
    sampler = EveryImage(43, 8, 5)
    for epoch in range(3):
        order = permutation(43, 5, epoch)
        assert torch.equal(torch.cat([sampler(5 * epoch + batch) for batch in range(5)]), order[:40])


@pytest.mark.parametrize("batch_size", [12, 8, 7])
def test_balanced_sees_every_class_equally_often(batch_size):
    sampler = Balanced(LABELS, batch_size, 1)
    steps = 6 * len(LABELS)
    found = counts(LABELS[draws(sampler, steps)])
    assert len(found) == len(SIZES)
    assert max(found) - min(found) <= sampler.together
    for step in range(20):  # and each batch as nearly as it can
        batch = counts(torch.cat([LABELS[sampler(step)], torch.tensor([0, 2, 4, 6, 8, 10])]))
        assert max(batch) - min(batch) <= 2 * sampler.together


@pytest.mark.parametrize(("together", "batch_size"), [(2, 12), (1, 9), (3, 12)])
def test_balanced_shows_each_image_of_a_class_once_before_any_again(together, batch_size):
    drawn = draws(Balanced(LABELS, batch_size, 1, together=together), 300)
    for label, size in zip(LABELS.unique().tolist(), SIZES, strict=True):
        if size >= 2 * together - 1 or together % size == 0:
            own = drawn[LABELS[drawn] == label]
            whole = own[: len(own) // size * size].view(-1, size).sort(dim=1).values
            assert len(whole) > 5
            assert torch.equal(whole, LABELS.eq(label).nonzero().T.expand_as(whole))
    largest = drawn[LABELS[drawn] == 10][:80].view(2, 40)
    assert not torch.equal(largest[0], largest[1])


@pytest.mark.parametrize("together", [2, 3])
def test_slots_are_different_images_of_one_class(together):
    slots = draws(Balanced(LABELS, 12, 2, together=together), 500).view(-1, together)
    labels = LABELS[slots]
    assert (labels == labels[:, :1]).all()
    sizes = torch.tensor(SIZES)[labels[:, 0] // 2]
    different = torch.tensor([len(set(slot)) for slot in slots.tolist()])
    assert torch.equal(different, sizes.clamp(max=together))
    assert len(sizes.unique()) == len(SIZES)


def test_an_odd_batch_has_no_pairs():
    assert Balanced(LABELS, 7, 0).together == 1
    assert Balanced(LABELS, 12, 0, pieces=4).together == 1
    assert Balanced(LABELS, 12, 0, pieces=3).together == 2


@pytest.mark.parametrize(("every", "share"), [(4, 1 / 4), (10, 1 / 10), (1.25, 1 / 2)])
def test_unlabelled_images_get_their_share_but_at_most_half(every, share):
    bare = torch.arange(600) % 20 < 20 / every
    labels = torch.where(bare, -1, torch.arange(600) // 20 % 3)
    drawn = draws(Balanced(labels, 12, 0), 400)
    assert (labels[drawn] == -1).double().mean() == pytest.approx(share, abs=2 / 4800)
    found = counts(labels[drawn][labels[drawn] >= 0])
    assert max(found) - min(found) <= 2
    own = drawn[labels[drawn] == -1]
    size = int(bare.sum())
    assert sorted(own[:size].tolist()) == bare.nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_every_piece_is_anchors_before_background(pieces):
    sampler = Anchored(SEMI, 24, 0, anchors=2, background=10, pieces=pieces)
    assert sampler.images == 24 - 2 * pieces
    for step in range(50):
        labels = SEMI[sampler(step)].view(pieces, -1)
        assert labels.shape[1] == 24 // pieces - 2
        assert ((labels[:, :2] != 10) & (labels[:, :2] >= 0)).all()
        assert (labels[:, 2:] == 10).all()


def test_anchors_and_background_are_seen_once_before_any_again():
    sampler = Anchored(EVEN, 12, 0, anchors=2, background=1)
    steps = torch.stack([sampler(step) for step in range(30)])
    assert sorted(steps[:, :2].flatten().tolist()) == (EVEN != 1).nonzero().squeeze(1).tolist()
    background = steps[:, 2:].flatten()
    assert counts(background) == [8] * 30
    assert all(len(set(step)) == len(step) for step in steps.tolist())


def test_classes_take_turns_as_the_object():
    sampler = Anchored(EVEN, 12, 0, anchors=2, background=None, pieces=2)
    objects = []
    for step in range(60):
        positions = sampler(step)
        labels = EVEN[positions].view(2, 4)
        assert len(labels[:, :2].unique()) == 1
        assert (labels[:, 2:] != labels[0, 0]).all()
        assert len(set(positions.tolist())) == 8
        objects.append(int(labels[0, 0]))
    assert all(sorted(objects[turn : turn + 3]) == [0, 1, 2] for turn in range(0, 60, 3))
    assert len({tuple(objects[turn : turn + 3]) for turn in range(0, 60, 3)}) > 1
    background = draws(Anchored(EVEN, 12, 0, anchors=1, background=None), 900).view(-1, 11)[:, 1:].flatten()
    found = counts(background)
    assert len(found) == 90
    assert min(found) > 60  # of 100


def test_a_small_background_is_repeated():
    labels = torch.tensor([0] * 12 + [1] * 3)
    drawn = Anchored(labels, 10, 0, anchors=1, background=1)(0)
    assert counts(drawn[1:]) in ([2, 3, 3], [3, 2, 3], [3, 3, 2])
    assert set(drawn[1:].tolist()) == {12, 13, 14}


@pytest.mark.parametrize("sampler", [Balanced, lambda *given: Anchored(*given, 1, None)])
@pytest.mark.parametrize(
    ("labels", "batch_size", "message"),
    [
        (torch.full((9,), -1), 4, r"sampling: (balanced|anchored) needs labels, data has none \(allowed: "),
        (torch.zeros(9, dtype=torch.int64), 4, r"sampling: (balanced|anchored) needs several classes, data has 1 "),
        (EVEN, 91, r"batch_size: 91 is larger than the data \(90 images\) \(allowed: 1 to 90\)"),
        (EVEN, 0, r"batch_size: 0 is not positive"),
    ],
)
def test_data_that_cannot_be_sampled_are_refused(sampler, labels, batch_size, message):
    with pytest.raises(UserError, match=f"^{message}"):
        sampler(labels, batch_size, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 2}, r"batch_size: 2 is too small for supcon-anchor \(allowed: 3 or more\)"),
        ({"batch_size": 8, "anchors": 2, "pieces": 2}, r"batch_size: 8 is too small .*\(allowed: 10 or more\)"),
        ({"anchors": 0}, r"anchors: 0 of .*\(allowed: 1 to 30\)"),
        ({"anchors": 31}, r"anchors: 31 of 30 images of an object \(allowed: 1 to 30\)"),
        ({"background": 5}, r"background: unknown '5' \(allowed: 0, 1, 2\)"),
        ({"pieces": 7}, r"batch_size: 12 cannot be cut into 7 equal pieces.*\(allowed: multiples of 7\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    settings = {"batch_size": 12, "seed": 0, "anchors": 1, "background": None}
    with pytest.raises(UserError, match=f"^{message}"):
        Anchored(EVEN, **(settings | changes))
