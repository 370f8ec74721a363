"""Damaged and hostile annotation files: one message about what is wrong, at little cost in memory and time."""

import contextlib
import json
import re
from random import Random

import pytest
from annotated_images import SPLITS, WRITERS, write_coco, write_voc, write_yolo
from limited_process import MEGABYTE, assert_refused, run_limited

from keras_resnet.data.sources import load_dataset, load_test

LOAD = "from keras_resnet.data.sources import load_test; load_test(args[0])"
XML, LABELS = "Annotations/four.xml", "labels/val/four.txt"
JSON = "annotations/instances_val2017.json"
TOKENS = b'null true NaN -1 0 1e999 99999999999999999999 {} [] "x" <!-- < > & / .. : , - \x00 \xff'.split(b" ")
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
SECRET = '<!ENTITY e SYSTEM "file:///etc/passwd">'
ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


def changed(folder, function):
    """Applies a function to the content of the validation file of COCO."""
    file = folder / JSON
    content = json.loads(file.read_text())
    function(content)
    file.write_text(json.dumps(content))
    return folder


def assert_left_out(folder, message, images, objects, split="val"):
    """Asserts that a fault has this message, and that with `skip_bad` so many images and objects remain."""
    with pytest.raises(ValueError, match=message) as raised:
        load_test(folder, split)
    assert "(--skip-bad)" in str(raised.value) and "1 invalid in" in str(raised.value)
    with pytest.warns(UserWarning, match=message):
        data = load_test(folder, split, skip_bad=True)
    assert (len(data.test), len(data.test.objects), len(data.skipped)) == (images, objects, 1)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"bbox": [1, 1, 0, 5]}, r"val2017.json, object 1 \(its box .* is empty"),
        ({"bbox": [1, 8, 5, -5]}, "is empty"),
        ({"bbox": [1, 1, 5]}, "x, y, width and height"),
        ({"bbox": [30, 1, 15, 5]}, r"its box .* is outside of the image of 40 x 30 pixels"),
        ({"bbox": [1e308, 1, 5, 5]}, "is outside"),
        ({"bbox": [float("nan"), 1, 5, 5]}, "a finite number"),
        ({"bbox": [10**400, 1, 5, 5]}, "a finite number"),
        ({"bbox": None}, "should be a list"),
        ({"category_id": 7}, "object 1 .*`category_id` should be the id of a category"),
        ({"category_id": "ant"}, "an integer"),
        ({"image_id": 99}, "object 1 .*`image_id` should be the id of an image"),
        ({"segmentation": [[1, 1, 2, 2]]}, "three points or more"),
        ({"segmentation": [[1, 1, 2, 2, 10**400, 3]]}, "object 1 .*inside the image of 40 x 30"),
        ({"segmentation": {"size": [30, 40], "counts": "o" * 1000}}, "object 1 .*lengths of runs of 1200 pixels"),
        (
            {"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}},
            r"the height and width of the image, \[30, 40\]",
        ),
    ],
)
def test_an_invalid_object_of_coco_is_left_out(tmp_path, fields, message):
    folder = changed(write_coco(tmp_path), lambda content: content["annotations"][0].update(fields))
    assert_left_out(folder, message, images=2, objects=2)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"file_name": "missing.png"}, "val2017/missing.png .No such file"),
        ({"file_name": "/etc/passwd"}, "a path inside the folder of the data set"),
        ({"file_name": "../../../etc/passwd"}, "a path inside the folder"),
        ({"file_name": "..\\..\\secret.png"}, "a path inside the folder"),
        ({"file_name": "a\0b"}, "a path inside the folder"),
        ({"file_name": "\ud800.png"}, "a path inside the folder"),
        ({"file_name": "a" * 5000}, "File name too long"),
        ({"height": 10**12}, r"four.png \(has 40 x 30 pixels, but 40 x 1000000000000 in annotations"),
        ({"file_name": 7}, "a string"),
    ],
)
def test_an_invalid_image_of_coco_is_left_out_with_its_objects(tmp_path, fields, message):
    folder = changed(write_coco(tmp_path), lambda content: content["images"][0].update(fields))
    if "folder" in message or message == "a string":  # the image is unknown to its object
        changed(folder, lambda content: content["annotations"].pop(0))
    assert_left_out(folder, message, images=1, objects=2)


def test_two_images_with_one_id(tmp_path):
    folder = changed(write_coco(tmp_path), lambda content: content["images"].append(content["images"][0]))
    assert_left_out(folder, "image 1 .*another one for each image", images=2, objects=3)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "Expected a JSON file of COCO .Expecting value"),
        ("{", "Expected a JSON file of COCO"),
        ("[]", "should be an object"),
        ('{"images": [], "categories": []}', r"an object with \['annotations'\]"),
        ('{"images": [], "annotations": [], "categories": []}', "objects of one class or more"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "valid images"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            "different ids and names",
        ),
        (f'{{"images": {"[" * 200}{"]" * 200}}}', "of at most 100 levels"),
    ],
)
def test_a_json_file_that_is_none_of_coco(tmp_path, text, message):
    folder = write_coco(tmp_path)
    (folder / JSON).write_text(text)
    (folder / "annotations/instances_train2017.json").unlink()  # no other file shows that the folder is COCO's
    with pytest.raises(ValueError, match=message):
        load_test(folder, skip_bad=True)


def test_runs_of_one_pixel_are_read(tmp_path):
    """The shortest values that a large file can have: "1,"."""
    runs = {"size": [30, 40], "counts": [1] * 1200}
    folder = changed(write_coco(tmp_path), lambda content: content["annotations"][0].update(segmentation=runs))
    changed(folder, lambda content: content.update(annotations=content["annotations"][:1] * 3000))
    file = folder / JSON
    file.write_text(file.read_text().replace(" ", ""))
    objects = load_test(folder).test.objects
    assert len(objects) == 3000 and set(objects.areas) == {600}


def test_splits_of_coco_have_the_same_classes(tmp_path):
    folder = changed(write_coco(tmp_path), lambda content: content["categories"].append({"id": 40, "name": "fly"}))
    with pytest.raises(ValueError, match=r"the same classes in train and val. Only one has \['fly'\]"):
        load_dataset(folder)
    (folder / JSON).rename(folder / "annotations/instances_train2014.json")
    with pytest.raises(ValueError, match="one annotation file for each of train"):
        load_dataset(folder)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("<xmax>30</xmax>", "<xmax>21</xmax>", "four.xml, object 1 .its box .* is empty"),
        ("<xmax>30</xmax>", "<xmax>60</xmax>", "is outside of the image"),
        ("<xmax>30</xmax>", "<xmax>1e308</xmax>", "is outside of the image"),
    ],
)
def test_an_invalid_object_of_voc_is_left_out(tmp_path, old, new, message):
    folder = write_voc(tmp_path)
    (folder / XML).write_text((folder / XML).read_text().replace(old, new))
    assert_left_out(folder, message, images=2, objects=2)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "four.xml .should be XML"),
        ("<annotation>", "should be XML"),
        ("<other></other>", "an element 'annotation'"),
        ("<annotation><object><name>ant</name></object></annotation>", "`bndbox/xmin` should be a number"),
        ("<annotation><size><height>inf</height></size></annotation>", "`size/height` should be a number"),
        ("<annotation><object><name> </name></object></annotation>", "the name of a class"),
        ("\x00\x00", "should be XML"),
        ("<annotation/>".encode("utf-16"), "text in UTF-8"),
        (
            '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>',
            "without a document type",
        ),
        (f"<!DOCTYPE x [<!ENTITY l0 'ha'>{LAUGHS}]><annotation>&l11;</annotation>", "without a document type"),
        (
            "<annotation><size><width>4</width><height>3</height></size></annotation>",
            "but 4 x 3 in Annotations/four.xml",
        ),
    ],
)
def test_the_image_of_an_invalid_xml_file_is_left_out(tmp_path, text, message):
    folder = write_voc(tmp_path)
    (folder / XML).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_left_out(folder, message, images=1, objects=2)


def test_invalid_files_are_listed_even_if_no_class_is_left(tmp_path):
    folder = write_voc(tmp_path, {"train": SPLITS["train"]})
    for path in folder.glob("Annotations/*.xml"):
        path.write_text("<annotation>")
    with pytest.raises(ValueError, match="Expected readable images with valid objects(.|\n)*should be XML"):
        load_dataset(folder)


@pytest.mark.parametrize("depth", [1, 5000])
def test_long_tokens_of_xml_hide_nothing(tmp_path, depth):
    """From version 2.6 on, Expat parses what follows an unfinished token of a chunk only when it gets much more."""
    folder = write_voc(tmp_path)
    comment, text = f"<!--{'-x' * 10_000}-->", (folder / XML).read_text()
    nested = f"{'<a>' * depth}{'</a>' * depth}</annotation>"
    (folder / XML).write_text(comment + text.replace("</annotation>", comment + nested))
    if depth == 1:
        assert load_test(folder).test.objects.boxes[0].tolist() == [20, 10, 30, 20]
    else:
        assert_left_out(folder, "XML of at most 20 levels", images=1, objects=2)


@pytest.mark.parametrize("kind, path", [("voc", "ImageSets/Main/val.txt"), ("yolo", "val.txt")])
def test_errors_of_lists_of_images_name_the_file(tmp_path, kind, path):
    folder = WRITERS[kind](tmp_path)
    (folder / path).write_bytes(b"four\xff")
    if kind == "yolo":
        (folder / "data.yaml").write_text("names: [a]\nval: val.txt")
    with pytest.raises(ValueError, match=f"`dataset` should be a list of images.*text in UTF-8.*{path}"):
        load_test(folder)


@pytest.mark.parametrize("path", [XML, "JPEGImages/four.jpg"])
def test_a_missing_file_of_voc(tmp_path, path):
    folder = write_voc(tmp_path)
    (folder / path).unlink()
    assert_left_out(folder, f"{path} .No such file", images=1, objects=2)


def test_names_in_image_sets_cannot_leave_the_folder(tmp_path):
    folder = write_voc(tmp_path)
    (folder / "ImageSets/Main/val.txt").write_text("../../../etc/passwd")
    with pytest.raises(ValueError, match="a path inside the folder"):
        load_test(folder)


@pytest.mark.parametrize(
    "line, message",
    [
        ("3 0.5 0.5 0.1 0.1", r"labels/val/four.txt, object 1 \(class 3 of 3, from 0\)"),
        ("1 0.5 0.5 0 0.1", "object 1 .its box .* is empty"),
        ("1 0.9 0.5 0.5 0.1", "is outside of the image of 40 x 30"),
        ("1 nan 0.5 0.5 0.1", "is outside"),
        ("1 0.1 0.1 0.2 0.2 0.3 7", "is outside"),
    ],
)
def test_an_invalid_object_of_yolo_is_left_out(tmp_path, line, message):
    folder = write_yolo(tmp_path)
    (folder / LABELS).write_text(line)
    assert_left_out(folder, message, images=2, objects=2)


@pytest.mark.parametrize(
    "line", ["ant 0.5 0.5 0.1 0.1", "1 0.5 0.5 0.1", "-1 0.5 0.5 0.1 0.1", "1 0.5 0.5 0.1 x", "1 0 0 1 1 2"]
)
def test_the_image_of_an_invalid_text_file_is_left_out(tmp_path, line):
    folder = write_yolo(tmp_path)
    (folder / LABELS).write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    assert_left_out(folder, "labels/val/four.txt .`line 2` should be a class and four numbers", images=1, objects=2)


def test_errors_of_a_folder_of_two_splits_are_listed_once(tmp_path):
    folder = write_yolo(tmp_path)
    (folder / "data.yaml").write_text((folder / "data.yaml").read_text().replace("images/val", "images/train"))
    (folder / "labels/train/one.txt").write_text("99 0.5 0.5 0.1 0.1")
    with pytest.raises(ValueError, match="Received: 1 invalid in"):
        load_dataset(folder)


def test_a_split_of_yolo_without_any_text_file_is_refused(tmp_path):
    folder = write_yolo(tmp_path)
    (folder / "labels/val").rename(folder / "labels/validation")
    with pytest.raises(ValueError, match="with text files of objects, such as .*labels/val/f.*txt"):
        load_test(folder)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "should be an object"),
        ("names: [a, b", "should be YAML"),
        ("names: [a, a]\nval: images/val", "different names"),
        ("names: {0: a, 2: b}\nval: images/val", "numbered from 0"),
        ("names: [a, [b]]\nval: images/val", "should be an object"),
        ("names: [a]\nval: /etc", "a folder of images, or a list of images"),
        ("names: [a]\nval: images/../../x", "a folder of images"),
        ("names: [a]\nval: [images/val, 7]", "a string"),
        (f"names: {'[' * 1000}", "should be YAML"),
        (f"names: {'[' * 1000}{']' * 1000}", "at most 20 levels"),
        (f"{ALIASES}names: *a11", "without references"),
        ("names: !!python/object/apply:os.system ['touch hacked']\nval: images/val", "should be YAML"),
        ("#" * 2**19, "at most 262144 bytes"),
    ],
)
def test_a_data_yaml_that_is_none(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    folder = write_yolo(tmp_path / "data")
    (folder / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_test(folder)
    assert not (tmp_path / "hacked").exists()


def test_all_faults_are_listed_at_once(tmp_path):
    folder = write_coco(tmp_path)
    changed(folder, lambda content: content["annotations"][0].update(bbox=[1, 1, 0, 0]))
    (folder / "train2017/two.png").unlink()
    (folder / "train2017/three.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="3 invalid in") as raised:
        load_dataset(folder)
    assert all(
        name in str(raised.value) for name in ("two.png (No such", "three.png (not an image", "object 1 (its box")
    )
    with pytest.warns(UserWarning, match="Left out 3 invalid"):
        data = load_dataset(folder, skip_bad=True)
    assert (len(data.train), len(data.test), len(data.test.objects)) == (1, 2, 2)


@pytest.mark.parametrize(
    "kind, path, content",
    [
        ("coco", JSON, '{"images": [' + "{}," * 3_000_000 + "{}]}"),
        ("coco", JSON, "[" * 5_000_000),
        ("voc", XML, "<a>" * 1_300_000),
        ("voc", XML, f"<annotation>{'<a>' * 500_000}{'</a>' * 500_000}</annotation>"),
        ("voc", XML, "<annotation>" + "x" * 10_000_000),
        ("yolo", "data.yaml", "names: " + "[" * 200_000),
        ("yolo", LABELS, "1 " * 3_000_000),
    ],
)
def test_hostile_files_take_little_memory_and_time(tmp_path, kind, path, content):
    folder = WRITERS[kind](tmp_path)
    (folder / path).write_text(content)
    run = run_limited(LOAD, str(folder), memory=400 * MEGABYTE, seconds=20)
    assert_refused(run)


@pytest.mark.filterwarnings("ignore:Left out")
@pytest.mark.parametrize(
    "kind, path",
    [("coco", JSON), ("voc", XML), ("voc", "ImageSets/Main/val.txt"), ("yolo", LABELS), ("yolo", "data.yaml")],
)
def test_randomly_changed_files_are_read_or_refused(tmp_path, kind, path):
    folder, random = WRITERS[kind](tmp_path), Random(0)
    words = re.findall(rb"[\w.]+|\W", (folder / path).read_bytes())
    for _ in range(100):
        changed_words = list(words)
        for _ in range(random.randint(1, 3)):
            changed_words[random.randrange(len(words))] = random.choice([*TOKENS, random.choice(words)])
        (folder / path).write_bytes(b"".join(changed_words))
        with contextlib.suppress(ValueError, OSError):
            load_test(folder, "val", skip_bad=True)
