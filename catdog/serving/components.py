"""Gradio's components as this app uses them: what is sent is neither decoded nor fetched; what is shown is no file."""

import binascii
import html
from base64 import b64decode
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from catdog.serving import render as show
from catdog.serving.uploads import MAX_BYTES

__all__ = ["UNCHANGED", "make_files", "make_gallery", "make_picture", "refusal", "uploaded"]


# Of a picture in an answer. Told by gr.skip(), Gradio makes the picture's part anew, without what is replaced here.
UNCHANGED = object()


def make_picture(**options: Any) -> gr.Image:
    """Return a picture that is not decoded on its way in, and on its way out stands in the answer, without a file.

    Its methods are replaced one by one because Gradio writes a stub beside the source of every class made from its own.
    """
    picture = gr.Image(**options)
    picture.preprocess, picture.postprocess = _content_of, _picture_in_answer  # type: ignore[method-assign]
    picture.async_move_resource_to_block_cache = _keep_where_it_is  # type: ignore[method-assign, assignment]
    return picture


def make_files(**options: Any) -> gr.File:
    """Return a place for many files."""
    files = gr.File(file_count="multiple", **options)
    files.async_move_resource_to_block_cache = _keep_where_it_is  # type: ignore[method-assign, assignment]
    return files


def make_gallery(**options: Any) -> gr.Gallery:
    """Return a gallery of data addresses and captions, without files too."""
    gallery = gr.Gallery(**options)
    gallery.postprocess = _gallery_in_answer  # type: ignore[method-assign]
    return gallery


def _content_of(payload: Any) -> Any:
    """Return the content of the file that was sent."""
    if payload is None:
        return None
    try:
        if payload.url and payload.url.startswith("data:"):
            return b64decode(payload.url.partition(",")[2], validate=True)
        with uploaded(payload.path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except binascii.Error as error:
        raise refusal("the picture's address is no base64") from error
    except OSError as error:
        raise refusal("the upload is gone; send it again") from error


def uploaded(path: str | None) -> Path:
    """Return an uploaded file, and refuse all others of this machine: Gradio lets some of them through."""
    file = Path(path or "").resolve()
    if not file.is_relative_to(get_upload_folder()) or (file.exists() and not file.is_file()):
        raise refusal("this file was not uploaded")
    return file


async def _keep_where_it_is(address: str | Path | None) -> str | None:
    """Take the place of Gradio's copying of what was sent, and of its fetching of what stands elsewhere."""
    return str(uploaded(str(address))) if address else None


def _picture_in_answer(value: Any) -> Any:
    if value is UNCHANGED:
        return gr.skip()
    return None if value is None else {"url": show.data_address(value)}


def _gallery_in_answer(value: Any) -> Any:
    return [{"image": {"url": address}, "caption": caption} for address, caption in value or []]


def refusal(sentence: str) -> gr.Error:
    return gr.Error(html.escape(sentence), print_exception=False)
