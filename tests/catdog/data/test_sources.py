import pytest

from catdog.data.sources import list_images


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


LAYOUTS = {
    "kaggle, doubled": "cat-and-dog/{training_set/training_set,test_set/test_set}/{cats/cat,dogs/dog}.1.jpg",
    "single": "{training_set,test_set}/{cats/cat,dogs/dog}.1.jpg",
    "train and test": "{train,test}/{cat/a,dog/b}.JPG",
    "train and validation": "{train,validation}/{cats/cat,dogs/dog}.1.jpeg",
}


def expand(pattern):
    import itertools
    import re

    pieces = re.split(r"\{(.*?)\}", pattern)
    return ["".join(c) for c in itertools.product(*(p.split(",") if i % 2 else [p] for i, p in enumerate(pieces)))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_with_a_held_out_part_gives_its_test_images(tmp_path, layout):
    listing = list_images(make(tmp_path, *expand(LAYOUTS[layout])))
    assert [p.label for p in listing.training] == [0, 1]
    assert [p.label for p in listing.test] == [0, 1]
    assert not listing.validation


@pytest.mark.parametrize(
    "names", [("PetImages/Cat/0.jpg", "PetImages/Dog/0.jpg"), ("train/cat.0.jpg", "train/dog.0.jpg", "test1/7.jpg")]
)
def test_layout_without_a_test_part_gives_training_images_alone(tmp_path, names):
    listing = list_images(make(tmp_path, *names))
    assert [p.label for p in listing.training] == [0, 1]
    assert not listing.test
    assert not listing.validation


def test_three_parts_are_kept_apart(tmp_path):
    listing = list_images(make(tmp_path, *expand("{train,val,test}/{cat,dog}/1.jpg")))
    assert (len(listing.training), len(listing.validation), len(listing.test)) == (2, 2, 2)


def test_strangers_beside_the_classes_are_left_out_and_counted(tmp_path):
    folder = tmp_path / "images"
    make(folder, "train/cats/1.jpg", "train/dogs/1.jpg", "train/pandas/1.jpg", "single_prediction/cat_or_dog_1.jpg")
    make(folder, "_DS_Store", ".DS_Store", "train/.DS_Store", "__MACOSX/train/cats/1.jpg")
    listing = list_images(folder)
    assert len(listing.training) == 2
    assert listing.notes == (f"left out 3 files of {folder} whose names tell neither cat nor dog",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds no images of cats and dogs; expected folders named"),
        (("cats/1.jpg",), "show no dog; add a folder dogs"),
        (("train/cats/1.jpg", "train/dogs/1.jpg", "test/dogs/1.jpg"), "the test images of .* show no cat"),
        (("test/cats/1.jpg", "test/dogs/1.jpg"), "has no training images"),
        (("a/cats/1.jpg", "a/dogs/1.jpg", "b/cats/1.jpg"), "is ambiguous: it has images in .*a and .*b"),
        (("cats/1.jpg", "dogs/1.jpg", "train/cats/1.jpg", "train/dogs/1.jpg"), "is ambiguous: some images are"),
        (("cats/dogs/1.jpg",), "is below both a cat and a dog folder"),
    ],
)
def test_unusable_folder_is_refused_in_one_sentence(tmp_path, names, message):
    with pytest.raises(ValueError, match=message) as error:
        list_images(make(tmp_path, *names))
    assert "\n" not in str(error.value)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist; give --data"):
        list_images(tmp_path / "nowhere")
