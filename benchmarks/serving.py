"""The app under load: real HTTP clients on loopback, beside the usual tutorial's app around the same network.

    python benchmarks/serving.py [--seconds 15] [--rounds 3] [--swaps 100]

Every request uploads a drawn JPEG of 500 x 375 pixels and waits for its answer through Gradio's HTTP API, as Gradio's
own clients do (upload and run, or, where the app queues, upload, call and event stream), from threads of this process,
each with a connection and a session of its own. The tutorial's app is gr.Interface(fn, "image", "label") with
torchvision's transforms in float32; Gradio queues its requests. Both serve the baseline at 224 px, untrained, on
all cores, which the clients use too. Rounds go in turn, the other server stopped meanwhile; p50, p95 and p99 are of all
requests of all rounds. During the swaps each answer is compared with that of the version it names.
"""

import argparse
import gc
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from http.client import HTTPConnection
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

WIDTH, HEIGHT, NUM_IMAGES = 500, 375, 32
CLIENTS = (1, 8, 50)
NUM_FOR_MEMORY, NUM_SETTLED = 2000, 200


def drawn_jpegs():
    from PIL import Image

    from catdog.data.synthetic import draw

    files = []
    for seed in range(NUM_IMAGES):
        file = BytesIO()
        draw(seed % 2, WIDTH, seed).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def save_network(path, seed):
    """An untrained baseline network, with everything that a promoted one carries."""
    from catdog.checkpoint import save_model
    from catdog.data import dataset as data
    from catdog.data.dataset import load_data
    from catdog.data.preprocess import preprocessing
    from catdog.model import ModelConfig, build_model
    from catdog.serving.reference import make_reference

    data.NUM_DRAWN = {"training": 60, "test": 20}
    os.environ["CATDOG_CACHE"] = str(path.parent / "cache")
    model = build_model(ModelConfig(), seed).eval()
    header = {"classes": ["cat", "dog"], "preprocessing": preprocessing(224), "metrics": {}, "provenance": {}}
    save_model(model, path, {**header, "reference": make_reference(model, load_data("synthetic", 224), "cpu")})


def serve_plain(path, port):
    """What a tutorial does."""
    import gradio as gr
    import torch
    from torchvision import transforms

    from catdog.checkpoint import load_model

    model = load_model(Path(path))[0].to(memory_format=torch.contiguous_format)
    prepare = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )

    def predict(image):
        with torch.no_grad():
            probabilities = model(prepare(image)[None]).softmax(1)[0]
        return {"cat": float(probabilities[0]), "dog": float(probabilities[1])}

    gr.Interface(predict, "image", "label").launch(server_name="127.0.0.1", server_port=port, quiet=True)


class Server:
    """A server in a process of its own."""

    def __init__(self, name, command, port, api_name, *, queued, extra=()):
        self.name, self.port, self.api_name, self.queued, self.extra = name, port, api_name, queued, list(extra)
        environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "COMET_API_KEY": ""}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                Client(self).request("GET", "/config")
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise SystemExit(f"{name} did not start")

    def rest(self):
        """Stop it, so that its idle loops do not slow down the other one."""
        self.process.send_signal(signal.SIGSTOP)

    def wake(self):
        self.process.send_signal(signal.SIGCONT)

    def megabytes(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the server is gone")


class Client:
    """One connection: upload, call, event stream."""

    def __init__(self, server):
        self.server, self.connection = server, HTTPConnection("127.0.0.1", server.port, timeout=120)
        self.session = uuid.uuid4().hex

    def request(self, method, path, body=None, kind="application/json"):
        self.connection.request(method, path, body, {"Content-Type": kind})
        response = self.connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {content[:200]}")
        return content

    def classify(self, jpeg):
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{mark}.jpg"\r\n\r\n'
        form = head.encode() + jpeg + f"\r\n--{mark}--\r\n".encode()
        (path,) = json.loads(self.request("POST", "/gradio_api/upload", form, f"multipart/form-data; boundary={mark}"))
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, *self.server.extra]
        body = json.dumps({"data": data, "session_hash": self.session})
        if not self.server.queued:
            return json.loads(self.request("POST", f"/gradio_api/run/{self.server.api_name}", body))["data"][0]
        call = f"/gradio_api/call/{self.server.api_name}"
        event = json.loads(self.request("POST", call, body))["event_id"]
        answer = self.request("GET", f"{call}/{event}").decode()
        if "event: complete" not in answer:
            raise RuntimeError(answer[:300])
        return json.loads(answer.rpartition("data: ")[2])[0]


def load(server, num_clients, files, seconds=None, num_requests=None):
    """Seconds of each request, those that failed, and the time that all took."""
    taken, failed, lock = [], [], threading.Lock()
    end = time.perf_counter() + seconds if seconds else float("inf")

    def run(number):
        client, index = Client(server), number
        while time.perf_counter() < end and (num_requests is None or len(taken) < num_requests):
            began = time.perf_counter()
            try:
                client.classify(files[index % len(files)])
            except (OSError, RuntimeError, ValueError) as error:
                failed.append(str(error))
                client = Client(server)
            with lock:
                taken.append(time.perf_counter() - began)
            index += num_clients

    threads = [threading.Thread(target=run, args=(number,)) for number in range(num_clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken, failed, time.perf_counter() - began


def decode_and_forward(path, files, num=40):
    """Milliseconds to decode one image and to pass it through the network, in a process that does nothing else."""
    code = f"""
import sys, time; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import torch
from catdog.device import keep_freed_memory
from catdog.data.preprocess import normalize
from catdog.kernels.precision import autocast
from catdog.predict import Classifier
keep_freed_memory()
classify, content, taken = Classifier(Path({str(path)!r})), sys.stdin.buffer.read(), []
for _ in range({num} + 5):
    began = time.perf_counter()
    image = torch.from_numpy(classify.decode(content)[None])
    with torch.inference_mode(), autocast(torch.device("cpu"), "auto"):
        classify.model(normalize(image)).softmax(1).tolist()
    taken.append(1000 * (time.perf_counter() - began))
print(*taken[5:])
"""
    done = subprocess.run([sys.executable, "-c", code], input=files[0], capture_output=True, check=True)
    return [float(text) for text in done.stdout.split()]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="of each load in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        serve_plain(options.plain[0], int(options.plain[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder, options):
    path, files = folder / "model.safetensors", drawn_jpegs()
    versions = [folder / f"{seed}.safetensors" for seed in (0, 1)]
    for seed, version_path in enumerate(versions):
        save_network(version_path, seed)
    shutil.copy(versions[0], path)
    ports = free_port(), free_port()
    python = sys.executable
    command = [python, "-m", "catdog.app", "--model", path, "--port", str(ports[0])]
    ours = Server("ours", command, ports[0], "classify", queued=False, extra=[False])
    command = [python, __file__, "--plain", str(versions[0]), str(ports[1])]
    plain = Server("tutorial", command, ports[1], "predict", queued=True)
    gc.disable()
    alone, taken, rates, failures = [], {}, {}, {}
    try:
        for server in (ours, plain):
            load(server, 8, files, num_requests=30)
            server.rest()
        for _ in range(options.rounds):
            for num_clients in CLIENTS:
                alone += decode_and_forward(path, files)  # the machine's speed changes from minute to minute
                for server in (ours, plain):
                    key = server.name, num_clients
                    server.wake()
                    seconds, failed, duration = load(server, num_clients, files, seconds=options.seconds)
                    server.rest()
                    taken.setdefault(key, []).extend(seconds)
                    rates.setdefault(key, []).append((len(seconds) - len(failed)) / duration)
                    failures.setdefault(key, []).extend(failed)
        report(taken, rates, failures, alone)
        ours.wake()
        swaps(ours, path, versions, files, options.swaps, taken["ours", 8])
        memory(ours, files)
        print(f"monitoring: {monitoring(versions[0]):.0f} microseconds a request")
    finally:
        for server in (ours, plain):
            server.process.kill()
            server.process.wait()


def report(taken, rates, failures, alone):
    print(f"{os.cpu_count()} cores, {platform.machine()}, python {platform.python_version()}, ", end="")
    print(f"torch {version('torch')}, gradio {version('gradio')}; baseline network, 224 px")
    print(f"decoding and one forward pass: median {statistics.median(alone):.1f} ms, ", end="")
    print(f"p95 {np.quantile(alone, 0.95):.1f} ms (n = {len(alone)})")
    heads = ("requests", "p50 ms", "p95 ms", "p99 ms", "images/s", "failed")
    print(f"{'clients':>8}  {'app':10}" + "".join(f"{head:>11}" for head in heads))
    for num_clients in CLIENTS:
        for name in ("ours", "tutorial"):
            key = name, num_clients
            p50, p95, p99 = 1000 * np.quantile(taken[key], (0.5, 0.95, 0.99))
            rate = statistics.median(rates[key])
            print(
                f"{num_clients:8}  {name:10}{len(taken[key]):11}{p50:11.0f}{p95:11.0f}{p99:11.0f}{rate:11.1f}", end=""
            )
            print(f"{len(failures[key]):11}")
        ratios = [a / b for a, b in zip(rates["ours", num_clients], rates["tutorial", num_clients], strict=True)]
        spread = f"(rounds {min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{'':10}ratio of images/s: {statistics.median(ratios):.2f} {spread}")
    one = 1000 * np.quantile(taken["ours", 1], 0.95)
    print(f"one client: p95 is {one / statistics.median(alone):.2f} times decoding and one forward pass")


def swaps(server, path, versions, files, num_swaps, quiet):
    """Swap two models again and again under 8 clients."""
    from catdog.predict import Classifier

    expected = {}
    for classify in map(Classifier, versions):
        expected[classify.version] = classify(files)
    order, wrong, over = list(expected), [], threading.Event()
    taken, failed, lock = [], [], threading.Lock()

    def run(number):
        client, index = Client(server), number
        while not over.is_set():
            began = time.perf_counter()
            try:
                answer = client.classify(files[index % len(files)])
            except (OSError, RuntimeError, ValueError) as error:
                failed.append(str(error))
                client = Client(server)
                continue
            given = [*answer["probabilities"].values()]
            with lock:
                taken.append(time.perf_counter() - began)
                if np.abs(given - expected[answer["model"]][index % len(files)]).max() > 0.02:
                    wrong.append(answer)
            index += 8

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for swap in range(1, num_swaps + 1):
        beside = path.with_name("new")
        shutil.copy(versions[swap % 2], beside)
        beside.replace(path)
        while json.loads(Client(server).request("GET", "/health"))["version"] != order[swap % 2]:
            time.sleep(0.05)
    over.set()
    for thread in threads:
        thread.join()
    p99, before = 1000 * np.quantile(taken, 0.99), 1000 * np.quantile(quiet, 0.99)
    print(
        f"{num_swaps} swaps under 8 clients: {len(taken)} requests, {len(failed)} failed, {len(wrong)} not as the ",
        end="",
    )
    print(f"version that they name; p99 {p99:.0f} ms, {p99 / before:.2f} times that without swaps")


def monitoring(path, num=20_000):
    """Microseconds that counting a request takes, the window's comparison once a second left aside."""
    from catdog.checkpoint import read_header
    from catdog.serving.monitor import Monitor

    monitor = Monitor()
    monitor.watch("version", read_header(path))
    began = time.perf_counter()
    for index in range(num):
        monitor.count_answer("version", "cat", index % 7, familiar=True, seconds=0.01)
    return 1e6 * (time.perf_counter() - began) / num


def memory(server, files):
    load(server, 8, files, num_requests=NUM_SETTLED)
    before = server.megabytes()
    _, failed, _ = load(server, 8, files, num_requests=NUM_FOR_MEMORY - NUM_SETTLED)
    after = server.megabytes()
    print(
        f"memory: {before:.0f} MB after {NUM_SETTLED} requests of 8 clients, {after:.0f} MB after {NUM_FOR_MEMORY} ",
        end="",
    )
    print(f"({after / before - 1:+.1%}), {len(failed)} failed")


if __name__ == "__main__":
    main()
