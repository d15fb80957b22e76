"""The page in a real browser."""

import re
import shutil
from base64 import b64decode, b64encode

import numpy as np
import pytest
from PIL import Image

from tests.catdog.data.test_decode import GOOD
from tests.catdog.serving.test_service import altered
from tests.catdog.test_app import animals
from tests.servers.app_server import HANG, AppServer

COPY = """async (text) => {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    await navigator.clipboard.write([new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})})]);
}"""
DROP = "Drop an image file here to upload"  # Gradio's words
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture
def visit(browser):
    """Open a page; in the end nothing must have been complained about, or fetched from elsewhere."""
    complaints, contexts = [], []

    def open_page(server, size=WIDE, query="", **options):
        context = browser.new_context(viewport=size, **options)
        context.set_default_timeout(1000 * HANG)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        ours = (server.url, "data:", "blob:")
        page.on("request", lambda one: None if one.url.startswith(ours) else complaints.append(one.url))
        with page.expect_response("**/gradio_api/run/**"):  # what a page asks for when its parts are there
            page.goto(server.url + query)
        page.get_by_label(DROP).wait_for()
        settle(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def cat_file(tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(animals(1, cats=1)[0])
    return path


def settle(page):
    """Wait until what the page has heard is drawn."""
    page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


def answer_of(page):
    """Wait for an answer: the label, and what else is said."""
    page.locator("#facts", has_text="Answered in").wait_for()
    return page.locator("#verdict h2").inner_text(), page.locator("#facts").inner_text()


def open_tab(page, name):
    """Choose a tab, on a phone perhaps among those that have no room."""
    if page.get_by_role("tab", name=name).count():
        page.get_by_role("tab", name=name).click()
    else:
        page.get_by_label("More tabs").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    settle(page)


def has_image(page, place):
    image = page.locator(f"{place} img").first
    image.wait_for()
    page.wait_for_function(f"document.querySelector('{place} img').naturalWidth > 0")
    return image.get_attribute("src").startswith("data:image/webp")


def test_chosen_image_is_answered_with_heat(visit, server, cat_file):
    page = visit(server)
    page.set_input_files("#picture input[type=file]", cat_file)
    label, facts = answer_of(page)
    assert label in ("cat", "dog") or label.startswith("probably neither")
    assert re.search(r"cat \d+\.\d%, dog \d+\.\d%.* Answered in \d+ ms by model [0-9a-f]{12}", facts)
    assert has_image(page, "#heat")
    assert has_image(page, "#picture")
    page.get_by_label("Clear").or_(page.get_by_label("Remove Image")).first.click()
    page.locator("#facts", has_text="Answered in").wait_for(state="hidden")


def test_pasted_image_is_answered(visit, server):
    page = visit(server, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(COPY, b64encode(GOOD["png"]).decode())
    page.get_by_label("Paste from clipboard").click()
    answer_of(page)
    assert has_image(page, "#heat")


def test_drawn_example_is_answered_by_a_click(visit, server):
    page = visit(server)
    page.locator(".gallery-item, .gallery button").first.click()
    answer_of(page)
    assert has_image(page, "#picture")


def test_strange_image_is_said_to_be_neither(visit, server, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    page = visit(server)
    page.set_input_files("#picture input[type=file]", tmp_path / "noise.png")
    label, facts = answer_of(page)
    assert label == "probably neither a cat nor a dog"
    assert "unlike the training images" in facts


def test_broken_image_is_one_sentence_on_the_page(visit, server, tmp_path):
    (tmp_path / "text.jpg").write_text("words")
    page = visit(server)
    page.set_input_files("#picture input[type=file]", tmp_path / "text.jpg")
    page.locator("#facts .problem", has_text="this file is not an image that can be read").wait_for()


def test_many_at_once_with_a_broken_one(visit, server, tmp_path):
    names = []
    for index, content in enumerate(animals(5)):
        (tmp_path / f"animal{index}.jpg").write_bytes(content)
        names.append(f"animal{index}.jpg")
    (tmp_path / "=broken().jpg").write_text("words")
    names.append("=broken().jpg")
    page = visit(server)
    page.get_by_role("tab", name="Many at once").click()
    page.set_input_files("#files input[type=file]", [tmp_path / name for name in names])
    page.get_by_text("5 answered").wait_for()
    assert page.get_by_text("1 without an answer").count() == 1
    assert page.locator("#gallery img").count() == 5
    assert page.locator("#gallery").get_by_text(": animal0.jpg").count() == 1
    assert has_image(page, "#gallery")
    assert page.locator("#table").get_by_text("this file is not an image that can be read").count() >= 1
    link = page.locator("#download a")
    lines = b64decode(link.get_attribute("href").partition(",")[2]).decode().splitlines()
    assert lines[0] == "file,label,cat,dog,problem"
    assert len(lines) == 7
    assert any(line.endswith("this file is not an image that can be read") for line in lines)
    assert not any(line.startswith("=") for line in lines)
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "answers.csv"


def test_model_tab_shows_the_card_and_monitor_tab_the_figures(visit, server):
    page = visit(server)
    page.get_by_role("tab", name="Model").click()
    for text in ("Metrics", "85.0% to 94.0%", "Trial 0 of the sweep", "Former champions"):
        page.get_by_text(text).first.wait_for()
    page.get_by_role("tab", name="Monitor").click()
    page.get_by_text("Drift needs 300 images").wait_for()
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 4")


def test_swap_and_refusal_are_seen_without_reloading(visit, tmp_path, champion):
    with AppServer(tmp_path) as server:
        page = visit(server)
        page.locator("#state", has_text="no champion").wait_for()
        assert page.locator("#state code").first.inner_text() == "python run_sweep.py"
        shutil.copy(champion(0), server.model)
        page.locator("#state", has_text="trial 0 of one").wait_for()
        shutil.copy(champion(1), server.model.with_name("new"))
        server.model.with_name("new").replace(server.model)
        page.locator("#state", has_text="trial 1 of one").wait_for()
        server.model.with_name("new").write_bytes(altered(champion(0)))
        server.model.with_name("new").replace(server.model)
        page.get_by_role("tab", name="Model").click()
        page.locator("#refusal", has_text="was altered").wait_for()
        assert "stays in service" in page.locator("#refusal").inner_text()
        page.context.close()


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_fits_light_and_dark_wide_and_phone(visit, server, size, theme, cat_file):
    page = visit(server, size, f"/?__theme={theme}")
    page.set_input_files("#picture input[type=file]", cat_file)
    answer_of(page)
    for tab in ("Classify", "Many at once", "Model", "Monitor"):
        open_tab(page, tab)
        page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth + 1")
    background = page.evaluate("getComputedStyle(document.querySelector('gradio-app')).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3]))
    assert (brightness > 384) == (theme == "light")


def test_keyboard_alone_is_enough(visit, server, cat_file):
    page = visit(server)
    page.on("filechooser", lambda _: None)  # from here on none opens unseen
    page.get_by_role("tab", name="Classify").focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel") == DROP:
            break
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(cat_file)
    answer_of(page)
    page.get_by_role("tab", name="Classify").focus()
    for tab in ("Many at once", "Model", "Monitor"):
        for _ in range(3):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent.trim()") == tab:
                break
        page.keyboard.press("Enter")
        assert page.get_by_role("tab", name=tab).get_attribute("aria-selected") == "true"
