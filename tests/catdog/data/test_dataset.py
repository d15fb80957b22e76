import errno
import gzip
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from catdog.data import dataset as data
from catdog.data.cache import build_once
from catdog.data.dataset import describe_change, load_data, load_data_and_count_test, load_test, note_images
from tests.servers.processes import wait_until


def of(subset):
    """The set of a side's decoded images, as bytes."""
    return {image.numpy().tobytes() for image in subset.images[subset.rows]}


def test_sides_share_no_image_and_hold_all(photographs):
    loaded, test = load_data(str(photographs), 32), load_test(str(photographs), 32).subset
    training, validation = of(loaded.training), of(loaded.validation)
    assert (len(training), len(validation), len(of(test))) == (34, 6, 8)
    assert not training & validation
    assert torch.equal(loaded.validation.labels[loaded.validation.rows].bincount(), torch.tensor([3, 3]))


def test_split_follows_content_not_names(photographs):
    before = of(load_data(str(photographs), 32).validation)
    cats = sorted((photographs / "training_set/training_set/cats").iterdir())
    for index, path in enumerate(cats):
        path.rename(path.with_name(f"cat.{900 - index}.png"))
    assert of(load_data(str(photographs), 32).validation) == before


def test_equal_files_stand_on_one_side(photographs):
    cats = photographs / "training_set/training_set/cats"
    for path in list(cats.iterdir()):
        path.with_name(f"{path.stem}(1).jpg").write_bytes(path.read_bytes())
    loaded = load_data(str(photographs), 32)
    assert len(loaded.training) + len(loaded.validation) == 60
    assert not of(loaded.training) & of(loaded.validation)


def test_test_part_is_split_off_where_the_folder_has_none(photographs):
    folder = photographs / "training_set"
    loaded, test = load_data(str(folder), 32), load_test(str(folder), 32).subset
    assert len(test) == 8  # a fifth of 40
    assert not of(test) & (of(loaded.training) | of(loaded.validation))


def test_own_validation_part_is_used(photographs):
    (photographs / "test_set").rename(photographs / "validation")
    for name in ("cats", "dogs"):
        (photographs / "test" / name).mkdir(parents=True)
        path = next((photographs / "training_set/training_set" / name).iterdir())
        path.rename(photographs / "test" / name / path.name)
    loaded, test = load_data(str(photographs), 32), load_test(str(photographs), 32).subset
    assert (len(loaded.training), len(loaded.validation), len(test)) == (38, 8, 2)


def test_test_images_known_from_training_are_left_out_and_counted(photographs):
    training, test = (photographs / f"{part}_set/{part}_set/cats" for part in ("training", "test"))
    before = load_test(str(photographs), 32)
    (test / "copy.jpg").write_bytes(next(training.iterdir()).read_bytes())
    sealed = load_test(str(photographs), 32)
    assert (len(before.subset), before.num_left_out) == (8, 0)
    assert (len(sealed.subset), sealed.num_left_out) == (8, 1)
    assert sealed.fingerprint == before.fingerprint
    assert sealed.notes == ("left out 1 of the test images: their content is also among the training images",)


def test_broken_image_is_left_out_and_named(photographs):
    cats = photographs / "training_set/training_set/cats"
    (cats / "_DS_Store").write_bytes(b"Bud1")
    (cats / "cat.1.jpg").write_bytes(b"")
    loaded = load_data(str(photographs), 32)
    assert len(loaded.training) + len(loaded.validation) == 39
    told = [note for note in sorted(loaded.notes) if "left out" in note]
    assert [note.partition(":")[0] for note in told] == [
        "left out 1 of 41 files that are empty",
        "left out 1 of 41 files that are not images",
    ]
    assert [note.rpartition("/")[2] for note in told] == ["cat.1.jpg", "_DS_Store"]


def failing(monkeypatch, name, error):
    """Let the disk or the permissions of a file fail, which root cannot otherwise see."""
    read_bytes = Path.read_bytes

    def read(path):
        if path.name == name:
            raise OSError(error, os.strerror(error), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)


def test_file_without_permission_is_named_with_the_reason_and_read_once_it_may_be(photographs, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, "cat.3.jpg", errno.EACCES)
        patch.setattr("catdog.data.cache.os.access", lambda *_: False)
        (note,) = load_data(str(photographs), 32).notes
        assert load_data(str(photographs), 32).notes == (note,)
    assert note.startswith("left out 1 of 40 files that cannot be read (Permission denied): ")
    assert note.endswith("cats/cat.3.jpg")
    assert not load_data(str(photographs), 32).notes


def test_fault_of_the_disk_leaves_no_image_out(photographs, monkeypatch, cache):
    for error in (errno.EIO, errno.ESTALE, errno.EMFILE):
        with monkeypatch.context() as patch:
            failing(patch, "cat.3.jpg", error)
            with pytest.raises(OSError, match=rf"^\S+/cat.3.jpg cannot be read \({os.strerror(error)}\)$"):
                load_data(str(photographs), 32)
    assert not list(cache.glob("training-*px-*/"))


def test_class_whose_files_cannot_be_read_is_refused_with_the_reason(photographs):
    for path in (photographs / "training_set/training_set/dogs").iterdir():
        path.write_bytes(b"<html>")
    with pytest.raises(
        ValueError, match=r"too few images: 20 cats and 0 dogs that .*; left out 20 of 40 files that are web pages"
    ):
        load_data(str(photographs), 32)


@pytest.mark.parametrize(("has_test", "least"), [(False, 5), (True, 4)])
def test_number_of_images_that_is_enough_is_named(tmp_path, has_test, least):
    def draw(number, folder):
        for row, name in enumerate(f"{name}/{index}.png" for name in ("cats", "dogs") for index in range(number)):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (row * 9, 90, len(str(folder)) % 200)).save(path)

    data = tmp_path / "few"
    if has_test:
        draw(2, data / "test")
    images = data / "train" if has_test else data
    draw(least - 1, images)
    message = f"has too few images: {least - 1} cats and {least - 1} dogs that .*; give at least {least} of each$"
    with pytest.raises(ValueError, match=message):
        load_data(str(data), 32)
    draw(least, images)
    assert len(load_data(str(data), 32).validation.rows) == 2


def test_folder_of_web_pages_is_answered_with_one_reason_and_one_path(photographs):
    for path in photographs.rglob("*.jpg"):
        path.write_bytes(b"<html>")
    with pytest.raises(
        ValueError, match=r"they are web pages, not images \(download the\S* .*\): \S+\.jpg and 39 more$"
    ):
        load_data(str(photographs), 32)


def test_cache_of_drawn_images_of_an_earlier_version_is_read(monkeypatch, cache):
    monkeypatch.setattr(data, "NUM_DRAWN", {"training": 40, "test": 20})
    before = load_data("synthetic", 32).fingerprint
    (about,) = cache.glob("training-32px-*/about.json")
    about.write_text('{"notes": []}')
    assert load_data("synthetic", 32).fingerprint == before


def test_link_to_nowhere_is_left_out_and_named(photographs):
    (photographs / "training_set/training_set/cats/gone.jpg").symlink_to("/nowhere.jpg")
    loaded = load_data(str(photographs), 32)
    assert "gone.jpg" in loaded.notes[0]


def test_test_images_that_training_has_all_seen_are_refused(photographs):
    shutil.rmtree(photographs / "test_set")
    shutil.copytree(photographs / "training_set", photographs / "test_set")
    for load in (load_test, load_data_and_count_test):
        with pytest.raises(
            ValueError, match=r"each class that are in no other part; .* also among the training images"
        ):
            load(str(photographs), 32)
    assert load_data(str(photographs), 32).count_images()["test"] == (20, 20)


def test_test_images_that_are_copies_of_other_parts_name_these(photographs):
    shutil.copytree(photographs / "test_set", photographs / "val")
    with pytest.raises(ValueError, match="also among the validation images"):
        load_test(str(photographs), 32)
    seen = next((photographs / "training_set/training_set/cats").iterdir())
    shutil.copy(seen, photographs / "test_set/test_set/cats/copy.jpg")
    with pytest.raises(ValueError, match="also among the training and validation images"):
        load_test(str(photographs), 32)


@pytest.mark.parametrize("kind", ["copy", "broken", "other class"])
def test_test_images_are_counted_without_those_that_cannot_be_used(photographs, kind):
    training, test = (photographs / f"{part}_set/{part}_set" for part in ("training", "test"))
    source = next((training / ("dogs" if kind == "other class" else "cats")).iterdir())
    next((test / "cats").iterdir()).write_bytes(b"<html>" if kind == "broken" else source.read_bytes())
    (photographs / "training_set/training_set/cats/empty.jpg").write_bytes(b"")
    counted = load_data_and_count_test(str(photographs), 32)
    assert counted.num_test == (3, 4)
    reasons = [note for note in counted.notes if "web pages" in note or "among the training images" in note]
    assert len(reasons) == 1
    assert len(counted.notes) == 2


def test_class_with_copies_alone_in_the_test_part_is_refused(photographs):
    training, test = (photographs / f"{part}_set/{part}_set/dogs" for part in ("training", "test"))
    for copy, original in zip(test.iterdir(), training.iterdir(), strict=False):
        copy.write_bytes(original.read_bytes())
    with pytest.raises(ValueError, match=r"no readable test images of each class .*; left out 4 of the test images"):
        load_data_and_count_test(str(photographs), 32)


def test_image_called_both_cat_and_dog_is_on_no_side(photographs):
    folder = photographs / "training_set/training_set"
    (folder / "dogs/copy.jpg").write_bytes((folder / "cats/cat.3.jpg").read_bytes())
    loaded = load_data(str(photographs), 32)
    assert len(loaded.training) + len(loaded.validation) == 39


def test_folder_of_broken_files_is_refused_and_leaves_nothing(photographs, cache):
    for path in photographs.rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the 40 files could be read as an image"):
        load_data(str(photographs), 32)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_too_few_images_to_hold_some_out_are_refused(tmp_path, drawn_files):
    for label, name in enumerate(("cats", "dogs")):
        (tmp_path / "few" / name).mkdir(parents=True)
        (tmp_path / "few" / name / "1.jpg").write_bytes(drawn_files[label][0])
    with pytest.raises(
        ValueError, match=r"too few images: 1 cat and 1 dog that differ and can be read; give at least 5 of each$"
    ):
        load_data(str(tmp_path / "few"), 32)


def test_second_load_decodes_nothing(photographs, monkeypatch):
    first = load_data(str(photographs), 32)
    monkeypatch.setattr("catdog.data.cache.read_image", None)
    second = load_data(str(photographs), 32)
    assert torch.equal(first.training.images, second.training.images)
    assert first.fingerprint == second.fingerprint


def test_changed_file_is_decoded_again(photographs):
    before = load_data(str(photographs), 32)
    (photographs / "training_set/training_set/cats/cat.0.jpg").unlink()
    after = load_data(str(photographs), 32)
    assert len(after.training) + len(after.validation) == 39
    assert before.fingerprint != after.fingerprint


def build_slowly(folder, log, seconds=0.5):
    def build(partial):
        with log.open("a") as file:
            file.write("built\n")
        (partial / "half").write_text("half")
        time.sleep(seconds)
        (partial / "whole").write_text("whole")

    build_once(folder, build)


def start(*arguments):
    process = multiprocessing.get_context("fork").Process(target=build_slowly, args=arguments)
    process.start()
    return process


def test_two_processes_build_once(tmp_path):
    processes = [start(tmp_path / "made", tmp_path / "log") for _ in range(2)]
    for process in processes:
        process.join()
    assert (tmp_path / "log").read_text() == "built\n"
    assert (tmp_path / "made/whole").exists()


def test_killed_build_leaves_nothing_half_built(tmp_path):
    process = start(tmp_path / "made", tmp_path / "log", 1000)
    wait_until((tmp_path / "made.partial/half").exists)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "made").exists()
    build_slowly(tmp_path / "made", tmp_path / "log")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["half", "whole"]


def test_drawn_images_are_made_once(monkeypatch):
    monkeypatch.setattr(data, "NUM_DRAWN", {"training": 40, "test": 20})
    loaded, test = load_data("synthetic", 32), load_test("synthetic", 32).subset
    assert (len(loaded.training), len(loaded.validation), len(test)) == (34, 6, 20)
    larger = load_data("synthetic", 64)
    assert larger.fingerprint == loaded.fingerprint
    assert torch.equal(larger.validation.rows, loaded.validation.rows)
    monkeypatch.setattr("catdog.data.cache.synthetic", None)
    assert load_data("synthetic", 32).fingerprint == loaded.fingerprint


def test_unwritable_cache_says_what_to_set(photographs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CATDOG_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(ValueError, match=r"cannot cache decoded images in .*; set CATDOG_CACHE"):
        load_data(str(photographs), 32)


def test_kaggle_without_a_network_is_one_sentence(monkeypatch):
    import kagglehub

    def no_network(name):
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr(kagglehub, "dataset_download", no_network)
    with pytest.raises(ValueError, match=r"could not fetch tongpython/cat-and-dog .*; download it by hand"):
        load_data("kaggle", 32)


def test_kaggle_is_read_where_kagglehub_put_it(photographs, monkeypatch):
    import kagglehub

    monkeypatch.setattr(kagglehub, "dataset_download", lambda _: str(photographs))
    assert len(load_data("kaggle", 32).training) == 34


@pytest.mark.parametrize(
    ("source", "meant"),
    [("kagle", "kaggle"), ("Synthetic", "synthetic"), ("photgraphs", "photographs"), ("./photo-graphs", "photographs")],
)
def test_mistyped_source_is_answered_with_the_closest_one(photographs, monkeypatch, source, meant):
    monkeypatch.chdir(photographs.parent)
    with pytest.raises(ValueError, match=f"does not exist; did you mean {meant}\\?$"):
        load_data(source, 32)
    with pytest.raises(ValueError, match=r"does not exist; give --data synthetic, kaggle or a folder$"):
        load_data(str(photographs / "elsewhere"), 32)


@pytest.mark.parametrize("splits_off", [False, True])
def test_images_are_counted_by_part_and_class(photographs, splits_off):
    if splits_off:
        shutil.rmtree(photographs / "test_set")
    else:
        next(photographs.rglob("test_set/cats/*")).unlink()
    counts = load_data(str(photographs), 32).count_images()
    train, test = ((14, 14), (4, 4)) if splits_off else ((17, 17), (3, 4))
    assert counts == {"train": train, "validate": (2, 2) if splits_off else (3, 3), "test": test}
    assert load_test(str(photographs), 32).subset.y.bincount().tolist() == list(test)


def test_drawn_images_are_counted(monkeypatch):
    monkeypatch.setattr(data, "NUM_DRAWN", {"training": 20, "test": 10})
    assert load_data("synthetic", 32).count_images()["test"] == (5, 5)
    assert load_test("synthetic", 32).subset.y.bincount().tolist() == [5, 5]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_bytes_are_shared_with_the_file_on_the_cpu(photographs):
    training = load_data(str(photographs), 32).training
    assert training.to("cpu") is training
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "images.npy" in line]
    assert mapped


@pytest.fixture
def noted(photographs, tmp_path):
    """The list of some photographs, as a sweep keeps it; `noted()` says what has changed since."""
    path = tmp_path / "images.csv.gz"
    note_images(path, str(photographs), 32, "fingerprint")
    return lambda: describe_change(path, str(photographs), 32).replace(str(photographs), "FOLDER")


def test_new_missing_and_changed_images_are_counted_and_named(photographs, noted):
    inner = "training_set/training_set"
    cats, dogs = photographs / inner / "cats", photographs / inner / "dogs"
    (cats / "new\n.jpg").write_bytes((photographs / "test_set/test_set/cats/cat.20.jpg").read_bytes() + b"x")
    assert noted() == rf"40 images, FOLDER has 41 now: 1 new in cats ({inner}/cats/new\n.jpg)"
    (dogs / "dog.3.jpg").unlink()
    (dogs / "dog.4.jpg").write_bytes((dogs / "dog.4.jpg").read_bytes() + b"x")
    changes = f"1 missing in dogs ({inner}/dogs/dog.3.jpg), 1 changed in dogs ({inner}/dogs/dog.4.jpg)"
    assert noted() == rf"40 images, FOLDER has 40 now: 1 new in cats ({inner}/cats/new\n.jpg), {changes}"


def test_image_moved_to_the_other_class_and_copies_are_told(photographs, noted):
    inner = "training_set/training_set"
    (photographs / inner / "cats/cat.0.jpg").rename(photographs / inner / "dogs/moved.jpg")
    changes = f"1 new in dogs ({inner}/dogs/moved.jpg), 1 missing in cats ({inner}/cats/cat.0.jpg)"
    assert noted() == f"40 images, FOLDER has 40 now: {changes}"
    for number in range(5):
        (photographs / inner / f"dogs/z{number}.jpg").write_bytes((photographs / inner / "dogs/dog.1.jpg").read_bytes())
    assert f"6 new in dogs ({inner}/dogs/moved.jpg, {inner}/dogs/z0.jpg, {inner}/dogs/z1.jpg and 3 more)" in noted()


def test_other_split_other_images_and_no_list_are_told(photographs, tmp_path, noted, drawn_files):
    shutil.rmtree(photographs / "test_set")
    assert noted() == "40 of the same images for training and validation, 32 of FOLDER are for these now"
    for label, name in enumerate(("cats", "dogs")):
        for path in (photographs / "training_set/training_set" / name).iterdir():
            path.write_bytes(drawn_files[label][int(path.stem.split(".")[1])] + b"x")
    assert noted() == "40 images, and none of the 40 of FOLDER is among them"
    assert describe_change(tmp_path / "none", str(photographs), 32) == f"other images than those of {photographs}"


DAMAGE = {
    "torn": lambda whole: whole[:40],
    "emptied": lambda _: b"",
    "junk": lambda _: b"junk\n",
    "changed": lambda whole: whole[:60] + bytes(60) + whole[120:],
    "of another program": lambda _: gzip.compress(b"a,b\n1,2\n"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_list_is_as_none_and_written_anew(photographs, tmp_path, noted, damage):
    path = tmp_path / "images.csv.gz"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert noted() == "other images than those of FOLDER"
    note_images(path, str(photographs), 32, "fingerprint")
    assert path.read_bytes() == whole


def test_list_is_small_and_written_once(photographs, tmp_path):
    path = tmp_path / "images.csv.gz"
    note_images(path, str(photographs), 32, "fingerprint")
    before = path.stat()
    assert before.st_size < 40 * 40
    note_images(path, str(photographs), 32, "fingerprint")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    note_images(path, "synthetic", 32, "another")
    assert describe_change(path, "synthetic", 32).startswith("1200 of the same images")
