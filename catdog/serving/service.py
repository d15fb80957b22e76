"""The model in service: answers many threads at once; a new champion takes its place between two answers."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

from catdog.data.synthetic import draw
from catdog.predict import Answer, Classifier
from catdog.serving.monitor import Monitor
from catdog.serving.reference import known_answers

__all__ = ["Reply", "Service", "UnavailableError"]

MAX_BATCH = {"cpu": 4, "cuda": 64}  # pictures computed together; a CPU is no faster with more
WATCH_SECONDS = 0.5  # between two looks at the champion's file
TOLERANCE = 0.05  # of a probability, beside what was answered at promotion: bfloat16 and devices differ
FACTOR = 1.3  # likewise of a distance
NO_CHAMPION = "no champion: {} does not exist; python run_sweep.py trains and promotes one"

NO_HEAT = np.zeros((0, 0), dtype=np.float32)

log = logging.getLogger("catdog")


class UnavailableError(RuntimeError):
    """There is no model to answer; the message is one sentence that says why."""


@dataclass(frozen=True)
class Reply:
    """An answer, and who gave it."""

    answer: Answer
    version: str  # of the model: the first twelve digits of its hash
    seconds: float  # from the picture's decoding to the answer


@dataclass(frozen=True)
class _Job:
    classifier: Classifier
    image: np.ndarray  # (S, S, 3) uint8, of the classifier's size
    heat: bool
    done: Future[Answer]


class Service:
    """Serves the champion in the file `path`, whichever that is at the moment.

    A file that appears there is verified, loaded, tried on the pictures whose answers it carries, and only then takes
    the place of the one before; one that fails is refused, and the one before stays.
    """

    def __init__(self, path: Path, device: str, monitor: Monitor) -> None:
        self.path, self.device, self.monitor = path, device, monitor
        self.classifier: Classifier | None = None
        self.problem = NO_CHAMPION.format(path)  # why what is there is not served
        self.max_batch = MAX_BATCH[device.partition(":")[0]]
        self.seen: tuple[int, int, int] | None = None  # the file that was looked at last
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.over = threading.Event()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._compute, self._watch)]

    def start(self) -> None:
        """Begin to compute and to watch the file; the champion that is there is in service when this returns."""
        self.threads[0].start()
        self.look_for_champion()
        if self.seen is None:
            log.warning("%s", self.problem)
        self.threads[1].start()

    def stop(self) -> None:
        self.over.set()

    def ask(self, picture: bytes, *, heat: bool = False) -> Reply:
        """Say what the content of an image file shows. Raises ValueError, one sentence, and UnavailableError."""
        classifier, began = self.classifier, time.perf_counter()
        if classifier is None:
            raise UnavailableError(self.problem)
        try:
            image = classifier.decode(picture)
        except ValueError:
            self.monitor.failed("refused")
            raise
        try:
            answer = self._submit(classifier, image, heat=heat).result()
        except Exception:
            self.monitor.failed("failed")
            raise
        seconds = time.perf_counter() - began
        self.monitor.answered(
            classifier.version, answer.label, answer.margin, familiar=answer.familiar, seconds=seconds
        )
        return Reply(answer, classifier.version, seconds)

    def look_for_champion(self) -> None:
        """Put what is in the file into service, if it is new and good; else remember why not."""
        seen = self._signature()
        if seen == self.seen:
            return
        self.seen = seen
        stays = f"; model {self.classifier.version} stays in service" if self.classifier else ""
        try:
            candidate = Classifier(self.path, self.device)
            self._try(candidate)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the one before goes on
            what = str(error) if seen else f"{self.path} is gone"
            if not isinstance(error, ValueError):  # not the file's fault, and may pass: the memory was full, say
                self.seen, what = None, f"{self.path} cannot be served yet ({type(error).__name__}: {error})"
            before, self.problem = self.problem, f"{what}{stays}"
            if self.problem != before:
                log.warning("%s", self.problem)
            return
        self.monitor.serve(candidate.version, candidate.header)
        self.classifier, self.problem = candidate, ""
        log.warning("model %s is in service", candidate.version)

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _try(self, candidate: Classifier) -> None:
        """Warm it up and compare it with what it answered when it was promoted. Raises ValueError."""
        reference = candidate.header.get("reference")
        if reference is None:
            image = np.array(draw(0, max(32, candidate.image_size), 0).resize((candidate.image_size,) * 2))
            pictures = [image]
        else:
            files, expected, distances = known_answers(reference)
            pictures = [candidate.decode(file) for file in files]
        answers = [self._submit(candidate, picture, heat=True).result() for picture in pictures]
        given = np.array([[*answer.probabilities.values()] for answer in answers])
        if not np.isfinite(given).all():
            raise ValueError(f"{self.path} answers with what is no number")
        if reference is None:
            return
        ratios = np.array([answer.distance for answer in answers]) / distances
        if np.abs(given - expected).max() > TOLERANCE or ratios.max() > FACTOR or ratios.min() < 1 / FACTOR:
            raise ValueError(f"{self.path} answers otherwise than when it was promoted; promote it again")

    def _submit(self, classifier: Classifier, image: np.ndarray, *, heat: bool) -> Future[Answer]:
        job = _Job(classifier, image, heat, Future())
        self.jobs.put(job)
        return job.done

    def _watch(self) -> None:
        while not self.over.wait(WATCH_SECONDS):
            try:
                self.look_for_champion()
                self.monitor.tick()
            except Exception:
                log.exception("the watch over the champion goes on")

    def _compute(self) -> None:
        """Answer what waits: pictures for the same model together, one batch at a time."""
        while True:
            jobs = [self.jobs.get()]
            while len(jobs) < self.max_batch:
                try:
                    jobs.append(self.jobs.get_nowait())
                except Empty:
                    break
            for classifier in {id(job.classifier): job.classifier for job in jobs}.values():
                _answer([job for job in jobs if job.classifier is classifier])


def _answer(jobs: Sequence[_Job]) -> None:
    try:
        images = np.stack([job.image for job in jobs])
        answers = jobs[0].classifier.answer(images, heat=any(job.heat for job in jobs))
    except Exception as error:  # noqa: BLE001 - those who wait are told, the next batch may fare better
        for job in jobs:
            job.done.set_exception(error)
        return
    for job, answer in zip(jobs, answers, strict=True):
        job.done.set_result(answer if job.heat else replace(answer, heat=NO_HEAT))
