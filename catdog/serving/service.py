"""The model in service: answers many threads at once; a new champion replaces it between two answers."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

from catdog.data.synthetic import draw
from catdog.model import have_same_weights
from catdog.predict import Answer, Classifier
from catdog.serving.comet import CometReporter
from catdog.serving.monitor import Monitor
from catdog.serving.reference import known_answers

MAX_BATCH = {"cpu": 4, "cuda": 64}  # images computed together; a CPU is no faster with more
POLL_SECONDS = 0.5  # between two checks of the model file
TOLERANCE = 0.05  # of a probability in the self-test: bfloat16 and devices differ
FACTOR = 1.3  # likewise of a distance
NO_CHAMPION = "no champion: {} does not exist; python run_sweep.py writes best_model/model.safetensors"
NO_SALIENCY = np.zeros((0, 0), dtype=np.float32)

log = logging.getLogger("catdog")


class UnavailableError(RuntimeError):
    """There is no model in service; the message is one sentence that says why."""


@dataclass(frozen=True)
class Reply:
    """An answer, and the model that gave it."""

    answer: Answer
    version: str  # the first twelve digits of the model's hash
    seconds: float  # from the decoding of the image to the answer


@dataclass(frozen=True)
class _Job:
    classifier: Classifier
    image: np.ndarray  # (S, S, 3) uint8, of the classifier's size
    saliency: bool
    done: Future[Answer]


class Service:
    """Serves the model file at `path`, and replaces the model when the file is replaced.

    A new file goes into service if its hash is right and it passes its self-test. Otherwise it is refused, and the old
    model stays in service.
    """

    def __init__(self, path: Path, device: str, monitor: Monitor, reporter: CometReporter | None = None) -> None:
        self.path, self.device, self.monitor, self.reporter = path, device, monitor, reporter
        self.classifier: Classifier | None = None
        self.problem = NO_CHAMPION.format(path)  # why the file is not in service; "" if it is
        self.max_batch = MAX_BATCH[device.partition(":")[0]]
        self.file_state: tuple[int, int, int] | None = None  # of the file that was tried last
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.stopped = threading.Event()

    def start(self) -> None:
        """Start the threads. If there is a good model file, it is in service when this returns."""
        threading.Thread(target=self._answer_jobs, daemon=True).start()
        self.reload_if_changed()
        if self.file_state is None:
            log.warning("%s (in %s)", self.problem, Path.cwd())
        self.repeat("checking the model file", self._update, POLL_SECONDS)

    def repeat(self, name: str, task: Callable[[], None], seconds: float) -> None:
        """Run `task` in a thread every so many seconds, until `stopped` is set."""

        def run() -> None:
            while not self.stopped.wait(seconds):
                try:
                    task()
                except Exception:
                    log.exception("%s failed; trying again in %g s", name, seconds)

        threading.Thread(target=run, daemon=True).start()

    def classify(self, image_file: bytes, *, saliency: bool = False) -> Reply:
        """Classify the content of an image file. Raises ValueError, one sentence, and UnavailableError."""
        classifier, start = self.classifier, time.perf_counter()
        if classifier is None:
            raise UnavailableError(self.problem)
        try:
            image = classifier.decode(image_file)
        except ValueError:
            self.monitor.count_failure("refused")
            raise
        try:
            answer = self._submit(classifier, image, saliency=saliency).result()
        except Exception:
            self.monitor.count_failure("failed")
            raise
        version, seconds = classifier.version, time.perf_counter() - start
        self.monitor.count_answer(version, answer.label, answer.margin, familiar=answer.familiar, seconds=seconds)
        return Reply(answer, version, seconds)

    def reload_if_changed(self) -> None:
        """Put a new model file into service; if it is refused, set `problem`."""
        state = self._read_file_state()
        if state == self.file_state:
            return
        self.file_state = state
        try:
            candidate = Classifier(self.path, self.device)
            if self.classifier and _is_same_model(candidate, self.classifier):
                self.problem = ""
                return
            self._self_test(candidate)
        except Exception as error:  # noqa: BLE001 - after any fault of the file, the old model stays in service
            reason = str(error) if state else f"{self.path} is gone"
            if not isinstance(error, ValueError):  # not the file's fault and perhaps temporary, such as full memory
                self.file_state, reason = None, f"{self.path} cannot be served yet ({type(error).__name__}: {error})"
            self._refuse(reason)
            return
        self.monitor.watch(candidate.version, candidate.header)
        self.classifier, self.problem = candidate, ""
        log.warning("model %s is in service", candidate.version)

    def _refuse(self, reason: str) -> None:
        problem = f"{reason}; model {self.classifier.version} stays in service" if self.classifier else reason
        if problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem

    def _read_file_state(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _self_test(self, candidate: Classifier) -> None:
        """Warm up a model, and compare its answers with those of its promotion. Raises ValueError."""
        reference = candidate.header.get("reference")
        if reference is None:
            size = candidate.image_size
            images = [np.array(draw(0, max(32, size), 0).resize((size, size)))]
        else:
            files, expected, distances = known_answers(reference)
            images = [candidate.decode(file) for file in files]
        answers = [self._submit(candidate, image, saliency=True).result() for image in images]
        probabilities = np.array([[*answer.probabilities.values()] for answer in answers])
        if not np.isfinite(probabilities).all():
            raise ValueError(f"{self.path} fails its self-test: its probabilities are not finite")
        if reference is None:
            return
        ratios = np.array([answer.distance for answer in answers]) / distances
        if np.abs(probabilities - expected).max() > TOLERANCE or ratios.max() > FACTOR or ratios.min() < 1 / FACTOR:
            changed = "its answers have changed since its promotion; promote it again"
            raise ValueError(f"{self.path} fails its self-test: {changed}")

    def _submit(self, classifier: Classifier, image: np.ndarray, *, saliency: bool) -> Future[Answer]:
        job = _Job(classifier, image, saliency, Future())
        self.jobs.put(job)
        return job.done

    def _update(self) -> None:
        """Check the model file, update the monitor and report to Comet."""
        self.reload_if_changed()
        report = self.monitor.tick()
        if self.reporter:
            self.reporter.send(report)

    def _answer_jobs(self) -> None:
        """Answer the waiting jobs, one batch at a time; images for the same model go together."""
        while True:
            jobs = [self.jobs.get()]
            with suppress(Empty):
                while len(jobs) < self.max_batch:
                    jobs.append(self.jobs.get_nowait())
            for classifier in dict.fromkeys(job.classifier for job in jobs):
                _answer_batch([job for job in jobs if job.classifier is classifier])


def _is_same_model(one: Classifier, other: Classifier) -> bool:
    """Return whether two files differ in their test figures alone: a champion's are rewritten at each comparison."""
    headers = []
    for header in (one.header, other.header):
        metrics = {name: value for name, value in header["metrics"].items() if name != "test"}
        headers.append({**header, "metrics": metrics, "sha256": ""})
    return headers[0] == headers[1] and have_same_weights(one.model, other.model)


def _answer_batch(jobs: Sequence[_Job]) -> None:
    try:
        images = np.stack([job.image for job in jobs])
        answers = jobs[0].classifier.answer(images, saliency=any(job.saliency for job in jobs))
    except Exception as error:  # noqa: BLE001 - raised again in the threads that wait
        for job in jobs:
            job.done.set_exception(error)
        return
    for job, answer in zip(jobs, answers, strict=True):
        job.done.set_result(answer if job.saliency else replace(answer, saliency=NO_SALIENCY))
