"""The page around the service: Gradio's own components, and the functions behind them, which its API offers too."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from catdog.data.sources import CLASSES
from catdog.data.synthetic import draw
from catdog.serving import render as show
from catdog.serving.charts import charts
from catdog.serving.components import UNCHANGED, make_files, make_gallery, make_picture, refusal, uploaded
from catdog.serving.model_card import headline, model_card
from catdog.serving.service import Reply, Service, UnavailableError
from catdog.serving.uploads import MAX_PICTURES, Item, preview, unpack

__all__ = ["Page"]

PREVIEW, THUMBNAIL = 640, 160  # pixels, at most
TICK_SECONDS, PLOT_SECONDS = 2, 5  # between two looks of an open page at the service
UPLOADS_KEPT = 300.0  # seconds; a request that waits for its turn needs them
MAX_WAITING = 5  # requests with many pictures; the next one is told to come again
AT_ONCE = 4  # of their pictures, so that others get a turn
EXAMPLE_SEEDS, EXAMPLE_SIZE = (3, 5, 12, 16), 256
MANY = "A broken one among them is named in the table and does not stop the others."

log = logging.getLogger("catdog")
CSS = Path(__file__).with_name("ui.css")


class Page:
    """The page, and the functions that it calls."""

    def __init__(self, service: Service, folder: Path) -> None:
        """Use `folder` for the drawn examples."""
        self.service, self.monitor, self.folder = service, service.monitor, folder
        self.examples = [folder / f"example-{seed}.png" for seed in EXAMPLE_SEEDS]
        for index, path in enumerate(self.examples):
            draw(index % 2, EXAMPLE_SIZE, EXAMPLE_SEEDS[index]).save(path)

    def build(self) -> gr.Blocks:
        page: gr.Blocks
        with gr.Blocks(title="cat or dog", analytics_enabled=False) as page:
            state = gr.HTML(self.state_line(), elem_id="state")
            with gr.Tabs():
                with gr.Tab("Classify") as classify:
                    self._build_classify()
                with gr.Tab("Many at once") as many:
                    self._build_many()
                with gr.Tab("Model") as model:
                    shown = self._build_model()
                with gr.Tab("Monitor") as monitor:
                    plots = self._build_monitor()
            timer, plot_timer, known = gr.Timer(TICK_SECONDS), gr.Timer(PLOT_SECONDS, active=False), gr.State("")
            quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
            gr.on([timer.tick, page.load], self.refresh, known, [known, state, *shown], **quiet)
            gr.on([plot_timer.tick, monitor.select], self.plots, None, plots, **quiet)
            monitor.select(lambda: gr.Timer(active=True), None, plot_timer, **quiet)
            others = [tab.select for tab in (classify, many, model)]
            gr.on(others, lambda: gr.Timer(active=False), None, plot_timer, **quiet)
        page.queue(max_size=MAX_WAITING, api_open=False)  # nothing that is queued may be called past the queue
        self.blocks, self.own_files = page, set(self.folder.rglob("*"))
        return page

    def delete_uploads(self) -> None:
        """Delete what was sent more than UPLOADS_KEPT ago. Gradio's own way of doing so ends at the first race."""
        deleted = set()
        for path in set(self.folder.rglob("*")) - self.own_files:
            with suppress(OSError):  # a folder that is not empty, or sent again at this moment
                if time.time() - path.stat().st_ctime > UPLOADS_KEPT:
                    path.rmdir() if path.is_dir() else path.unlink()
                    deleted.add(str(path))
        for names in self.blocks.temp_file_sets:
            names.difference_update(deleted)

    def _build_classify(self) -> None:
        with gr.Row():
            with gr.Column():
                picture = make_picture(
                    label="Picture", sources=["upload", "clipboard", "webcam"], height=360, elem_id="picture"
                )
                examples = gr.Dataset(
                    label="Drawn examples",
                    components=[gr.Image(visible=False)],
                    samples=[[str(path)] for path in self.examples],
                    type="index",
                )
            with gr.Column():
                verdict = gr.Label(label="Answer", elem_id="verdict")
                heat = make_picture(
                    label="What spoke for it", interactive=False, height=300, elem_id="heat", buttons=["fullscreen"]
                )
                facts = gr.HTML(elem_id="facts")
        outputs = [picture, verdict, heat, facts]
        private: dict[str, Any] = {"api_visibility": "private", "queue": False}
        # As often as it comes: for a pasted picture twice at once, empty at first.
        picture.input(self.show_one, picture, outputs, show_progress_on=verdict, trigger_mode="multiple", **private)
        examples.click(self.show_example, examples, outputs, show_progress_on=verdict, **private)
        picture.clear(lambda: (None, None, ""), None, [verdict, heat, facts], **private)
        with gr.Row(visible=False):  # what programs call
            sent, wanted, told = make_picture(label="picture"), gr.Checkbox(label="heat"), gr.JSON()
            gr.Button().click(
                self.classify, [sent, wanted], told, api_name="classify", queue=False,
                api_description="Say what a picture shows; with heat also where, as rows of numbers from 0 to 1.",
            )  # fmt: skip

    def _build_many(self) -> None:
        files = make_files(
            label=f"Pictures, or zip archives of them, at most {MAX_PICTURES}",
            height=160, elem_id="files",
        )  # fmt: skip
        summary = gr.Markdown(MANY)
        download = gr.HTML(elem_id="download")
        gallery = make_gallery(label="Answers", columns=6, height="auto", object_fit="cover", elem_id="gallery")
        headings = show.as_table([], CLASSES)[0]
        table = gr.Dataframe(label="Table", headers=headings, interactive=False, wrap=True, elem_id="table")
        outputs = [summary, download, gallery, table]
        files.upload(
            self.show_many, files, outputs, concurrency_limit=1, concurrency_id="many", api_visibility="private"
        )
        nothing = {"headers": headings, "data": []}
        files.clear(lambda: (MANY, "", [], nothing), None, outputs, queue=False, api_visibility="private")
        with gr.Row(visible=False):
            sent, told = make_files(label="files"), gr.JSON()
            gr.Button().click(
                self.many, sent, told, api_name="many", concurrency_limit=1, concurrency_id="many",
                api_description="Say what several pictures, or zip archives of them, show.",
            )  # fmt: skip

    def _build_model(self) -> list[Any]:
        refusal = gr.HTML(elem_id="refusal")
        card = gr.Markdown(elem_id="card")
        before = gr.Dataframe(
            label="Champions before", headers=["number", "which", "until"], interactive=False, wrap=True
        )
        with gr.Row(visible=False):
            told = gr.JSON()
            gr.Button().click(
                self.model, None, told, api_name="model", api_description="Return the header of the model in service."
            )
        return [refusal, card, before]

    def _build_monitor(self) -> list[Any]:
        cards = gr.HTML(elem_id="cards")
        with gr.Row():
            requests, latency = gr.Plot(show_label=False), gr.Plot(show_label=False)
        with gr.Row():
            drift, classes = gr.Plot(show_label=False), gr.Plot(show_label=False)
        with gr.Row(visible=False):
            told = gr.JSON()
            gr.Button().click(
                self.figures, None, told, api_name="monitor", api_description="Return what is watched, and the alerts."
            )
        return [cards, requests, latency, drift, classes]

    def show_one(self, content: bytes | None) -> tuple[Any, Any, Any, Any]:
        """Return what the page shows of one picture: itself, the label, what spoke for it, what else to say."""
        if content is None:  # Gradio empties its place before it takes a pasted one, which may be there by now
            return UNCHANGED, gr.skip(), UNCHANGED, gr.skip()
        try:
            reply = self.service.ask(content, heat=True)
            picture = preview(content, PREVIEW)
        except (ValueError, UnavailableError) as error:
            return None, None, None, show.problem(str(error))
        label = reply.answer.probabilities if reply.answer.familiar else show.verdict(reply)
        return picture, label, show.heat_over(picture, reply.answer.heat), show.facts(reply)

    def show_example(self, index: int) -> tuple[Any, Any, Any, str]:
        return self.show_one(self.examples[index].read_bytes())

    def classify(self, content: bytes | None, heat: bool) -> dict[str, Any]:
        return show.as_dict(self._ask(content, heat=heat))

    def show_many(self, files: list[str] | None, progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        """Return what the page shows of many pictures."""
        rows = self._answer_all(files, progress)
        headings, cells = show.as_table(rows, self._classes())
        thumbnails = [(row.thumbnail, row.caption) for row in rows if row.thumbnail]
        link = show.download_link(show.as_csv(headings, cells))
        return show.summary(rows), link, thumbnails, {"headers": headings, "data": cells}

    def many(self, files: list[str] | None) -> list[dict[str, Any]]:
        return [
            {"file": row.item.name, **(show.as_dict(row.reply) if row.reply else {"problem": row.problem})}
            for row in self._answer_all(files, None)
        ]

    def model(self) -> dict[str, Any]:
        if not self.service.classifier:
            raise refusal(self.service.problem)
        return {key: value for key, value in self.service.classifier.header.items() if key != "reference"}

    def figures(self) -> dict[str, Any]:
        return self.monitor.summary()

    def state_line(self) -> str:
        classifier = self.service.classifier
        version, which = (classifier.version, headline(classifier.header)) if classifier else ("", "")
        return show.state_line(version, which, self.service.problem)

    def refresh(self, known: str) -> list[Any]:
        """Return the state and, where it has changed, what the Model tab shows."""
        line, problem, classifier = self.state_line(), self.service.problem, self.service.classifier
        if line + problem == known:
            return [gr.skip()] * 5
        card = model_card(classifier.header) if classifier else ""
        refused = show.problem(problem) if problem else ""
        return [line + problem, line, refused, card, show.history(self.service.path.parent)]

    def plots(self) -> list[Any]:
        summary, intervals = self.monitor.summary(), self.monitor.points()
        return [show.cards(summary), *charts(summary, intervals)]

    def _ask(self, content: bytes | None, *, heat: bool) -> Reply:
        if content is None:
            raise refusal("there is no picture; choose one")
        try:
            return self.service.ask(content, heat=heat)
        except (ValueError, UnavailableError) as error:
            raise refusal(str(error)) from error

    def _answer_all(self, files: list[str] | None, progress: gr.Progress | None) -> list[show.Row]:
        """Answer every picture of some files, a few at a time; tell the progress bar."""
        try:
            items = unpack([(Path(file).name, uploaded(file)) for file in files or []])
        except ValueError as error:
            raise refusal(str(error)) from error
        except OSError as error:
            raise refusal("the upload is gone; send it again") from error
        with ThreadPoolExecutor(AT_ONCE) as pool:
            rows = []
            for row in pool.map(self._answer_one, items):
                rows.append(row)
                if progress:
                    progress((len(rows), len(items)), unit="pictures")
        return rows

    def _answer_one(self, item: Item) -> show.Row:
        if item.problem:
            return show.Row(item, None, item.problem)
        try:
            reply = self.service.ask(item.content)
            return show.Row(item, reply, thumbnail=show.data_address(preview(item.content, THUMBNAIL)))
        except (ValueError, UnavailableError) as error:
            return show.Row(item, None, str(error))
        except Exception:  # the others shall have their answers
            log.exception("one of many pictures had no answer")
            return show.Row(item, None, "it could not be answered; try again")

    def _classes(self) -> Sequence[str]:
        return self.service.classifier.classes if self.service.classifier else CLASSES
