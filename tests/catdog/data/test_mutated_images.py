"""Mutated image files: an image of the right shape or one sentence, soon and in little memory.

A process of its own decodes them, so that its time and memory are those of the decoder.
"""

import base64
import json
import re
import struct
import subprocess
import sys
import tempfile
from functools import cache
from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from catdog.data.synthetic import draw
from tests.conftest import ROOT

SIZE = 32
LIMIT_SECONDS, LIMIT_BYTES = 5, 2**30
DECODER = rf"""
import base64, json, re, signal, sys, time
from catdog.data.decode import decode_image, read_image
signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever C code it is in
for line in sys.stdin:
    content, answers = base64.b64decode(line), []
    start = time.process_time()
    signal.alarm(60)
    for read in (decode_image, read_image):
        try:
            image = read(content, {SIZE})
            answers.append(list(getattr(image, "shape", None) or (*image.size, len(image.mode))))
        except ValueError as error:
            answers.append(str(error))
    signal.alarm(0)
    with open("/proc/self/status") as status:  # ru_maxrss would begin with what the parent had at the fork
        memory = 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read())[1])
    print(json.dumps([answers, time.process_time() - start, memory]), flush=True)
"""


@cache
def samples():
    """Small files of four formats in several modes, with EXIF, by name."""
    animal, exif = draw(0, 48, 7), Image.Exif()
    exif[0x112], exif[0x110], exif[0x9204] = 6, "camera", 0.5
    deep = Image.fromarray((np.asarray(animal.convert("L")).astype(np.uint16)) << 4)
    files = {}
    for form, modes, options in (
        ("JPEG", ("RGB", "L", "CMYK"), {"exif": exif}),
        ("JPEG", ("RGB",), {"progressive": True, "xmp": b'tiff:Orientation="3"'}),
        ("PNG", ("RGB", "L", "P", "RGBA", "LA", "1"), {"exif": exif}),
        ("WEBP", ("RGB", "RGBA"), {"exif": exif}),
        ("WEBP", ("RGB",), {"lossless": True}),
        ("TIFF", ("RGB", "L", "P", "RGBA", "CMYK", "1", "F"), {"exif": exif}),
        ("TIFF", ("RGB", "L"), {"compression": "tiff_lzw"}),
        ("TIFF", ("RGB",), {"compression": "jpeg"}),
        ("TIFF", ("1",), {"compression": "group4"}),
    ):
        for mode in modes:
            files[f"{form} {mode} {' '.join(options)}"] = saved(animal.convert(mode), form, **options)
    return files | {f"{form} I;16": saved(deep, form) for form in ("PNG", "TIFF")}


def saved(image, form, **options):
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@st.composite
def mutated(draw):
    """A file with changed bytes, numbers, order or length; most changes are near its beginning, where the header is."""
    content = bytearray(draw(st.sampled_from(list(samples().values()))))
    for _ in range(draw(st.integers(1, 4))):
        within = draw(st.sampled_from((32, 256, len(content))))
        place = draw(st.integers(0, max(0, min(within, len(content)) - 1)))
        kind = draw(st.sampled_from(("byte", "bit", "number", "cut", "drop", "repeat", "swap")))
        if kind == "byte":
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "bit" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            number = draw(
                st.sampled_from((0, 1, 9, 255, 4096, 20_000, 65_535, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1))
            )
            form = draw(st.sampled_from((">I", "<I", ">H", "<H")))
            packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
            content[place : place + len(packed)] = packed
        elif kind == "cut":
            del content[place:]
        elif kind == "drop":
            del content[place : place + draw(st.integers(1, 64))]
        elif kind == "repeat":
            content[place:place] = content[place : place + draw(st.integers(1, 64))]
        else:
            other = draw(st.integers(0, max(0, len(content) - 1)))
            content[place : place + 4], content[other : other + 4] = (
                content[other : other + 4],
                content[place : place + 4],
            )
    return bytes(content)


@pytest.fixture(scope="module")
def decode():
    """Decode in another process. No warning of Python's is printed; libtiff prints a line now and then."""
    pipe, command = subprocess.PIPE, [sys.executable, "-c", DECODER]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, cwd=ROOT) as process,
    ):

        def ask(content):
            process.stdin.write(base64.b64encode(content) + b"\n")
            process.stdin.flush()
            return process.stdout.readline()

        yield ask
        process.stdin.close()
        assert process.wait() == 0
        errors.seek(0)
        assert not re.search(rb"Warning|Traceback", errors.read())


def check(decode, content):
    line = decode(content)
    assert line, "the decoder has ended: a traceback or a hang"
    answers, seconds, memory = json.loads(line)
    for answer in answers:
        if isinstance(answer, str):
            assert answer.isprintable()
            assert 10 < len(answer) < 200
        else:
            assert answer == [SIZE, SIZE, 3]
    assert seconds < LIMIT_SECONDS
    assert memory < LIMIT_BYTES


OPTIONS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def test_samples_are_images(decode):
    for name, content in samples().items():
        assert json.loads(decode(content))[0] == [[SIZE, SIZE, 3]] * 2, name


@settings(max_examples=100, derandomize=True, **OPTIONS)
@given(content=mutated())
def test_mutated_file_is_an_image_or_one_sentence(decode, content):
    check(decode, content)


@pytest.mark.slow
@settings(max_examples=2000, **OPTIONS)
@given(content=mutated())
def test_thousands_of_mutated_files_are_images_or_one_sentence_each(decode, content):
    check(decode, content)
