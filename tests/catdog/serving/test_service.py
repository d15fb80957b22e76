import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from catdog.checkpoint import load_model, save_model
from catdog.predict import Classifier
from catdog.serving.monitor import Monitor
from catdog.serving.service import Service, UnavailableError
from tests.catdog.data.test_decode import saved
from tests.servers.processes import wait_until


@pytest.fixture
def service(tmp_path):
    """A service of a file that is not there yet."""
    service = Service(tmp_path / "best_model/model.safetensors", "cpu", Monitor())
    (tmp_path / "best_model").mkdir()
    service.start()
    yield service
    service.stopped.set()


def put(path, service):
    """Replace the champion as a promotion does."""
    beside = service.path.with_name("new")
    shutil.copy(path, beside)
    beside.replace(service.path)


@contextmanager
def asked_all_the_time(ask):
    """Have eight threads ask again and again; return their answers, which come as long as this lasts."""
    over, answers = threading.Event(), []

    def ask_on():
        while not over.is_set():
            answers.append(ask())

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask_on) for _ in range(8)]
        try:
            yield answers
        finally:
            over.set()
    for one in asking:
        one.result()


def test_answers_are_those_of_the_classifier(service, champion, drawn_files):
    put(champion(), service)
    service.reload_if_changed()
    images = [image for label in (0, 1) for image in drawn_files[label]]
    expected = Classifier(champion())(images)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(service.classify, images))
    given = np.array([[*reply.answer.probabilities.values()] for reply in replies])
    assert given == pytest.approx(expected, abs=0.01)
    assert {reply.version for reply in replies} == {Classifier(champion()).version}
    assert all(reply.answer.saliency.size == 0 for reply in replies)
    assert service.classify(images[0], saliency=True).answer.saliency.max() == pytest.approx(1)
    assert service.monitor.summary()["counts"]["cat"] > 0


def test_service_waits_for_its_first_champion(service, champion, drawn_files):
    with pytest.raises(UnavailableError, match=r"^no champion: .* does not exist; python run_sweep\.py writes"):
        service.classify(drawn_files[0][0])
    put(champion(), service)
    wait_until(lambda: service.classifier)
    assert service.problem == ""
    assert service.classify(drawn_files[0][0]).answer.label in ("cat", "dog")


def test_new_champion_takes_the_place_of_the_old_one(service, champion):
    put(champion(0), service)
    wait_until(lambda: service.classifier)
    put(champion(1), service)
    wait_until(lambda: service.classifier.header["provenance"]["trial"] == 1)
    put(champion(0), service)
    wait_until(lambda: service.classifier.header["provenance"]["trial"] == 0)


def torn(path):
    return path.read_bytes()[:-1000]


def altered(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    return bytes(content)


def different(path):
    """A whole file whose weights are not those that gave its answers."""
    model, header = load_model(path)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    save_model(model, path.with_name("different"), header)
    return path.with_name("different").read_bytes()


def dumb(path):
    model, header = load_model(path)
    model.head[-1].weight.data.fill_(float("nan"))
    save_model(model, path.with_name("dumb"), header)
    return path.with_name("dumb").read_bytes()


def test_champion_whose_test_figures_alone_changed_is_no_other_version(service, champion):
    put(champion(), service)
    wait_until(lambda: service.classifier)
    before, (model, header) = service.classifier, load_model(champion())
    header["metrics"]["test"]["looks"] = 5  # as after a challenger that was kept out
    save_model(model, service.path, header)
    state = service.file_state
    wait_until(lambda: service.file_state != state)
    service.reload_if_changed()
    assert service.classifier is before
    assert service.problem == ""


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (torn, "is not a whole model file"),
        (altered, "was altered: its sha256 does not match"),
        (different, "fails its self-test: its answers have changed since its promotion"),
        (dumb, "fails its self-test: its probabilities are not finite"),
    ],
)
def test_broken_champion_is_refused_and_the_old_one_stays(service, champion, drawn_files, broken, sentence, caplog):
    put(champion(), service)
    wait_until(lambda: service.classifier)
    version = service.classifier.version
    caplog.set_level(logging.WARNING)
    (service.path.parent / "broken").write_bytes(broken(champion()))
    (service.path.parent / "broken").replace(service.path)
    wait_until(lambda: sentence in service.problem)
    assert f"; model {version} stays in service" in service.problem
    assert any(sentence in record.message for record in caplog.records)
    assert service.classify(drawn_files[0][0]).version == version
    put(champion(1), service)
    wait_until(lambda: service.problem == "")


def test_champion_that_goes_stays_in_service(service, champion, drawn_files):
    put(champion(), service)
    wait_until(lambda: service.classifier)
    service.path.unlink()
    wait_until(lambda: "is gone; model " in service.problem)
    service.classify(drawn_files[0][0])


def test_model_that_was_never_promoted_is_served(service, champion):
    model, header = load_model(champion())
    header.pop("reference")
    save_model(model, service.path, header)
    wait_until(lambda: service.classifier)
    assert service.classify(saved(Image.new("RGB", (8, 8)), "PNG")).answer.familiar


def test_strange_image_is_probably_neither(service, champion):
    put(champion(), service)
    wait_until(lambda: service.classifier)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    noise[::2] = 255 - noise[::2] // 8
    assert not service.classify(saved(Image.fromarray(noise), "PNG")).answer.familiar


def test_broken_image_is_the_senders_fault_and_stops_nobody(service, champion, drawn_files):
    put(champion(), service)
    wait_until(lambda: service.classifier)

    def ask(index):
        try:
            return service.classify(drawn_files[0][index % 24] if index % 3 else b"words")
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(ask, range(60)))
    assert sum(isinstance(reply, str) for reply in replies) == 20
    assert service.monitor.summary()["counts"]["refused"] == 20


def test_swaps_lose_no_request_and_mix_no_models(service, champion, drawn_files):
    """Two models that answer differently, under load: every answer is that of the model it names."""
    model, header = load_model(champion())
    turned = champion().with_name("turned.safetensors")
    weight, bias = model.head[-1].weight.data, model.head[-1].bias.data
    weight.copy_(weight.flip(0).clone())
    bias.copy_(bias.flip(0).clone())
    header["reference"] = {**header["reference"], "known_answers": [
        {**known, "probabilities": known["probabilities"][::-1]} for known in header["reference"]["known_answers"]
    ]}  # fmt: skip
    save_model(model, turned, header)
    files = [champion(), turned]
    expected = {c.version: c(drawn_files[0][:1])[0] for c in map(Classifier, files)}
    put(files[0], service)
    wait_until(lambda: service.classifier)
    with asked_all_the_time(lambda: service.classify(drawn_files[0][0])) as replies:
        for swap in range(1, 13):
            put(files[swap % 2], service)
            wait_until(lambda: service.classifier.header["sha256"] == Classifier(service.path).header["sha256"])
    assert {reply.version for reply in replies} == set(expected)
    for reply in replies:
        assert [*reply.answer.probabilities.values()] == pytest.approx(expected[reply.version], abs=0.01)
