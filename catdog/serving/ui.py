"""The page: its tabs, and the functions behind them, which are also its API."""

import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from gradio.events import api
from gradio.route_utils import FnIndexInferError

from catdog.data.decode import decode_preview
from catdog.data.sources import CLASSES
from catdog.data.synthetic import draw
from catdog.serving import render
from catdog.serving.charts import draw_charts
from catdog.serving.components import (
    UNCHANGED,
    answer_wrong_arguments,
    error,
    make_files,
    make_gallery,
    make_image,
    uploaded,
)
from catdog.serving.model_card import model_card
from catdog.serving.service import Service, UnavailableError
from catdog.serving.uploads import MAX_IMAGES, ImageFile, unpack

PREVIEW_SIZE, THUMBNAIL_SIZE = 640, 160  # pixels, at most
STATE_SECONDS, PLOT_SECONDS = 2, 5  # between two updates of an open page
UPLOAD_LIFETIME_SECONDS = 300.0  # seconds; requests in the queue need their uploads
MAX_QUEUED = 5  # requests with many images; further ones are refused
NUM_PARALLEL = 4  # images of one such request at a time, so that other requests get a turn
EXAMPLE_SEEDS, EXAMPLE_SIZE = (1, 6, 12, 20), 256
MANY_HINT = f"Up to {MAX_IMAGES} images. A file that cannot be read is listed in the table."
OPTIONS: dict[str, Any] = {
    "show_error": True,
    "ssr_mode": False,
    "run_history": False,
    "footer_links": ["api", "settings"],
    "theme": gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),  # no downloads
    "css_paths": [Path(__file__).with_name("ui.css")],
}
FILE = "gradio_client.handle_file(PATH)"
ARGUMENTS = {"classify": f"an image file, {FILE}, and true or false", "many": f"a list of files, [{FILE}, ...]"}
PRIVATE: dict[str, Any] = {"queue": False, "api_visibility": "private"}
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "many"}
QUIET = {**PRIVATE, "show_progress": "hidden"}

log = logging.getLogger("catdog")


class Page:
    """The page of one service."""

    def __init__(self, service: Service, folder: Path) -> None:
        """Draw the example images into `folder`, which is also where Gradio keeps uploads."""
        self.service, self.folder = service, folder
        self.examples = [folder / f"example-{seed}.png" for seed in EXAMPLE_SEEDS]
        for index, (seed, path) in enumerate(zip(EXAMPLE_SEEDS, self.examples, strict=True)):
            draw(index % 2, EXAMPLE_SIZE, seed).save(path)
        self.blocks = self._build()
        self.own_files = set(folder.rglob("*"))

    def mount(self, app: FastAPI, *, auth: tuple[str, str] | None, root_path: str, max_upload: int) -> FastAPI:
        options = {"auth": auth, "root_path": root_path or None, "max_file_size": max_upload, **OPTIONS}
        mounted: FastAPI = gr.mount_gradio_app(app, self.blocks, "/", **options)
        page: Any = mounted.routes[-1]
        page.app.add_exception_handler(FnIndexInferError, _name_functions)
        return mounted

    def delete_uploads(self) -> None:
        """Delete uploads older than UPLOAD_LIFETIME_SECONDS. Gradio's own deletion ends at its first race."""
        deleted = set()
        for path in set(self.folder.rglob("*")) - self.own_files:
            with suppress(OSError):  # a folder that is not empty, or a file that is being sent again
                if time.time() - path.stat().st_ctime > UPLOAD_LIFETIME_SECONDS:
                    path.rmdir() if path.is_dir() else path.unlink()
                    deleted.add(str(path))
        for names in self.blocks.temp_file_sets:
            names.difference_update(deleted)

    def _build(self) -> gr.Blocks:
        blocks: gr.Blocks
        with gr.Blocks(title="cat or dog", analytics_enabled=False) as blocks:
            state = gr.HTML(render.state_line(self.service), elem_id="state")
            with gr.Tabs():
                with gr.Tab("Classify") as classify:
                    self._build_classify()
                with gr.Tab("Many at once") as many:
                    self._build_many()
                with gr.Tab("Model") as model:
                    model_outputs = self._build_model()
                with gr.Tab("Monitor") as monitor:
                    monitor_outputs = self._build_monitor()
            self._build_api()
            timer, plot_timer, known = gr.Timer(STATE_SECONDS), gr.Timer(PLOT_SECONDS, active=False), gr.State("")
            gr.on([timer.tick, blocks.load], self.refresh, known, [known, state, *model_outputs], **QUIET)
            gr.on([plot_timer.tick, monitor.select], self.plots, None, monitor_outputs, **QUIET)
            monitor.select(lambda: gr.Timer(active=True), None, plot_timer, **QUIET)
            others = [tab.select for tab in (classify, many, model)]
            gr.on(others, lambda: gr.Timer(active=False), None, plot_timer, **QUIET)
        answer_wrong_arguments(blocks, ARGUMENTS)
        blocks.queue(max_size=MAX_QUEUED, api_open=False)  # nothing that is queued may be called past the queue
        return blocks

    def _build_classify(self) -> None:
        with gr.Row():
            with gr.Column():
                sources = ["upload", "clipboard", "webcam"]
                image = make_image(label="Image", sources=sources, height=360, elem_id="picture")
                samples = [[str(path)] for path in self.examples]
                examples = gr.Dataset(label="Drawn examples", components=["image"], samples=samples, type="index")
            with gr.Column():
                verdict = gr.Label(label="Answer", elem_id="verdict")
                options: dict[str, Any] = {"interactive": False, "height": 300, "buttons": ["fullscreen"]}
                heat = make_image(label="Evidence for the answer", elem_id="heat", **options)
                facts = gr.HTML(elem_id="facts")
        outputs = [image, verdict, heat, facts]
        # "multiple", because a pasted image causes two events, of which the first is empty.
        image.input(self.show_one, image, outputs, show_progress_on=verdict, trigger_mode="multiple", **PRIVATE)
        image.clear(lambda: (None, None, ""), None, [verdict, heat, facts], **PRIVATE)
        examples.click(self.show_example, examples, outputs, show_progress_on=verdict, **PRIVATE)

    def _build_many(self) -> None:
        headings = render.to_table([], CLASSES)[0]
        files = make_files(label="Images or zip archives", height=160, elem_id="files")
        summary = gr.Markdown(MANY_HINT)
        download = gr.HTML(elem_id="download")
        gallery = make_gallery(label="Answers", columns=6, height="auto", object_fit="cover", elem_id="gallery")
        table = _make_table("Table", headings, 190, 270, 100, 100, 300)
        outputs = [summary, download, gallery, table]
        files.upload(self.show_many, files, outputs, api_visibility="private", **ONE_AT_A_TIME)
        files.clear(lambda: (MANY_HINT, "", [], {"headers": headings, "data": []}), None, outputs, **PRIVATE)

    def _build_model(self) -> list[Any]:
        problem = gr.HTML(elem_id="refusal")
        card = gr.Markdown(elem_id="card")
        history = _make_table("Former champions", ["number", "which", "until"], 100, 610, 250)
        return [problem, card, history]

    def _build_monitor(self) -> list[Any]:
        figures = gr.HTML(elem_id="cards")
        plots = []
        for _ in range(2):
            with gr.Row():
                plots += [gr.Plot(show_label=False), gr.Plot(show_label=False)]
        return [figures, *plots]

    def _build_api(self) -> None:
        """Add the functions of the API. Their docstrings are their descriptions there."""
        api(self.model)
        api(self.monitor)
        with gr.Row(visible=False):
            image, heat, files = make_image(label="image"), gr.Checkbox(label="heat"), make_files(label="files")
            gr.Button().click(self.classify, [image, heat], gr.JSON(), api_name="classify", queue=False)
            gr.Button().click(self.many, files, gr.JSON(), api_name="many", **ONE_AT_A_TIME)

    def show_one(self, content: bytes | None) -> tuple[Any, Any, Any, Any]:
        """Return the outputs of the Classify tab: image, label, heat map, facts."""
        if content is None:  # Gradio clears the component before it takes a pasted image, which may be here already
            return UNCHANGED, gr.skip(), UNCHANGED, gr.skip()
        try:
            reply = self.service.classify(content, saliency=True)
            image = decode_preview(content, PREVIEW_SIZE)
        except (ValueError, UnavailableError) as problem:
            return None, None, None, render.problem(str(problem))
        label = reply.answer.probabilities if reply.answer.familiar else render.verdict(reply)
        return image, label, render.overlay(image, reply.answer.saliency), render.facts(reply)

    def show_example(self, index: int) -> tuple[Any, Any, Any, Any]:
        return self.show_one(self.examples[index].read_bytes())

    def classify(self, content: bytes | None, heat: bool) -> dict[str, Any]:
        """Classify an image. With heat, also return a heat map: rows of numbers from 0 to 1."""
        if content is None:
            raise error("there is no image; choose one")
        try:
            return render.to_json(self.service.classify(content, saliency=heat))
        except (ValueError, UnavailableError) as problem:
            raise error(str(problem)) from problem

    def show_many(self, files: list[str] | None, progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        """Return the outputs of the Many tab: summary, download link, gallery, table."""
        replies = self._classify_files(files, progress)
        classifier = self.service.classifier
        headings, cells = render.to_table(replies, classifier.classes if classifier else CLASSES)
        thumbnails = [(one.thumbnail, one.caption) for one in replies if one.thumbnail]
        link = render.download_link(render.to_csv(headings, cells))
        return render.summary(replies), link, thumbnails, {"headers": headings, "data": cells}

    def many(self, files: list[str] | None, progress: gr.Progress = gr.Progress()) -> list[dict[str, Any]]:  # noqa: B008
        """Classify many images, or zip archives of images."""
        return [
            {"file": one.file.name, **(render.to_json(one.reply) if one.reply else {"problem": one.problem})}
            for one in self._classify_files(files, progress)
        ]

    def model(self) -> dict[str, Any]:
        """Return the header of the model in service."""
        if not self.service.classifier:
            raise error(self.service.problem)
        header = {key: value for key, value in self.service.classifier.header.items() if key != "reference"}
        # The folder of the images may have a name that is not UTF-8, which no answer may contain.
        shown: dict[str, Any] = json.loads(json.dumps(header, ensure_ascii=False).encode(errors="replace"))
        return shown

    def monitor(self) -> dict[str, Any]:
        """Return the monitor's figures and alerts."""
        return self.service.monitor.summary()

    def plots(self) -> list[Any]:
        """Return the outputs of the Monitor tab."""
        summary, points = self.service.monitor.summary(), self.service.monitor.points()
        return [render.monitor(summary), *draw_charts(summary, points)]

    def refresh(self, known: str) -> list[Any]:
        """Return the state line and the outputs of the Model tab if they have changed since `known`."""
        line, problem, classifier = render.state_line(self.service), self.service.problem, self.service.classifier
        if line + problem == known:
            return [gr.skip()] * 5
        card = model_card(classifier.header) if classifier else ""
        shown = render.problem(problem) if problem else ""
        return [line + problem, line, shown, card, render.history(self.service.path.parent)]

    def _classify_files(self, paths: Sequence[str] | None, progress: gr.Progress) -> list[render.ImageReply]:
        """Classify all images of some uploads, a few at a time."""
        try:
            files = unpack([(Path(path).name, uploaded(path)) for path in paths or []])
        except ValueError as problem:
            raise error(str(problem)) from problem
        except OSError as problem:
            raise error("the upload has expired; send it again") from problem
        with ThreadPoolExecutor(NUM_PARALLEL) as pool:
            replies = pool.map(self._classify_file, files)
            return list(progress.tqdm(replies, total=len(files), unit="images"))

    def _classify_file(self, file: ImageFile) -> render.ImageReply:
        if file.problem:
            return render.ImageReply(file, None, file.problem)
        try:
            reply = self.service.classify(file.content)
            thumbnail = render.image_url(decode_preview(file.content, THUMBNAIL_SIZE))
            return render.ImageReply(file, reply, thumbnail=thumbnail)
        except (ValueError, UnavailableError) as problem:
            return render.ImageReply(file, None, str(problem))
        except Exception:  # the other images still get an answer
            log.exception("one of many images had no answer")
            return render.ImageReply(file, None, "it could not be answered; try again")


def _name_functions(*_: object) -> JSONResponse:
    """Answer a call of a function that does not exist."""
    return JSONResponse({"error": "there is no such function; /gradio_api/info lists them"}, 404)


def _make_table(label: str, headings: list[str], *widths: int) -> gr.Dataframe:
    """Return a table with columns of fixed widths in pixels, because relative ones break words on a phone."""
    options: dict[str, Any] = {"interactive": False, "wrap": True, "column_widths": [f"{width}px" for width in widths]}
    return gr.Dataframe(label=label, headers=headings, elem_id=label.rpartition(" ")[2].lower(), **options)
