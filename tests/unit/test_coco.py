import json

import numpy as np
import pytest

from headstart.data.coco import open_coco
from headstart.data.index import NO_LABEL
from headstart.data.options import Options
from headstart.errors import UserError

STRICT, LOOSE = Options(max_bad=0), Options(max_bad=1)


@pytest.fixture
def make(tmp_path, save_image):
    """Return a function that writes two images of 40x20 pixels and the JSON file of their annotations."""

    def write(annotations=(), *, file="instances.json", folder="", **other):
        for number, name in enumerate(("b.png", "a.png")):
            save_image(tmp_path / folder / name, size=(40, 20), seed=number)
        known = {
            "images": [{"id": 7, "file_name": "b.png", "width": 40, "height": 20}, {"id": 3, "file_name": "a.png"}],
            "annotations": [{"id": n, **annotation} for n, annotation in enumerate(annotations, 1)],
            "categories": [{"id": 90, "name": "bus"}, {"id": 2, "name": "car"}],
            **other,
        }
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known))
        return path

    return write


def annotation(image=7, category=2, bbox=(1, 2, 3, 4), **more):
    return {"image_id": image, "category_id": category, "bbox": list(bbox), **more}


def test_boxes_are_those_that_pycocotools_reads(make, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    generator = np.random.default_rng(0)
    annotations = [
        annotation(int(generator.choice([3, 7])), int(generator.choice([2, 90])),
                   [*generator.uniform(0, 10, 2).round(2), *generator.uniform(1, 10, 2).round(2)],
                   iscrowd=int(number % 5 == 0), area=1)
        for number in range(40)
    ]  # fmt: skip
    path = make(annotations)
    data = open_coco(path, STRICT)
    reference = coco.COCO(str(path))
    names = {category["id"]: category["name"] for category in reference.loadCats(reference.getCatIds())}
    expected = []
    for image in sorted(reference.loadImgs(reference.getImgIds()), key=lambda image: image["file_name"]):
        for found in reference.loadAnns(reference.getAnnIds(imgIds=image["id"], iscrowd=False)):
            left, top, width, height = found["bbox"]
            expected.append((image["file_name"], names[found["category_id"]], left, top, left + width, top + height))
    columns = data.objects.to_pylist()
    paths = data.paths.to_pylist()
    assert [(paths[row["image"]], data.classes[row["label"]]) for row in columns] == [row[:2] for row in expected]
    found = [[row[side] for side in ("left", "top", "right", "bottom")] for row in columns]
    np.testing.assert_allclose(found, [row[2:] for row in expected], rtol=1e-5)
    assert len(expected) == 32
    assert data.layout == "COCO boxes of instances.json, without 8 crowds"


def test_classes_are_categories_in_the_order_of_their_numbers(make):
    data = open_coco(make([annotation(category=90), annotation(category=2)]), STRICT)
    assert data.classes == ("car", "bus")
    assert data.objects["label"].to_pylist() == [1, 0]
    assert (data.labels == NO_LABEL).all()
    assert data.splits.tolist() == [-1, -1]
    assert data.count == 2  # one of them without objects


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("instances.json", ""),
        ("instances.json", "images"),
        ("annotations/instances.json", "images"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_mine.json", "images/mine"),
        ("annotations/mine.json", "mine"),
        ("annotations/instances.json", ""),
    ],
)
def test_images_are_found_where_people_put_them(make, tmp_path, file, folder):
    data = open_coco(make([annotation()], file=file, folder=folder), STRICT)
    assert data.root.resolve() == (tmp_path / folder).resolve()
    assert data.paths.to_pylist() == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (annotation(image=99), "of image 99, which is not among the images"),
        (annotation(category=1), "of category 1 (allowed: 2, 90)"),
        (annotation(bbox=[1, 2, 3]), "no bbox of four numbers: left, top, width, height"),
        (annotation(bbox=[1, 2, 3, None]), "no bbox of four numbers: left, top, width, height"),
        (annotation(bbox=[1, 2, -3, 4]), "a box of negative size"),
        (annotation(bbox=[1, 2, 0, 4]), "an empty box"),
        (annotation(bbox=[-5, 2, 10, 4]), "a box that sticks out of the image by 5 px; it is 40 wide and 20 high"),
        (annotation(bbox=[45, 2, 10, 4]), "a box outside of the image, which is 40 wide and 20 high"),
    ],
)
def test_a_bad_annotation_is_named_and_left_out_or_stops(make, wrong, reason):
    path = make([annotation(), wrong])
    data = open_coco(path, LOOSE)
    assert [(bad.path, bad.reason) for bad in data.bad] == [("instances.json: annotation 2", reason)]
    assert data.objects.num_rows == 1
    with pytest.raises(UserError) as error:
        open_coco(path, STRICT)
    assert str(error.value) == (
        f"data: 1 of 2 annotations in {path.parent} are broken (allowed: 0%): instances.json: annotation 2 ({reason})"
    )


def test_missing_images_are_listed_and_their_annotations_go_with_them(make, tmp_path):
    path = make([annotation(7), annotation(3)])
    (tmp_path / "b.png").unlink()
    data = open_coco(path, LOOSE)
    assert [(bad.path, bad.reason) for bad in data.bad] == [("b.png", "the file is gone")]
    assert data.objects["image"].to_pylist() == [0]
    with pytest.raises(UserError, match=r"1 of 2 images in .* are broken \(allowed: 0%\): b.png \(the file is gone\)"):
        open_coco(path, STRICT)


def test_an_image_of_another_size_than_it_is_said_to_have_is_left_out(make):
    images = [{"id": 7, "file_name": "b.png", "width": 80, "height": 40}, {"id": 3, "file_name": "a.png"}]
    data = open_coco(make([annotation(7), annotation(3)], images=images), LOOSE)
    assert [(bad.path, bad.reason) for bad in data.bad] == [
        ("instances.json: image 7", "said to be 80 wide and 40 high, but b.png is 40 wide and 20 high")
    ]
    assert data.paths.to_pylist() == ["a.png"]


@pytest.mark.parametrize("name", ["../b.png", "/etc/passwd.png", "x/../../b.png"])
def test_a_file_name_that_leads_out_is_refused(make, name):
    images = [{"id": 3, "file_name": "a.png"}, {"id": 7, "file_name": name}]
    path = make(images=images)
    with pytest.raises(UserError) as error:
        open_coco(path, LOOSE)
    assert str(error.value) == (
        f"data: instances.json: image 7: the path {name} leads out of the data folder"
        f" (allowed: files inside of {path.parent})"
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"categories": None}, " has no list of categories (allowed: a COCO file of images, annotations, categories)"),
        ({"images": [{"id": 1}]}, ": images[0] has no file_name (allowed: id, file_name)"),
        ({"categories": [{"id": 1}]}, ": categories[0] has no name (allowed: id, name)"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
         ": two of the categories have one id (allowed: an id for each)"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]},
         ": two categories have one name (allowed: a name for each)"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_refused_in_one_line(make, other, message):
    path = make(**other)
    with pytest.raises(UserError) as error:
        open_coco(path, STRICT)
    assert str(error.value) == f"data: {path}{message}"


def test_images_that_are_nowhere_and_broken_json_are_one_line(make, tmp_path):
    path = make(images=[{"id": 1, "file_name": "no.png"}])
    with pytest.raises(UserError, match=r"^data: the images of .*instances.json are not there, such as no.png"):
        open_coco(path, STRICT)
    path.write_text('{"images": [}')
    with pytest.raises(UserError, match=r"cannot be read as JSON: Expecting value: line 1 column 13"):
        open_coco(path, STRICT)


def test_numbers_that_no_float_holds_are_no_box(make):
    data = open_coco(make([annotation(bbox=(1, 2, 10**400, 4)), annotation(bbox=(1, 2, 3, 4))]), LOOSE)
    assert data.objects.num_rows == 1
    assert "annotation 1" in data.bad[0].path


def test_a_size_that_is_a_text_is_not_compared(make):
    images = [{"id": 7, "file_name": "b.png", "width": "40", "height": "20"}]
    assert open_coco(make([annotation()], images=images), STRICT).count == 1


def test_a_name_that_is_no_unicode_ends_with_one_line(make):
    with pytest.raises(UserError, match=r"instances.json: the category \\ud800 is no text"):
        open_coco(make([], categories=[{"id": 2, "name": "\ud800"}]), STRICT)


def test_a_path_through_a_link_that_leads_out_is_refused(make, tmp_path, save_image):
    save_image(tmp_path / "outside" / "c.png", size=(40, 20))
    path = make(
        folder="data",
        file="data/instances.json",
        images=[{"id": 7, "file_name": "link/c.png"}, {"id": 1, "file_name": "b.png"}],
    )
    (tmp_path / "data" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=r"image 7: the path link/c.png leads out of the data folder"):
        open_coco(path, STRICT)
