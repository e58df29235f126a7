from xml.etree import ElementTree

import pytest

from headstart.data.index import NO_SPLIT, TEST, TRAIN, UNLABELLED, VAL
from headstart.data.options import Options
from headstart.data.voc import is_voc, open_voc, parse
from headstart.errors import UserError

STRICT, LOOSE = Options(max_bad=0), Options(max_bad=1)
CAR = ("car", 1, 1, 10, 12)


def xml(*objects, size=(40, 20)):
    lines = ["<annotation>", "<filename>../../etc/passwd</filename>"]
    if size:
        lines.append(f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>")
    for name, *corners in objects:
        bounds = "".join(
            f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
        )
        part = "<part><name>wheel</name><bndbox><xmin>2</xmin></bndbox></part>"
        lines.append(f"<object><name>{name}</name>{part}<bndbox>{bounds}</bndbox></object>")
    return "\n".join([*lines, "</annotation>"])


@pytest.fixture
def make(tmp_path, save_image):
    """Return a function that writes a VOC folder: XML by the image's name, and the lists of splits."""

    def write(files, *, images="JPEGImages", annotations="Annotations", **lists):
        for name, text in files.items():
            save_image(tmp_path / images / f"{name}.png", size=(40, 20))
            if text is not None:
                (tmp_path / annotations / f"{name}.xml").parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / annotations / f"{name}.xml").write_text(text)
        for name, lines in lists.items():
            (tmp_path / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(lines))
        return tmp_path

    return write


def boxes(data):
    paths = data.paths.to_pylist()
    sides = ("left", "top", "right", "bottom")
    return [
        (paths[row["image"]].rpartition("/")[2], data.classes[row["label"]], *(row[side] for side in sides))
        for row in data.objects.to_pylist()
    ]


def test_boxes_are_those_that_elementtree_finds(make):
    root = make({"a": xml(CAR, ("bus", 5.5, 6, 40, 20)), "b": xml(("bus", 2, 3, 4, 5)), "c": xml()})
    data = open_voc(root, STRICT)
    expected = []
    for file in sorted((root / "Annotations").glob("*.xml")):
        for found in ElementTree.parse(file).getroot().findall("object"):
            corners = [float(found.find(f"bndbox/{tag}").text) for tag in ("xmin", "ymin", "xmax", "ymax")]
            first = (corners[0] - 1, corners[1] - 1)  # the first pixel is 1
            expected.append((f"{file.stem}.png", found.find("name").text, *first, *corners[2:]))
    assert boxes(data) == expected
    assert data.classes == ("bus", "car")
    assert data.count == 3
    assert data.splits.tolist() == [NO_SPLIT] * 3


@pytest.mark.parametrize(
    ("images", "annotations"),
    [("JPEGImages", "Annotations"), ("images", "annotations"), ("", "Annotations"), ("", ""), ("train", "train")],
)
def test_it_is_known_by_its_files_wherever_they_lie(make, images, annotations):
    root = make({"a": xml(CAR)}, images=images, annotations=annotations)
    assert is_voc(root)
    assert boxes(open_voc(root, STRICT)) == [("a.png", "car", 0, 0, 10, 12)]


def test_other_folders_are_not_taken_for_it(tmp_path, save_image):
    save_image(tmp_path / "cat" / "a.png")
    assert not is_voc(tmp_path)
    (tmp_path / "settings.xml").write_text("<settings/>")
    assert not is_voc(tmp_path)


def test_splits_come_from_the_lists(make):
    names = ["a", "b", "c", "d", "e"]
    root = make({name: xml(CAR) for name in names}, train=["a"], val=["b"], trainval=["a", "b", "e"], test=["c", ""])
    assert open_voc(root, STRICT).splits.tolist() == [TRAIN, VAL, TEST, UNLABELLED, TRAIN]


def test_splits_come_from_folders_where_files_lie_together(make):
    names = ["train/a", "valid/b", "test/c"]
    data = open_voc(make({name: xml(CAR) for name in names}, images="", annotations=""), STRICT)
    assert dict(zip(data.paths.to_pylist(), data.splits.tolist(), strict=True)) == {
        "train/a.png": TRAIN, "valid/b.png": VAL, "test/c.png": TEST}  # fmt: skip
    assert data.ignored == 0


def test_images_without_an_annotation_are_unlabelled_and_no_background(make):
    data = open_voc(make({"a": xml(CAR), "b": None}, train=["a", "b"]), STRICT)
    assert data.splits.tolist() == [TRAIN, UNLABELLED]
    assert data.layout == "VOC boxes of XML files, 1 images without one"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (("car", 10, 1, 5, 12), "a box of negative size"),
        (("car", -9, 1, 10, 12), "a box that sticks out of the image by 10 px; it is 40 wide and 20 high"),
        (("car", 60, 1, 70, 12), "a box outside of the image, which is 40 wide and 20 high"),
        (("car", 1, 1, 10), "an object without ymax"),
        (("", 1, 1, 10, 12), "an object without name"),
        (("car", 1, 1, "ten", 12), "could not convert string to float: 'ten'"),
    ],
)
def test_a_bad_object_is_named_with_its_line_and_left_out_or_stops(make, wrong, reason):
    root = make({"a": xml(CAR, wrong)})
    data = open_voc(root, LOOSE)
    assert [(bad.path, bad.reason) for bad in data.bad] == [("Annotations/a.xml:5", reason)]
    assert data.objects.num_rows == 1
    with pytest.raises(UserError) as error:
        open_voc(root, STRICT)
    assert str(error.value) == (
        f"data: 1 of 2 annotations in {root} are broken (allowed: 0%): Annotations/a.xml:5 ({reason})"
    )


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ("<annotation>\n<object>\n</annotation>", "Annotations/b.xml:3", "not XML: mismatched tag"),
        ("", "Annotations/b.xml:1", "not XML: no element found"),
        ("<html></html>", "Annotations/b.xml", "not a VOC annotation, but <html>"),
        ('<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>', "Annotations/b.xml",
         "a document type, which is refused"),
        (xml(CAR, size=(80, 40)), "Annotations/b.xml",
         "said to be 80 wide and 40 high, but the image is 40 wide and 20 high"),
    ],
)  # fmt: skip
def test_a_bad_file_leaves_its_image_out(make, text, path, reason):
    data = open_voc(make({"a": xml(CAR), "b": text}), LOOSE)
    assert [(bad.path, bad.reason) for bad in data.bad] == [(path, reason)]
    assert data.paths.to_pylist() == ["JPEGImages/a.png"]


def test_files_of_the_system_are_not_read():
    with pytest.raises(ValueError, match="a document type"):
        parse(b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>')


def test_sizes_that_are_not_written_are_not_checked(make):
    assert open_voc(make({"a": xml(CAR, size=None), "b": xml(CAR, size=(0, 0))}), STRICT).objects.num_rows == 2


def test_lists_are_checked(make):
    root = make({"a": xml(CAR), "b": xml(CAR)}, train=["a", "gone"])
    data = open_voc(root, LOOSE)
    assert [(bad.path, bad.reason) for bad in data.bad] == [("ImageSets/Main/train.txt:2", "there is no image gone")]
    make({}, train=["a"], test=["b", "a"])
    with pytest.raises(UserError) as error:
        open_voc(root, LOOSE)
    lists = root / "ImageSets" / "Main"
    assert str(error.value) == f"data: {lists}/test.txt:2: a is also in train.txt (allowed: one split)"
    make({}, train=["a"], test=["../../secret"])
    with pytest.raises(UserError) as error:
        open_voc(root, LOOSE)
    assert str(error.value) == (
        "data: ImageSets/Main/test.txt:1: the path ../../secret leads out of the data folder"
        f" (allowed: files inside of {root})"
    )
