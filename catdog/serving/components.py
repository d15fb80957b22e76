"""Gradio components that neither decode nor fetch their inputs, and write no files for their outputs."""

import binascii
import html
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from catdog.data.decode import MAX_BYTES
from catdog.serving import render

# Output of an unchanged image. After gr.skip(), Gradio makes the component anew, without the methods replaced here.
UNCHANGED = object()


def make_image(**options: Any) -> gr.Image:
    """Return an image component whose input is the file's content, and whose output is a data URL.

    Methods are replaced one by one, because Gradio writes a stub file beside the source of every subclass.
    """
    image = gr.Image(**options)
    image.preprocess, image.postprocess = _read_content, _to_image_data  # type: ignore[method-assign]
    image.async_move_resource_to_block_cache = _check_uploaded  # type: ignore[method-assign, assignment]
    return image


def make_files(**options: Any) -> gr.File:
    """Return a component for many uploaded files."""
    files = gr.File(file_count="multiple", **options)
    files.async_move_resource_to_block_cache = _check_uploaded  # type: ignore[method-assign, assignment]
    return files


def make_gallery(**options: Any) -> gr.Gallery:
    """Return a gallery of (data URL, caption)."""
    gallery = gr.Gallery(**options)
    gallery.postprocess = _to_gallery_data  # type: ignore[method-assign]
    return gallery


def _read_content(payload: Any) -> Any:
    if payload is None:
        return None
    try:
        if payload.url and payload.url.startswith("data:"):
            return b64decode(payload.url.partition(",")[2], validate=True)
        with uploaded(payload.path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except binascii.Error as problem:
        raise error("the image's data URL is not valid base64") from problem
    except OSError as problem:
        raise error("the upload has expired; send it again") from problem


def uploaded(path: str | None) -> Path:
    """Return an uploaded file. Raises gr.Error for any other file of this machine; Gradio itself admits some."""
    file = Path(path or "").resolve()
    if not file.is_relative_to(get_upload_folder()) or (file.exists() and not file.is_file()):
        raise error("this file was not uploaded")
    return file


async def _check_uploaded(path: str | Path | None) -> str | None:
    """Replace Gradio's function that copies any file and fetches any URL."""
    return str(uploaded(str(path))) if path else None


def _to_image_data(value: Any) -> Any:
    if value is UNCHANGED:
        return gr.skip()
    return None if value is None else {"url": render.image_url(value)}


def _to_gallery_data(value: Any) -> Any:
    return [{"image": {"url": url}, "caption": caption} for url, caption in value or []]


def answer_wrong_arguments(blocks: gr.Blocks, arguments: Mapping[str, str]) -> None:
    """Answer a call whose arguments Gradio refuses with one sentence; `arguments` describes those of each function."""
    preprocess = blocks.preprocess_data

    async def preprocess_data(function: Any, *inputs: Any, **options: Any) -> Any:
        try:
            return await preprocess(function, *inputs, **options)
        except gr.Error:
            raise
        except ValueError as problem:
            wanted = arguments.get(function.api_name, "what /gradio_api/info lists")
            raise error(f"the arguments are not those of {function.api_name}; give {wanted}") from problem

    blocks.preprocess_data = preprocess_data  # type: ignore[method-assign, assignment]


def error(sentence: str) -> gr.Error:
    """Return an error for the page, which shows it as HTML, and for the API, to which quotes are just quotes."""
    return gr.Error(html.escape(sentence, quote=False), print_exception=False)
