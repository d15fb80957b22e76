import os
import stat
from pathlib import Path

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
    told = f"left out 3 files of {folder} whose names tell neither cat nor dog, in . (1), single_prediction (1), "
    remedy = "; rename folders of cats or dogs to cats and dogs (of unknown name: single_prediction, train/pandas)"
    assert listing.notes == (f"{told}train/pandas (1){remedy}",)


PART_NAMES = {
    "training": (
        "train",
        "Training",
        "trn",
        "TrainSet",
        "train_images",
        "train-data",
        "1_train",
        "Train Images (2)",
        "trainval",
    ),
    "validation": (
        "val",
        "valid",
        "Validation Set",
        "dev",
        "eval",
        "EVALUATION",
        "devset",
        "val_split",
        "validate",
        "val²",
    ),
    "test": (
        *("test", "Test-Images", "testing", "tst", "test set", "hold-out", "holdout", "Held Out", "test2", "test v2"),
        *("TEST_final", "final test", "public_test", "private_test", "Testset (copy)", "test_version_3", "test①"),
    ),
}


@pytest.mark.parametrize("mine", PART_NAMES)
def test_part_is_known_by_any_usual_name(tmp_path, mine):
    for name in PART_NAMES[mine]:
        parts = {**{part: names[0] for part, names in PART_NAMES.items()}, mine: name}
        classes = [f"{part}/{animal}/1.jpg" for part in parts.values() for animal in ("cats", "dogs")]
        listing = list_images(make(tmp_path / f"set with {name}", *classes))
        assert (len(listing.training), len(listing.validation), len(listing.test)) == (2, 2, 2), name
        assert all(f"/{name}/" in file.path for file in getattr(listing, mine))


def test_class_is_known_by_any_usual_name(tmp_path):
    for cats in ("cats", "Cat", "CATS", "cats_only", "01_cat", "cat images", "class-cat", "catset"):
        folder = make(tmp_path / f"set with {cats}", f"{cats}/1.jpg", "dogs/1.jpg")
        assert [p.label for p in list_images(folder).training] == [0, 1], cats


def test_folder_may_name_part_and_class_at_once(tmp_path):
    names = [f"{part}_{animal}/1.jpg" for part in ("train", "valid", "test") for animal in ("cats", "dogs")]
    listing = list_images(make(tmp_path, *names))
    assert (len(listing.training), len(listing.validation), len(listing.test)) == (2, 2, 2)


def test_name_of_both_classes_or_parts_tells_nothing(tmp_path):
    for wrapper in ("cats_and_dogs", "dogs-vs-cats", "train_test_split", "cat_dog", "catdog 2"):
        names = expand(f"{wrapper}/{{train,test}}/{{cats,dogs}}/1.jpg")
        listing = list_images(make(tmp_path / f"set of {wrapper}", *names))
        assert (len(listing.training), len(listing.test)) == (2, 2), wrapper


def test_folder_around_the_parts_may_be_called_train_val(tmp_path):
    listing = list_images(make(tmp_path, *expand("train_val/{train,val}/{cats,dogs}/1.jpg")))
    assert (len(listing.training), len(listing.validation), len(listing.test)) == (2, 0, 2)


def test_numbered_folders_of_one_part_belong_together(tmp_path):
    listing = list_images(make(tmp_path, *expand("{train_1,train_2,test}/{cats,dogs}/1.jpg")))
    assert (len(listing.training), len(listing.test)) == (4, 2)


def test_class_of_unknown_name_is_named_with_the_remedy(tmp_path):
    folder = make(tmp_path / "set", "cats/1.jpg", "dogs/1.jpg", "Katze/1.jpg", "Katze/2.jpg")
    (note,) = list_images(folder).notes
    assert note.startswith("left out 2 files of ")
    assert "in Katze (2); rename folders of cats or dogs to cats and dogs (of unknown name: Katze)" in note
    with pytest.raises(ValueError, match=r"show no dog; add a folder dogs .* \(of unknown name: Hund\)"):
        list_images(make(tmp_path / "german", "cats/1.jpg", "Hund/1.jpg"))
    with pytest.raises(ValueError, match=r"holds no images .* \(of unknown name: Hund, Katze\)"):
        list_images(make(tmp_path / "other", "Katze/1.jpg", "Hund/1.jpg"))


def test_one_file_that_is_left_out_is_one_file(tmp_path):
    (note,) = list_images(make(tmp_path / "set", "cats/1.jpg", "dogs/1.jpg", "readme")).notes
    assert note.startswith("left out 1 file of ")


UNCLEAR = {
    "{train,test,extra}/{cats,dogs}/1.jpg": "extra has images of no known part; rename it to train, validation or test",
    "{train,test,train_old}/{cats,dogs}/1.jpg": "train_old has images of no known part",
    "{cats,dogs}/{train,test,later}/1.jpg": "cats/later has images of no known part",
    "{train,train (copy)}/{cats,dogs}/1.jpg": "both mean training; merge them, or rename one",
    "{train,test,test v2}/{cats,dogs}/1.jpg": "test and test v2 both mean test",
    "{train,training,test}/{cats,dogs}/1.jpg": "train and training both mean training; merge them, or rename one",
    "{train,dev,eval}/{cats,dogs}/1.jpg": "dev and eval both mean validation",
    "a/{train,Train Set}/{cats,dogs}/1.jpg": "a is ambiguous: Train Set and train both mean training",
}


@pytest.mark.parametrize("layout", UNCLEAR)
def test_unclear_part_is_refused_and_never_merged(tmp_path, layout):
    with pytest.raises(ValueError, match=UNCLEAR[layout]):
        list_images(make(tmp_path, *expand(layout)))


@pytest.fixture
def pair(tmp_path):
    """A folder with a cat and a dog, outside of the data set."""
    return make(tmp_path / "elsewhere", "cats/1.jpg", "cats/2.jpg", "dogs/1.jpg", "more/3.jpg")


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def test_links_to_classes_parts_folders_and_files_are_followed(tmp_path, pair):
    data = tmp_path / "set"
    link(data / "train/cats", pair / "cats")
    link(data / "train/dogs/one.jpg", pair / "dogs/1.jpg")
    link(data / "train/dogs/breed", pair / "more")
    make(tmp_path / "held", "cats/9.jpg", "dogs/9.jpg")
    link(data / "test", tmp_path / "held")
    listing = list_images(data)
    assert [p.label for p in listing.training] == [0, 0, 1, 1]
    assert [p.label for p in listing.test] == [0, 1]


@pytest.mark.parametrize("circle", ["cats/again", "again", "cats/deep/back"])
def test_circles_end_and_are_noted(tmp_path, circle):
    data = make(tmp_path / "set", "cats/1.jpg", "cats/deep/2.jpg", "dogs/1.jpg")
    link(data / circle, (data / circle).parent)
    listing = list_images(data)
    assert len(listing.training) == 3
    assert listing.notes == (f"left out: {data / circle} is a link to a folder above it",)


def test_circle_of_two_folders_ends(tmp_path, pair):
    data = make(tmp_path / "set", "cats/1.jpg", "dogs/1.jpg")
    link(data / "cats/x", pair / "more")
    link(pair / "more/y", data / "cats")
    assert len(list_images(data).training) == 3


def test_folder_reached_twice_counts_once(tmp_path, pair):
    data = tmp_path / "set"
    link(data / "cats", pair / "cats")
    link(data / "dogs", pair / "dogs")
    link(data / "dogs/breed", pair / "more")
    link(data / "dogs/breed again", pair / "more")
    listing = list_images(data)
    assert len(listing.training) == 4
    assert listing.notes == (f"left out: {data}/dogs/breed again is a link to {data}/dogs/breed",)


@pytest.mark.parametrize("names", [("train", "test"), ("train", "val"), ("cats", "dogs")])
def test_folder_reached_as_two_parts_or_classes_is_refused(tmp_path, pair, names):
    data = make(tmp_path / "set", "dogs/7.jpg", "cats/7.jpg") if "cats" not in names else tmp_path / "set"
    for name in names:
        link(data / name, pair if "cats" not in names else pair / "cats")
    with pytest.raises(ValueError, match=r"are the same folder; remove the link"):
        list_images(data)


SIBLINGS = {  # links, and their targets in the data set
    "train/a_more": "train/cats",
    "train/zz": "train/dogs",
    "train/kitten": "train/cats",
    "train/cats/again": "train/cats/deep",
    "test/more": "test/cats",
    "aa": "train/dogs",
    "a_cats": "train/cats",
    "train/a cat": "train/cats",
    "a_train": "train",
}


@pytest.mark.parametrize("name", SIBLINGS)
@pytest.mark.parametrize("files", ["{train,test}/{cats/cat,dogs/dog}.1.jpg", "{train,test}/{cats,dogs}/1.jpg"])
def test_link_to_a_folder_beside_it_counts_nothing_twice(tmp_path, files, name):
    data = make(tmp_path / "set", *expand(files), "train/cats/deep/cat.2.jpg", "test/cats/rex.jpg")
    before = list_images(data)
    link(data / name, data / SIBLINGS[name])
    listing = list_images(data)
    assert (listing.training, listing.test) == (before.training, before.test)
    assert listing.notes == (f"left out: {data}/{name} is a link to {data}/{SIBLINGS[name]}",)


def test_way_whose_names_mean_more_is_chosen(tmp_path, pair):
    data = make(tmp_path / "set", "dogs/1.jpg", "raw/cat.0.jpg", "raw/tom.jpg")
    link(data / "cats", data / "raw")
    make(pair, "more/dog.7.jpg")
    link(data / "a_more", pair / "more")
    link(data / "dogs/breed", pair / "more")
    listing = list_images(data)
    assert [file.label for file in listing.training] == [0, 0, 1, 1, 1]
    assert listing.notes == (
        f"left out: {data}/a_more is a link to {data}/dogs/breed",
        f"left out: {data}/raw is the same folder as {data}/cats",
    )


def test_files_whose_names_contradict_the_other_way_are_refused(tmp_path):
    data = make(tmp_path / "set", "raw/cat.0.jpg", "raw/dog.0.jpg", "dogs/1.jpg")
    link(data / "cats", data / "raw")
    with pytest.raises(ValueError, match=r"cats and .*raw are the same folder; remove the link"):
        list_images(data)


def test_link_to_a_listed_file_is_left_out(tmp_path, pair):
    data = make(tmp_path / "set", *expand("{train,test}/{cats,dogs}/1.jpg"))
    before = list_images(data)
    for name in ("0.jpg", "2.jpg"):
        link(data / "train/cats" / name, data / "train/cats/1.jpg")
    link(data / "train/a_more/cat.5.jpg", Path("../cats/1.jpg"))
    listing = list_images(data)
    assert listing.training == before.training
    assert listing.notes == (
        f"left out: {data}/train/a_more/cat.5.jpg is a link to {data}/train/cats/1.jpg",
        f"left out: {data}/train/cats/0.jpg is a link to {data}/train/cats/1.jpg (and 1 more such links)",
    )
    link(data / "train/dogs/7.jpg", pair / "dogs/1.jpg")
    link(data / "train/dogs/8.jpg", pair / "dogs/1.jpg")
    assert len(list_images(data).training) == 3


def test_view_of_links_into_unlabelled_folders_is_a_data_set(tmp_path):
    data = make(tmp_path / "set", "raw/persian/1.jpg", "raw/beagle/1.jpg")
    link(data / "cats/persian", data / "raw/persian")
    link(data / "dogs/beagle", data / "raw/beagle")
    listing = list_images(data)
    assert [p.label for p in listing.training] == [0, 1]
    assert not listing.notes


LOST = {
    "test": "test is a link to /nowhere/held, which does not exist, so test images would be missing",
    "Validation Set": "so validation images would be missing; make it readable, or remove it",
    "train/cats/persian": "train/cats/persian is a link to .* so training cat images would be missing",
    "train/wolves": "so training images would be missing",
    "test.d": "test.d is a link to /nowhere/held, which does not exist, so test images would be missing",
    "hold.out": "so test images would be missing",
    "my.validation.old": "so validation images would be missing",
    "dogs.d": "so dog images would be missing",
    "private test v2": "so test images would be missing",
}


@pytest.mark.parametrize("name", LOST)
def test_link_to_nowhere_instead_of_a_folder_is_refused(tmp_path, name):
    data = make(tmp_path / "set", "train/cats/1.jpg", "train/dogs/1.jpg")
    link(data / name, "/nowhere/held")
    with pytest.raises(ValueError, match=LOST[name]):
        list_images(data)


@pytest.mark.parametrize("name", ["test", "eval.d", "train/cats/01_cats", "test_dogs"])
def test_name_of_a_part_or_class_counts_more_than_that_of_the_target(tmp_path, name):
    data = make(tmp_path / "set", "train/cats/1.jpg", "train/dogs/1.jpg")
    link(data / name, "/nowhere/held.d")
    with pytest.raises(ValueError, match=r"is a link to /nowhere/held.d, which does not exist, so .* would be missing"):
        list_images(data)


def test_link_to_itself_is_refused_as_a_part_and_noted_elsewhere(tmp_path):
    data = make(tmp_path / "set", "cats/1.jpg", "dogs/1.jpg")
    link(data / "other", data / "other")
    (note,) = list_images(data).notes
    assert note == f"left out: {data}/other cannot be read (Too many levels of symbolic links)"
    link(data / "test", data / "test")
    with pytest.raises(ValueError, match=r"test cannot be read .* so test images would be missing; remove it$"):
        list_images(data)


def test_links_to_missing_files_stay_in_the_list(tmp_path):
    data = make(tmp_path / "set", "cats/1.jpg", "dogs/1.jpg")
    link(data / "cats/2.jpg", "/nowhere/2.jpg")
    link(data / "cats/0ab3", "/nowhere/annex/0ab3.jpg")
    link(data / "cats/test.JPG", "/nowhere/annex/test")
    link(data / "cat.7.png", "/nowhere/annex/7")
    assert len(list_images(data).training) == 6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_is_left_out_and_never_read(tmp_path):
    data = make(tmp_path / "set", "cats/1.jpg", "dogs/1.jpg")
    os.mkfifo(data / "cats/2.jpg")
    (note,) = list_images(data).notes
    assert note == f"left out: {data}/cats/2.jpg is neither a file nor a folder"


def as_user(path, monkeypatch):
    """Refuse to read a folder: as root by a stand-in for the system call that a mode would make fail."""
    path.chmod(0)
    if os.geteuid() == 0:
        scandir = os.scandir

        def refuse(folder):
            if not stat.S_IMODE(Path(folder).stat().st_mode):
                raise PermissionError(13, "Permission denied", folder)
            return scandir(folder)

        monkeypatch.setattr("os.scandir", refuse)


@pytest.mark.parametrize("name", ["test", "train", "train/cats", "train/cats/deep", "test/dogs"])
def test_unreadable_part_or_class_is_refused(tmp_path, monkeypatch, name):
    data = make(tmp_path / "set", *expand("{train,test}/{cats,dogs}/1.jpg"), "train/cats/deep/2.jpg")
    as_user(data / name, monkeypatch)
    with pytest.raises(ValueError, match=rf"{name} cannot be read \(Permission denied\), so .* would be missing"):
        list_images(data)


def test_unreadable_folder_beside_the_data_is_noted(tmp_path, monkeypatch):
    data = make(tmp_path / "set", "cats/1.jpg", "dogs/1.jpg", "lost+found/x")
    as_user(data / "lost+found", monkeypatch)
    assert list_images(data).notes == (f"left out: {data}/lost+found cannot be read (Permission denied)",)


def test_names_of_any_bytes_are_listed_and_printed_as_escapes(tmp_path):
    data = make(tmp_path / "set", "cats/1.jpg", "dogs/1.jpg", "a\x1b[31m\n/1.jpg")
    for name in (b"\xff.jpg", b"\xe4.jpg", b"new\nline.jpg"):
        (Path(os.fsdecode(os.fsencode(data) + b"/cats/" + name))).write_bytes(b"x")
    listing = list_images(data)
    assert len(listing.training) == 5
    assert r"a\x1b[31m\n (1)" in listing.notes[0]
    link(data / "test\n", "/nowhere\x1b")
    with pytest.raises(ValueError, match=r"test\\n is a link to /nowhere\\x1b, which does not exist") as error:
        list_images(data)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["test", "val", "valid/cats", "holdout/dogs"])
def test_empty_part_is_noted(tmp_path, name):
    data = make(tmp_path / "data", "train/cats/1.jpg", "train/dogs/1.jpg")
    (data / name).mkdir(parents=True)
    assert list_images(data).notes == (f"left out: {data / name.partition('/')[0]} is empty",)


@pytest.mark.parametrize("name", ["test/dogs", "train/dogs", "dogs"])
def test_empty_class_is_named(tmp_path, name):
    files = expand("{train,test}/{cats,dogs}/1.jpg" if "/" in name else "{cats,dogs}/1.jpg")
    make(tmp_path, *(file for file in files if not file.startswith(name)))
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"show no dog; put some into {tmp_path / name}$"):
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds no images of cats and dogs; expected folders named"),
        (("cats/1.jpg",), "show no dog; add a folder dogs"),
        (("train/cats/1.jpg", "train/dogs/1.jpg", "test/dogs/1.jpg"), "the test images of .* show no cat"),
        (("test/cats/1.jpg", "test/dogs/1.jpg"), "has no training images"),
        (("a/cats/1.jpg", "a/dogs/1.jpg", "b/cats/1.jpg"), "is ambiguous: it has images in .*a and .*b"),
        (
            ("cats/1.jpg", "dogs/1.jpg", "train/cats/1.jpg", "train/dogs/1.jpg"),
            "/cats/1.jpg is outside .*/train; move such images into",
        ),
        (("cats/dogs/1.jpg",), "is below both a cat and a dog folder"),
    ],
)
def test_unusable_folder_is_refused_in_one_sentence(tmp_path, names, message):
    with pytest.raises(ValueError, match=message) as error:
        list_images(make(tmp_path, *names))
    assert "\n" not in str(error.value)


CATS_OF_OTHER_NAMES = ("kitty", "Katzen", "felines", "n02123045-cat", "cats_and_more", "0", "kitty/tabby")


@pytest.mark.parametrize("name", CATS_OF_OTHER_NAMES)
@pytest.mark.parametrize("others", ["dogs/1.jpg", "dog.1.jpg"])
def test_folder_of_one_class_is_given_its_name_and_the_advice_works(tmp_path, name, others):
    data = make(tmp_path / "kitty", f"{name}/cat.0.jpg", others)
    folder = data / name.split("/", maxsplit=1)[0]
    with pytest.raises(ValueError, match=rf"tells no class; rename {folder} to cats$"):
        list_images(data)
    folder.rename(data / "cats")
    assert sorted(file.label for file in list_images(data).training) == [0, 1]


def test_folders_of_several_classes_and_names_are_all_named(tmp_path):
    data = make(tmp_path / "both", "kitty/cat.0.jpg", "puppy/dog.0.jpg")
    with pytest.raises(ValueError, match=rf"; rename {data}/kitty to cats, and rename {data}/puppy to dogs$"):
        list_images(data)
    data = make(tmp_path / "more", "kitty/cat.0.jpg", "cats/1.jpg", "dogs/1.jpg")
    with pytest.raises(ValueError, match=rf"; move {data}/kitty into {data}/cats$"):
        list_images(data)
    data = make(tmp_path / "breeds", *(f"breed{letter}/cat.0.jpg" for letter in "abcdef"), "dogs/1.jpg")
    with pytest.raises(ValueError, match=rf"; move {data}/breeda, .* and 2 more into {data}/cats$"):
        list_images(data)


def test_data_set_beside_the_classes_is_named(tmp_path):
    data = make(tmp_path / "set", *expand("{.,inner}/{cats,dogs}/1.jpg"))
    with pytest.raises(ValueError, match=rf"images in {data}/inner and {data}; give {data}/inner to --data, or move"):
        list_images(data)


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("training_set", "test_set"), ("a/Train", "a/test")])
def test_image_outside_the_train_folder_is_named(tmp_path, train, test):
    data = make(tmp_path / "set", *expand(f"{train}/{{cats,dogs}}/1.jpg"), f"{Path(train).parent}/cats/0.jpg")
    if test == "test_set":
        make(data, *expand("test_set/{cats,dogs}/1.jpg"))
    advice = f"is outside {data / train}; move such images into {data / train} or {data / test}"
    with pytest.raises(ValueError, match=rf"cats/0.jpg {advice}$"):
        list_images(data)


@pytest.mark.parametrize("place", ["set/store", "elsewhere"])
@pytest.mark.parametrize("file", ["cat.{}.jpg", "{}.jpg"])
def test_chain_of_links_to_a_class_is_listed_once(tmp_path, place, file):
    make(tmp_path / place, file.format(0), file.format(1))
    data = make(tmp_path / "set", "dogs/1.jpg")
    for name, target in (("cats", "l2"), ("l2", "l1"), ("l1", tmp_path / place)):
        link(data / name, target)
    listing = list_images(data)
    assert [file.label for file in listing.training] == [0, 0, 1]
    assert all(f"left out: {data}/{name} is a link to {data}/" in " ".join(listing.notes) for name in ("l1", "l2"))


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist; give --data"):
        list_images(tmp_path / "nowhere")
