"""Comet's services on loopback, as far as our tests need them; the real client talks to it.

    with CometServer() as server:
        subprocess.run(..., env={**os.environ, **server.environment(home)})
        server.experiments[key].metrics ...

A fault is a path's end and what happens to requests of it: an HTTP status, "hang", "drop" (the connection), "html"
(502 with a page), "invalid" (200 and no JSON), "redirect", or "echo" (500 with the request's headers, body and key).
"""

import gzip
import hashlib
import itertools
import json
import random
import threading
import time
import uuid
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

API_KEY = "a-secret-key-of-the-tests"
STATUSES = ["None", "Development", "QA", "Production"]


@dataclass
class Experiment:
    key: str
    project: str = ""
    workspace: str = "somebody"
    offline: bool = False
    alive: bool = False
    parameters: dict = field(default_factory=dict)
    metrics: list = field(default_factory=list)  # of metricName, metricValue, step, epoch
    others: dict = field(default_factory=dict)
    tags: set = field(default_factory=set)
    assets: list = field(default_factory=list)  # of queries of their uploads, with "content"
    notifications: list = field(default_factory=list)
    graph: str = ""
    git: dict = field(default_factory=dict)
    system: dict = field(default_factory=dict)

    def values(self, name):
        """A metric's values by step; a value that came twice is an error."""
        points = [(m["step"], m["metricValue"]) for m in self.metrics if m["metricName"] == name]
        assert len(points) == len(dict(points)), f"{name} came twice: {points}"
        return dict(points)


class Search:
    """A search of the Optimizer. Its bayes is random: what matters here is who gets what, and how often."""

    def __init__(self, content):
        self.id = uuid.uuid4().hex
        self.content, self.spec = content, content["spec"]
        self.random = random.Random(self.spec.get("seed") or 0)
        self.assignments = []
        self.completed = False
        self.grid = None
        if content["algorithm"] == "grid":
            axes = [self._points(parameter) for parameter in content["parameters"].values()]
            self.grid = itertools.product(*axes)

    def next(self):
        if len(self.assignments) >= (self.spec.get("maxCombo") or 10**9):
            return None
        names = list(self.content["parameters"])
        if self.grid is not None:
            values = next(self.grid, None)
            if values is None:
                return None
        else:
            values = [self._draw(parameter) for parameter in self.content["parameters"].values()]
        parameters = dict(zip(names, values, strict=True))
        pid = hashlib.sha1(json.dumps(parameters).encode()).hexdigest()
        package = {"pid": pid, "trial": 1, "count": len(self.assignments) + 1, "parameters": parameters}
        self.assignments.append({**package, "status": "assigned", "score": None})
        return package

    def update(self, body):
        for assignment in self.assignments:
            if (assignment["pid"], assignment["trial"]) == (body["pid"], body["trial"]):
                assignment.update(status=body["status"], score=body["score"])

    def status(self):
        status = "completed" if self.completed else "running"
        state = {"id": self.id, "status": status, "version": "2.0.1", "startTime": 0, "endTime": None}
        return {**{key: self.content[key] for key in ("algorithm", "name", "trials", "parameters", "spec")}, **state}

    def _draw(self, parameter):
        if "values" in parameter:
            return self.random.choice(parameter["values"])
        value = self.random.uniform(parameter["min"], parameter["max"])
        return round(value) if parameter["type"] == "integer" else value

    def _points(self, parameter):
        if "values" in parameter:
            return parameter["values"]
        low, high, num = parameter["min"], parameter["max"], parameter.get("gridSize", self.spec.get("gridSize", 10))
        points = [low + (high - low) * i / (num - 1) for i in range(num)]
        return sorted({round(point) for point in points}) if parameter["type"] == "integer" else points


class CometServer:
    def __init__(self):
        self.experiments: dict[str, Experiment] = {}
        self.searches: dict[str, Search] = {}
        self.models: list[dict] = []
        self.views: list[dict] = []
        self.panels: dict[str, dict] = {}
        self.requests: list[tuple] = []  # method, path, body
        self.over = 204  # the code of an answer that hands nothing out
        self.faults: dict[str, list] = {}  # path's end -> [what, how often]
        self.lock = threading.RLock()
        self.http = _Http(("127.0.0.1", 0), _Handler)
        self.http.comet = self
        self.root = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def break_down(self, end, what, times=10**9):
        """Let requests whose path ends with `end` fail: `what` is a status or a word as above."""
        self.faults[end] = [what, times]

    def repair(self):
        self.faults.clear()

    def environment(self, home):
        """The environment of a user of Comet whose home is the folder `home`."""
        return {
            "COMET_URL_OVERRIDE": f"{self.root}/clientlib/",
            "COMET_API_KEY": API_KEY,
            "HOME": str(home),
            "NO_PROXY": "127.0.0.1",
        }

    def count(self, end):
        return sum(path.endswith(end) for _, path, _ in self.requests)

    def answer(self, path, query, body):
        """Return (status, JSON) for a request. One at a time."""
        name = path.partition("/rest/v2/")[2] or path.removeprefix("/clientlib").lstrip("/")
        if name.startswith("optimizer/"):
            return 200, self._optimizer(name.removeprefix("optimizer/"), query, body)
        if name in ("logger/add/run", "logger/get/run"):
            return self._run(name, body)
        key = body.get("experimentKey") or body.get("experiment_key") or query.get("experimentKey")
        key = key or query.get("experimentId") or query.get("experimentKey")
        experiment = self.experiments.get(key)
        for handler in (self._client, self._write, self._read, self._project):
            result = handler(name, experiment, query, body)
            if result is not None:
                return 200, result
        return 404, {"msg": f"not here: {path}"}

    def _run(self, name, body):
        key = body.get("previousExperiment") or body["experimentKey"]
        if name == "logger/get/run":
            if key not in self.experiments:
                return 400, {"sdk_error_code": 90210, "msg": "no such experiment"}
        elif key in self.experiments and not body.get("getOrCreateEnabled"):
            return 400, {"sdk_error_code": 90999, "msg": "it exists"}
        elif key not in self.experiments:
            project = body.get("projectName") or "general"
            self.experiments[key] = Experiment(key, project, offline=bool(body.get("offline")))
        experiment = self.experiments[key]
        return 200, {
            "runId": key[:8],
            "project_id": experiment.project,
            "focusUrl": f"{self.root}/{experiment.workspace}/{experiment.project}/",
            "name": experiment.others.get("Name"),
            "featureToggles": [],
            "upload_file_size_limit_in_mb": 200,
            "asset_upload_file_size_limit_in_mb": 200,
        }

    def _client(self, name, experiment, query, body):
        """What an experiment of the client sends."""
        match name:
            case "isAlive/ver":
                return {"version": "5.0.0"}
            case "health/ping" | "status-report/offline-metadata" | "asset/3d-limits" | "notify/event":
                return {}
            case "status-report/update":
                experiment.alive = body["is_alive"]
                return {"is_alive_beat_duration_millis": 10000, "gpu_monitor_interval_millis": 30000}
            case "tags/add-tags-to-experiment":
                experiment.tags |= set(body["addedTags"])
                return {}
            case "batch/logger/experiment/metric":
                experiment.metrics += body["values"]
                return {}
            case "batch/logger/experiment/parameter":
                experiment.parameters |= {p["parameterName"]: p["parameterValue"] for p in body["values"]}
                return {}
            case "asset/upload":
                if query.get("overwrite", "").lower() == "true":
                    same = [a for a in experiment.assets if a.get("fileName") == query.get("fileName")]
                    experiment.assets = [asset for asset in experiment.assets if asset not in same]
                experiment.assets.append({**query, "content": body.get("file", b"")})
                return {"assetId": query.get("assetId", uuid.uuid4().hex)}
            case "notification/experiment":
                experiment.notifications.append(body)
                return {}
        return None

    def _write(self, name, experiment, query, body):
        match name:
            case "write/experiment/log-other":
                experiment.others[body["key"]] = body["value"]
            case "write/experiment/graph":
                experiment.graph = body["graph"]
            case "write/experiment/git/metadata":
                experiment.git = body
            case "write/experiment/system-details":
                experiment.system |= body
            case "write/registry-model/item/create":
                self.models.append(body)
                return {"registryModelId": body["registryModelName"], "registryModelItemId": str(len(self.models))}
            case "write/views/upsert":
                view = {**body, "templateId": body.get("templateId") or f"view-{len(self.views)}"}
                self.views = [v for v in self.views if v["templateId"] != view["templateId"]] + [view]
                return view
            case "write/template/upload":
                name = query.get("templateId") or f"panel-{len(self.panels)}"
                self.panels[name] = {**query, **body}
                return {"templateId": name}
            case _:
                return {} if name.startswith("write/") else None
        return {}

    def _read(self, name, experiment, query, body):
        match name:
            case "experiment/metadata":
                return self._metadata(experiment) if experiment else None
            case "experiment/metrics/get-metric":
                chosen = [m for m in experiment.metrics if query.get("metricName") in (None, m["metricName"])]
                return {"metrics": [{**m, "metricValue": str(m["metricValue"])} for m in chosen]}
            case "experiment/metrics/summary":
                return {"values": [_summary(experiment, n) for n in {m["metricName"] for m in experiment.metrics}]}
            case "experiment/log-other":
                return {"values": [{"name": k, "valueCurrent": str(v)} for k, v in experiment.others.items()]}
            case "experiment/parameters":
                return {"values": [{"name": k, "valueCurrent": str(v)} for k, v in experiment.parameters.items()]}
            case "experiment/tags":
                return {"tags": sorted(experiment.tags)}
            case "experiments/multi-metric-chart":
                return {
                    "empty": False,
                    "experiments": {key: self._chart(key, body) for key in body["targetedExperiments"]},
                }
        return None

    def _project(self, name, _, query, __):
        match name:
            case "account-details":
                return {"userName": "somebody", "defaultWorkspaceName": "somebody"}
            case "projects":
                names = sorted({experiment.project for experiment in self.experiments.values()})
                projects = [{"projectId": n, "projectName": n, "workspaceName": "somebody"} for n in names]
                return {"projects": projects}
            case "project" | "project/by-id":
                project = query.get("projectName") or query.get("projectId")
                return {"projectId": project, "projectName": project, "workspaceName": "somebody"}
            case "experiments":
                mine = [e for e in self.experiments.values() if e.project == query.get("projectName")]
                return {"experiments": [self._metadata(experiment) for experiment in mine]}
            case "views/get-all":
                return {"views": self.views}
            case "registry-model/details":
                mine = [model for model in self.models if model["registryModelName"] == query["modelName"]]
                return {"versions": mine, "modelName": query["modelName"]}
            case "registry-model/allowed_status_values":
                return {"allowedStatus": STATUSES}
        return None

    @staticmethod
    def _metadata(experiment):
        return {
            "experimentKey": experiment.key,
            "experimentName": experiment.others.get("Name"),
            "projectId": experiment.project,
            "projectName": experiment.project,
            "workspaceName": experiment.workspace,
            "running": experiment.alive,
            "archived": False,
            "throttle": False,
            "startTimeMillis": 0,
            "endTimeMillis": 0,
            "durationMillis": 0,
        }

    def _chart(self, key, body):
        experiment = self.experiments[key]
        curves = []
        for name in body["metrics"]:
            points = [m for m in experiment.metrics if m["metricName"] == name]
            if points:
                curve = {"metricName": name, "values": [m["metricValue"] for m in points]}
                curves.append({**curve, "steps": [m["step"] for m in points], "epochs": [m["epoch"] for m in points]})
        wanted = body.get("params") or []
        return {
            "experiment_key": key,
            "experimentName": experiment.others.get("Name"),
            "params": {name: experiment.parameters.get(name) for name in wanted},
            "metrics": curves,
        }

    def _optimizer(self, name, query, body):
        if name == "spec":
            common = {"maxCombo": 0, "metric": "loss", "gridSize": 10, "retryAssignLimit": 0, "seed": None}
            return [{"name": key, "default": value} for key, value in common.items()]
        if name == "create":
            search = Search(body)
            self.searches[search.id] = search
            return {"code": 200, "id": search.id}
        search = self.searches.get(query.get("id") or body.get("id"))
        if search is None:
            return {"code": 404, "message": "no such search"}
        match name:
            case "status":
                return search.status()
            case "next":
                package = search.next()
                return {"code": 200, "parameters": package} if package else {"code": self.over, "message": "no more"}
            case "update":
                search.update(body)
                return {"code": 200}
        raise AssertionError(name)


def _summary(experiment, name):
    values = [m for m in experiment.metrics if m["metricName"] == name]
    numbers = [float(m["metricValue"]) for m in values]
    extremes = {"valueMin": str(min(numbers)), "valueMax": str(max(numbers)), "valueCurrent": str(numbers[-1])}
    return {"name": name, **extremes, "stepCurrent": values[-1]["step"]}


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._handle("GET")

    def do_POST(self):
        self._handle("POST")

    def _handle(self, method):
        comet, url = self.server.comet, urlsplit(self.path)
        body = self._body()
        with comet.lock:
            comet.requests.append((method, url.path, body))
            fault = next((f for end, f in comet.faults.items() if url.path.endswith(end) and f[1] > 0), None)
            if fault:
                fault[1] -= 1
        if fault and fault[0] == "hang":
            time.sleep(60)
        if fault and fault[0] in ("hang", "drop"):
            self.close_connection = True
            return
        if fault:
            self._fail(fault[0], body)
            return
        if self.headers.get("Authorization") not in (None, API_KEY) or self._key_of(body) not in (None, API_KEY):
            experiment = url.path.startswith("/clientlib/logger")
            self._send(400 if experiment else 401, {"msg": "Invalid API key", "sdk_error_code": 90212})
            return
        with comet.lock:
            status, content = comet.answer(url.path, dict(parse_qsl(url.query)), body)
        self._send(status, content)

    def _fail(self, what, body):
        sent = {name: value for name, value in self.headers.items() if name.lower() != "content-length"}
        match what:
            case "html":
                self._send(502, "<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html")
            case "invalid":
                self._send(200, "this is no {JSON")
            case "redirect":
                self._send(302, {}, Location=f"http://127.0.0.1:9/{sent.get('Authorization', '')}")
            case "echo":
                text = f"refused: {sent} {body}"
                content = {"msg": text, "message": text, "code": 500, "sdk_error_message": text}
                self._send(500, content, **{"X-Echo": sent.get("Authorization", "")})
            case _:
                self._send(what, {"msg": "injected"})

    @staticmethod
    def _key_of(body):
        return body.get("apiKey")

    def _body(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/"):
            message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + content)
            parts = message.iter_parts()
            return {p.get_param("name", header="content-disposition"): p.get_payload(decode=True) for p in parts}
        return json.loads(content) if content else {}

    def _send(self, status, content, kind="application/json", **headers):
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)  # the client compares it letter by letter
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
