"""The app in a process of its own, through its API."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from catdog.app import _is_open, main, read_auth
from catdog.checkpoint import read_header
from catdog.data.synthetic import draw
from catdog.predict import Classifier
from catdog.serving.server import MAX_CALL_BODY, MAX_UPLOAD, listen
from tests.catdog.data.test_decode import GOOD, bomb_of, saved
from tests.catdog.serving.test_service import asked_all_the_time
from tests.conftest import ROOT
from tests.search.comet.test_comet import GUARD
from tests.servers.app_server import HANG, AppServer, client_of, image_payload, request
from tests.servers.comet_server import CometServer
from tests.servers.processes import wait_until


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)


@pytest.fixture
def files(tmp_path):
    """Image files: three good ones, a broken one, an archive with two more."""
    for name in ("jpeg", "png", "webp"):
        (tmp_path / f"one.{name}").write_bytes(GOOD[name])
    (tmp_path / "broken.jpg").write_text("words")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("inside/cat.jpg", GOOD["jpeg"])
        archive.writestr("../../climbed.jpg", GOOD["png"])
    return [tmp_path / name for name in ("one.jpeg", "broken.jpg", "one.png", "one.webp", "more.zip")]


def test_health_tells_the_version(server, champion):
    status, content = server.get("/health")
    assert (status, json.loads(content)) == (200, {"version": Classifier(champion()).version, "problem": ""})


def test_python_client_gets_what_the_classifier_says(client, files, champion):
    classifier = Classifier(champion())
    (answer,) = classifier.answer(classifier.decode(files[0].read_bytes())[None])
    told = client.predict(handle_file(files[0]), False, api_name="/classify")
    assert told["label"] == answer.label
    assert told["probabilities"] == pytest.approx(answer.probabilities, abs=0.01)
    assert told["model"] == classifier.version
    assert told["familiar"] is True
    assert "heat" not in told
    heat = np.array(client.predict(handle_file(files[0]), True, api_name="/classify")["heat"])
    assert heat.shape == (8, 8)
    assert heat.max() == 1


def test_plain_http_takes_one_request(server):
    assert server.classify(GOOD["jpeg"])["label"] in ("cat", "dog")


def test_lines_of_the_docs_work(server, tmp_path):
    """Run the examples of docs/serving.md against this server."""
    page = (ROOT / "docs/serving.md").read_text()
    (tmp_path / "cat.jpg").write_bytes(GOOD["jpeg"])
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("one.png", GOOD["png"])
    (python,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "gradio_client" in code]
    (shell,) = [code for code in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "curl" in code]
    for command, code in (([sys.executable, "-c"], python), (["bash", "-ec"], shell)):
        patient = f'"{server.url}", httpx_kwargs={{"timeout": {HANG}}})'  # httpx waits for 5 seconds by itself
        here = code.replace('"http://127.0.0.1:7860")', patient).replace("http://127.0.0.1:7860", server.url)
        done = subprocess.run([*command, here], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert '"label"' in done.stdout or "'label'" in done.stdout
        assert "error" not in done.stdout.lower().replace('"errors"', "").replace("'errors'", "").replace("_errors", "")


def test_many_at_once_names_the_broken_one_and_goes_on(client, files):
    told = client.predict([handle_file(file) for file in files], api_name="/many")
    assert [one["file"] for one in told] == [
        "one.jpeg", "broken.jpg", "one.png", "one.webp", "inside/cat.jpg", "../../climbed.jpg",
    ]  # fmt: skip
    assert told[1]["problem"] == "this file is not an image that can be read"
    assert {one.get("label") for one in told[:1] + told[2:]} <= {"cat", "dog", None}
    assert all("probabilities" in one for one in told[:1] + told[2:])


def test_client_gets_model_and_monitor(client, champion):
    header = read_header(champion())
    told = client.predict(api_name="/model")
    assert told == {key: value for key, value in header.items() if key != "reference"}
    assert set(client.predict(api_name="/monitor")["counts"]) == {"cat", "dog", "abstained", "refused", "failed"}


def test_heat_is_for_those_who_asked(server):
    wanted = [bool(index % 2) for index in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(server.classify, [GOOD["jpeg"]] * 40, wanted))
    assert ["heat" in answer for answer in answers] == wanted


def test_bad_base64_is_one_sentence(server):
    status, answer = server.run("classify", {"url": "data:image/png;base64,!!!"}, False)
    assert (status, answer["error"]) == (500, "the image's data URL is not valid base64")


WRONG = ["x", 5, {"url": 5}, {"path": 5, "meta": {"_type": "gradio.FileData"}}, {"path": "\0"}, ["x"], [None], [{}]]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("classify", "an image file, gradio_client.handle_file(PATH), and true or false"),
        ("many", "a list of files, [gradio_client.handle_file(PATH), ...]"),
        ("show_one", "what /gradio_api/info lists"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_no_traceback(server, client, name, wanted):
    sentence = f"the arguments are not those of {name}; give {wanted}"
    for data in [[], *([argument, False][: 1 + (name == "classify")] for argument in WRONG)]:
        if name == "many":
            body = json.dumps({"data": data}).encode()
            _, content = request(f"{server.url}/gradio_api/call/many", body, {"Content-Type": "application/json"})
            told = server.get(f"/gradio_api/call/many/{json.loads(content)['event_id']}")[1].decode()
            assert told.startswith(f'event: error\ndata: {{"error": "{sentence}"'), data
        else:
            status, answer = server.run(name, *data)
            assert (status, answer["error"]) == (500, sentence), data
    if name != "show_one":
        with pytest.raises(AppError, match=f"^{re.escape(sentence)}$"):
            client.predict("hello", *[False][: name == "classify"], api_name=f"/{name}")
    assert "Traceback" not in server.log.read_text()


def test_metrics_count_the_requests(server):
    def count():
        lines = server.get("/metrics")[1].decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}

    before = count()
    server.classify(GOOD["jpeg"])
    server.classify(b"words")
    after = count()
    for outcome in ("answered", "refused"):
        key = f'catdog_requests_total{{outcome="{outcome}"}}'
        assert after[key] == before.get(key, 0) + 1


def photograph_of_30_megabytes():
    """Noise does not compress: 4,400 x 4,400 pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (4400, 4400, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise), "JPEG", quality=97)
    assert 20 * 2**20 < len(content) < 32 * 2**20
    return content


def zip_bomb():
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(40):
            archive.writestr(f"{index}.jpg", bytes(30 * 2**20))
    return file.getvalue()


def test_bad_input_is_an_answer_or_one_sentence_and_the_server_lives(server, client, tmp_path):
    refused = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"words", "this file is not an image that can be read"),
        "truncated.jpg": (GOOD["jpeg"][:900], "the image is truncated or damaged"),
        "bomb.png": (bomb_of(50_000, 50_000), "the image is too large; the limit is 50 million pixels"),
    }
    answered = {
        **GOOD,
        "one pixel": saved(Image.new("RGB", (1, 1)), "PNG"),
        "sixteen bits": saved(Image.fromarray(np.full((64, 64), 30000, dtype=np.uint16)), "PNG"),
        "thirty megabytes": photograph_of_30_megabytes(),
        "forty-eight megapixels": saved(Image.new("RGB", (8000, 6000), "green"), "PNG"),
    }
    for name, (content, sentence) in refused.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AppError, match=sentence):
            client.predict(handle_file(tmp_path / name), False, api_name="/classify")
        if content:
            assert server.classify(content) == sentence
    for content in answered.values():
        assert "probabilities" in server.classify(content, heat=True)
    (tmp_path / "bomb.zip").write_bytes(zip_bomb())
    (told,) = client.predict([handle_file(tmp_path / "bomb.zip")], api_name="/many")
    assert told["problem"] == "holds more than 500 files or 512 MB"
    assert server.run("classify", None, False)[1]["error"] == "there is no image; choose one"
    assert server.get("/health")[0] == 200
    assert server.megabytes() < 2000


@pytest.mark.slow
def test_many_large_images_at_the_same_time_do_not_fill_the_memory(server):
    content = saved(Image.new("RGBA", (7000, 7000), (0, 128, 0, 200)), "PNG")
    with ThreadPoolExecutor(8) as pool:
        assert all("probabilities" in answer for answer in pool.map(server.classify, [content] * 8))
    assert server.megabytes() < 2000


SECRETS = ["/etc/passwd", str(ROOT / "pyproject.toml"), "app.log", "best_model/model.safetensors"]


@pytest.mark.parametrize("secret", SECRETS)
def test_no_file_of_the_server_is_served(server, secret):
    absolute = server.log.parent / secret
    for path in (
        f"/file={absolute}", f"/gradio_api/file={absolute}", f"/gradio_api/file/{absolute}",
        f"/gradio_api/file={secret}",
        f"/gradio_api/file=..%2f..%2f..%2f..{absolute}", f"/static/{absolute}", f"/assets/..%2f..%2f..{absolute}",
        f"/gradio_api/proxy=file://{absolute}", f"/gradio_api/file=file://{absolute}",
    ):  # fmt: skip
        status, content = server.get(path)
        assert status in (400, 401, 403, 404, 405, 422, 500), path
        assert absolute.read_bytes()[:40] not in content


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
@pytest.mark.parametrize("name", ["classify", "show_one", "many", "show_many"])
def test_no_image_of_the_server_is_read(server, tmp_path, name, meta):
    """Whoever knows the path of an image, a pipe or an endless file gets neither image nor answer."""
    (tmp_path / "private.png").write_bytes(GOOD["png"])
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "private.png", tmp_path / "pipe", "/dev/zero", tmp_path / "none.png", ""):
        payload = {"path": str(path), **meta}
        data = {"classify": [payload, False], "show_one": [payload]}.get(name, [[payload]])
        status, answer = server.run(name, *data)
        assert status != 200, answer
        assert not any(word in str(answer) for word in ("data:image", "probabilities"))
        body = json.dumps({"data": data, "session_hash": "abc"}).encode()
        status, content = request(f"{server.url}/gradio_api/call/{name}", body, {"Content-Type": "application/json"})
        if status == 200:
            told = server.get(f"/gradio_api/call/{name}/{json.loads(content)['event_id']}")[1].decode()
            assert "event: error" in told
            assert not any(word in told for word in ("data:image", "probabilities"))


def test_emptied_image_changes_nothing_as_the_pasted_one_may_be_there_before_the_answer(server):
    def show(content):
        body = json.dumps({"data": [content], "session_hash": "of one page"}).encode()
        kind = {"Content-Type": "application/json"}
        return json.loads(request(f"{server.url}/gradio_api/run/show_one", body, kind)[1])["data"]

    assert not any("value" in part for part in show(None))
    shown, _, heat, facts = show(image_payload(GOOD["jpeg"]))
    assert shown["url"].startswith("data:image/webp")
    assert heat["url"].startswith("data:image/webp")
    assert "Answered in" in facts


def test_queued_functions_cannot_be_called_past_the_queue(server):
    assert server.run("many", [])[0] == 404


def test_nothing_is_fetched_from_elsewhere(tmp_path, champion):
    (tmp_path / "guard").mkdir()
    ours = 'if event == "socket.connect" and isinstance(arguments[1], str):'
    (tmp_path / "guard/sitecustomize.py").write_text(GUARD.replace(ours, "if '127.0.0.1' in str(arguments):"))
    log = tmp_path / "connections.log"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "guard"), "CONNECTIONS": str(log)}
    environment["HF_TOKEN"] = "one that could be used"
    with AppServer(tmp_path, environment=environment) as server:
        shutil.copy(champion(), server.model)
        wait_until(lambda: server.get("/health")[0] == 200)
        server.get("/")
        assert "label" in server.classify(GOOD["jpeg"])
        elsewhere = "http://images.example.com/cat.jpg"
        for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
            for payload in ({"path": elsewhere}, {"url": elsewhere}, {"path": "x", "url": elsewhere}):
                assert server.run("classify", {**payload, **meta}, False)[0] == 500
        for path in (f"/gradio_api/file={elsewhere}", f"/gradio_api/proxy={elsewhere}", f"/file={elsewhere}"):
            assert server.get(path)[0] == 404
    assert not log.exists(), log.read_text()


def test_upload_that_is_too_large_is_refused(server):
    mark = "mark"
    head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'.encode()
    body = head + bytes(MAX_UPLOAD + 1) + f"\r\n--{mark}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    assert request(f"{server.url}/gradio_api/upload", body, kind)[0] == 413
    too_long = {"Content-Length": str(MAX_CALL_BODY + 1)}
    assert request(f"{server.url}/gradio_api/run/classify", b"", too_long)[0] == 413
    announced = {**kind, "Content-Length": str(2**31)}
    assert request(f"{server.url}/gradio_api/upload", b"", announced)[0] == 413


def test_fifty_clients_at_once_all_get_their_answers(server):
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(server.classify, [GOOD["jpeg"]] * 150))
    assert all("probabilities" in answer for answer in answers)


def test_password_is_asked_for_and_a_wrong_one_refused(tmp_path, champion, files):
    (tmp_path / "password").write_text("someone:right: with a colon\n")
    (tmp_path / "best_model").mkdir()
    shutil.copy(champion(), tmp_path / "best_model/model.safetensors")
    with AppServer(tmp_path, "--auth", tmp_path / "password") as server:
        for path in ("/config", "/gradio_api/info", "/gradio_api/file=/etc/passwd", "/gradio_api/openapi.json"):
            assert server.get(path)[0] == 401, path
        assert server.run("classify", image_payload(GOOD["jpeg"]), False)[0] == 401
        assert request(f"{server.url}/gradio_api/upload", b"x")[0] == 401
        assert request(f"{server.url}/gradio_api/queue/join", b"{}", {"Content-Type": "application/json"})[0] == 401
        assert b"someone" not in server.get("/")[1]
        for user, password in (
            ("someone", "wrong"),
            ("someone", ""),
            ("nobody", "right: with a colon"),
            ("sömeone", "ö"),
        ):
            with pytest.raises(Exception, match=r"(?i)login|auth|credential"):
                client_of(server, auth=(user, password))
        client = client_of(server, auth=("someone", "right: with a colon"))
        assert "label" in client.predict(handle_file(files[0]), False, api_name="/classify")
        assert server.get("/health")[0] == 200


@pytest.mark.parametrize(
    ("text", "found"),
    [("a:b\n", ("a", "b")), ("a:b:c", ("a", "b:c")), ("nothing", None), (":b", None), ("a:", None), ("", None)],
)
def test_password_file(tmp_path, text, found):
    (tmp_path / "password").write_text(text)
    if found:
        assert read_auth(tmp_path / "password") == found
    else:
        with pytest.raises(ValueError, match="holds no user:password"):
            read_auth(tmp_path / "password")


def test_password_of_the_environment(monkeypatch):
    assert read_auth(None) is None
    monkeypatch.setenv("CATDOG_AUTH", "a:b")
    assert read_auth(None) == ("a", "b")
    monkeypatch.setenv("CATDOG_AUTH", "word")
    with pytest.raises(ValueError, match="CATDOG_AUTH holds no user:password; set it to user:password"):
        read_auth(None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--auth", "none"), "--auth none cannot be read (No such file or directory)"),
        (("--port", "99999"), "--port is 99999; it must be 0 to 65535"),
        (("--host", ".home"), "cannot listen on .home:7860 (no name of a host)"),
        (("--host", "a host"), "cannot listen on a host:7860"),
        (("--root-path", "cats"), "--root-path is cats; it begins with '/'"),
        (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1:7860"),
        (("--model", "."), "python -m catdog.app: argument --model: . is a folder; give the file in it"),
        (("--auth", "."), "python -m catdog.app: argument --auth: . is a folder; give the file in it"),
        (("--model", "/none.safetensors"), "/none.safetensors does not exist; name the file of a model"),
        (("--model", __file__), f"{__file__} is not a whole model file of this project; put back a copy"),
        (("--device", "cuda:9"), "unknown device 'cuda:9'; this machine has"),
    ],
)
def test_mistake_on_the_command_line_is_one_sentence(monkeypatch, capsys, options, sentence):
    monkeypatch.setattr(sys, "argv", ["catdog.app", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    complained = capsys.readouterr().err
    assert ended.value.code == 2
    assert complained.startswith(sentence)
    assert complained.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\xef\xbb\xbfanna:pw\r\n", ("anna", "pw")),
        (b"\n\r\n  anna:pw\r\n\r\n", ("anna", "pw")),
        ("jörg:pässwörd: 1\n".encode(), ("jörg", "pässwörd: 1")),
        (b"anna: pw", ("anna", "pw")),
        (b"# users\r\n  # more: of them\r\nanna:pw\r", ("anna", "pw")),
        ("\ufeff\u200banna:\u00a0pw\u200b\n".encode("utf-8-sig"), ("anna", "pw")),
        (b"anna:p=w#1 'x' {y} $2", ("anna", "p=w#1 'x' {y} $2")),
    ],
)
def test_password_file_is_read_as_editors_write_it(tmp_path, content, found):
    (tmp_path / "auth").write_bytes(content)
    assert read_auth(tmp_path / "auth") == found


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("jörg:pw".encode("latin-1"), "is not in UTF-8; save it as UTF-8"),
        ("anna:pw\n".encode("utf-16"), "is not in UTF-8; save it as UTF-8"),
        ("anna:pw\n".encode("utf-16-le"), "is not in UTF-8; save it as UTF-8"),
        (b"anna:pw\n\nbob:pw2\n", "holds 2 lines; write one user:password, for all visitors"),
        (b"anna:pw\r\nbob:pw2\r\neve:pw3", "holds 3 lines"),
        (b"anna: \r\n", "holds no user:password"),
        (b" :pw\r\n", "holds no user:password"),
        (b"\r\n", "holds no user:password"),
        (b"# anna:pw\n", "holds no user:password"),
        (b"anna:pw\rbob:pw2", "holds 2 lines"),
        (b'{"user": "anna", "password": "pw"}', "holds brackets; write user:password alone, without them"),
        (b'["anna", "pw:1"]', "holds brackets"),
        (b'"anna:pw"', "holds quotes; write user:password without them"),
        (b"'anna':'pw'", "holds quotes"),
        ("“anna:pw”".encode(), "holds quotes"),
        (b'anna: "pw"', "holds quotes"),
        (b"CATDOG_AUTH=anna:pw", "holds an assignment; write user:password alone"),
        (b'export CATDOG_AUTH="anna:pw"', "holds an assignment"),
        (b"$env:CATDOG_AUTH='anna:pw'", "holds an assignment"),
        (b"https://anna:pw@example.com", "holds an address"),
        (b"anna:$apr1$pwpwpwpw$pw", "holds a hash; write the password itself"),
        (b"anna:$2y$05$pw", "holds a hash"),
        (b"anna:{SHA}pw=", "holds a hash"),
        (b"an\x07na:pw", "holds an invisible or control character in user:password; type it anew"),
        (b"anna:pw\x1a", "holds an invisible or control character"),
        ("anna:p\u200bw".encode(), "holds an invisible or control character"),
        (None, r"cannot be read \(Is a directory\)"),
    ],
)
def test_password_file_that_does_not_fit_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "auth"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^--auth {path} {sentence}") as refused:
        read_auth(path)
    assert "pw" not in str(refused.value).replace(str(path), "")


def test_password_in_place_of_its_file_is_not_printed(tmp_path):
    with pytest.raises(ValueError, match="--auth takes the name of a file") as refused:
        read_auth(Path("anna:secret"))
    assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match="No such file"):
        read_auth(tmp_path / "none")


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("127.0.0.1", False), ("127.0.0.2", False), ("localhost", False), ("0.0.0.0", True), ("::1", False), ("::", True)],
)
def test_addresses_that_other_machines_reach_are_known(host, is_open):
    with listen(host, 0) as listener:
        assert _is_open(listener) == is_open


def test_open_page_without_a_password_is_announced_and_an_unknown_function_is_one_sentence(tmp_path):
    with AppServer(tmp_path, "--host", "0.0.0.0") as server:
        (note,) = [line for line in server.log.read_text().splitlines() if line.startswith("note:")]
        assert "every machine that reaches 0.0.0.0 can use the page; set one with --auth FILE" in note
        status, answer = server.run("nothing")
        assert (status, answer) == (404, {"error": "there is no such function; /gradio_api/info lists them"})
        assert "Traceback" not in server.log.read_text()


def test_first_champion_is_served_when_it_appears_and_ctrl_c_leaves_no_upload(tmp_path, champion, files):
    server = AppServer(tmp_path)
    status, content = server.get("/health")
    assert status == 503
    assert json.loads(content)["problem"].startswith("no champion: best_model/model.safetensors does not exist")
    assert server.classify(GOOD["jpeg"]).startswith("no champion")
    shutil.copy(champion(), server.model)
    wait_until(lambda: server.get("/health")[0] == 200)
    client_of(server).predict(handle_file(files[0]), False, api_name="/classify")
    assert list((tmp_path / "cache/uploads").rglob("one.jpeg"))
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait() == 0
    assert list((tmp_path / "cache/uploads").iterdir()) == []
    assert "Traceback" not in server.log.read_text()


HASTY = """
import threading, time
from pathlib import Path
from catdog import app
from catdog.serving import server, ui

def hurry():
    while not Path("hurry").exists():
        time.sleep(0.05)
    ui.UPLOAD_LIFETIME_SECONDS = 0.0

server.DELETE_SECONDS = 0.5
threading.Thread(target=hurry, daemon=True).start()
app.main()
"""


def test_uploads_are_deleted_after_a_while_and_examples_stay(tmp_path, champion, files):
    environment = {**os.environ, "CATDOG_CACHE": str(tmp_path / "cache")}
    with AppServer(tmp_path, environment=environment, program=("-c", HASTY)) as server:
        shutil.copy(champion(), server.model)
        wait_until(lambda: server.get("/health")[0] == 200)
        client = client_of(server)
        client.predict(handle_file(files[0]), False, api_name="/classify")
        client.predict([handle_file(file) for file in files], api_name="/many")
        assert list((tmp_path / "cache/uploads").rglob("one.*"))
        (tmp_path / "hurry").touch()
        wait_until(
            lambda: {path.stem[:7] for path in (tmp_path / "cache/uploads").rglob("*.*")} == {"example", ".lock"}
        )


def animals(number, cats=0.5, seed=20_000):
    rng = np.random.default_rng(seed)
    return [saved(draw(int(rng.random() >= cats), 64, seed + i), "JPEG", quality=92) for i in range(number)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["usual", "one class", "noise"])
def test_alerts_reach_page_metrics_and_comet(tmp_path, champion, kind):
    rng = np.random.default_rng(0)
    images = {
        "usual": lambda: animals(300),
        "one class": lambda: animals(300, cats=1),
        "noise": lambda: [
            saved(Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)), "PNG") for _ in range(300)
        ],
    }[kind]()
    (tmp_path / "home").mkdir()
    with CometServer() as comet:
        environment = {**os.environ, **comet.environment(tmp_path / "home")}
        with AppServer(tmp_path, environment=environment) as server:
            shutil.copy(champion(), server.model)
            wait_until(lambda: server.get("/health")[0] == 200)
            version = json.loads(server.get("/health")[1])["version"]
            with ThreadPoolExecutor(8) as pool:
                assert all("probabilities" in answer for answer in pool.map(server.classify, images))

            def alerts():
                return {
                    line.split('"')[1] for line in server.get("/metrics")[1].decode().splitlines()
                    if line.startswith("catdog_alert{") and line.endswith(" 1.0")
                }  # fmt: skip

            wait_until(lambda: b'catdog_drift{figure="class_psi"}' in server.get("/metrics")[1])
            if kind == "usual":
                assert alerts() == set()
            else:
                wait_until(lambda: {"one class": "class_psi", "noise": "abstained"}[kind] in alerts())
                wait_until(lambda: any(e.notifications for e in comet.experiments.values()))
            told = client_of(server).predict(api_name="/monitor")
            assert set(told["alerts"]) == alerts()
            wait_until(lambda: comet.experiments)
        (experiment,) = comet.experiments.values()
        wait_until(lambda: {"cat", "dog", "abstained"} <= {metric["metricName"] for metric in experiment.metrics})
        assert experiment.others["model version"] == version
        titles = [one["title"] for one in experiment.notifications if " in service: " in one["title"]]
        assert bool(titles) == (kind != "usual")
        assert all(title.startswith(f"model {version} in service: ") for title in titles)


@pytest.mark.slow
def test_service_goes_on_when_comet_does_not_answer(tmp_path, champion):
    (tmp_path / "home").mkdir()
    with CometServer() as comet:
        environment = {**os.environ, **comet.environment(tmp_path / "home")}
        for end in ("/handshake", "/create", "/new", "/get", "/add"):
            comet.break_down(end, "hang")
        with AppServer(tmp_path, environment=environment) as server:
            shutil.copy(champion(), server.model)
            wait_until(lambda: server.get("/health")[0] == 200)
            time.sleep(2)
            for _ in range(20):
                assert "label" in server.classify(GOOD["jpeg"])


@pytest.mark.slow
def test_swaps_under_load_lose_no_request(tmp_path, champion):
    with AppServer(tmp_path) as server:
        shutil.copy(champion(0), server.model)
        wait_until(lambda: server.get("/health")[0] == 200)
        versions = [Classifier(champion(trial)).version for trial in (0, 1)]
        with asked_all_the_time(lambda: server.classify(GOOD["jpeg"])) as answers:
            for swap in range(1, 9):
                shutil.copy(champion(swap % 2), server.model.with_name("new"))
                server.model.with_name("new").replace(server.model)
                wait_until(lambda: json.loads(server.get("/health")[1])["version"] == versions[swap % 2])  # noqa: B023
        assert {answer["model"] for answer in answers} == set(versions)
