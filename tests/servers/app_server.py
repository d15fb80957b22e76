"""The app in a process of its own, and the plainest client of it."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

from gradio_client import Client

from tests.conftest import ROOT
from tests.servers.processes import end, start, wait_until

HANG = 600.0  # seconds without an answer: it will not come


class AppServer:
    """`with AppServer(folder, "--auth", file) as server` serves folder/best_model/model.safetensors."""

    def __init__(self, folder, *options, environment=None, program=("-m", "catdog.app")):
        self.model = folder / "best_model/model.safetensors"
        self.model.parent.mkdir(parents=True, exist_ok=True)
        self.log = folder / "app.log"
        path = os.pathsep.join(filter(None, [str(ROOT), (environment or {}).get("PYTHONPATH")]))
        with self.log.open("wb") as log:
            self.process = start(
                [sys.executable, *program, "--port", "0", *options],
                cwd=folder,
                env={"OMP_NUM_THREADS": "1", **(environment or os.environ), "PYTHONPATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.url = wait_until(self._url, self.process)
        except BaseException as error:
            end(self.process)
            error.add_note(self.log.read_text())
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def _url(self):
        found = re.search(r"http://[\d.]+:\d+", self.log.read_text())
        return found and answers(f"{found[0]}/health") and found[0]

    def get(self, path, **headers):
        return request(self.url + path, None, headers)

    def run(self, name, *data, **headers):
        """Call a function of the API: status and JSON."""
        body = json.dumps({"data": data}).encode()
        status, content = request(
            f"{self.url}/gradio_api/run/{name}", body, {"Content-Type": "application/json", **headers}
        )
        return status, json.loads(content)

    def classify(self, content, heat=False):
        """Return the answer to an image, or the error sentence."""
        status, answer = self.run("classify", image_payload(content), heat)
        return answer["data"][0] if status == 200 else answer["error"]

    def megabytes(self):
        """Return the most memory that the process ever had."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def client_of(server, **options):
    """Return Gradio's client."""
    return Client(server.url, verbose=False, httpx_kwargs={"timeout": HANG}, **options)


def image_payload(content):
    return {"url": f"data:image/jpeg;base64,{b64encode(content).decode()}"}


def request(url, body=None, headers=None):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=HANG) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def answers(url):
    try:
        return bool(request(url))
    except OSError:
        return False
