"""What is said of each fault of Comet, before the first trial."""

import socket
from argparse import Namespace

import pytest
import requests

from pipeline.plan import _tracking
from search.comet.client import RefusedError, ServiceDownError, check_comet, describe_fault
from tests.servers.comet_server import API_KEY, CometServer


@pytest.fixture(scope="module")
def comet():
    with CometServer() as server:
        yield server


@pytest.fixture
def server(comet, monkeypatch, tmp_path):
    for name, value in comet.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    comet.repair()
    return comet


FAULTS = {
    404: "HTTP 404",
    500: "HTTP 500",
    "html": "HTTP 502",
    "invalid": "the answer is not one of Comet's",
    "drop": "no connection to 127.0.0.1",
    "redirect": "HTTP 302",
    "echo": "HTTP 500",
}


@pytest.mark.parametrize("what", FAULTS)
def test_fault_is_described_in_words_of_ours(server, what):
    server.break_down("/account-details", what)
    with pytest.raises(ServiceDownError) as fault:
        check_comet()
    assert str(fault.value) == FAULTS[what]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("wrong-key-of-a-user", "refuses the API key (HTTP 401)"),
        ("key-and\nline", "which has characters that no key has"),
        ("schlüssel-ö-☺", "which has characters that no key has"),
    ],
)
def test_key_that_comet_refuses_is_said_but_not_shown(server, monkeypatch, key, sentence):
    monkeypatch.setenv("COMET_API_KEY", key)
    with pytest.raises(RefusedError) as refused:
        check_comet()
    assert sentence in str(refused.value)
    assert key[:4] not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("https://{}/clientlib/", "the certificate of 127.0.0.1 is not valid"),
        ("http://127.0.0.1:9/clientlib/", "no connection to 127.0.0.1"),
        ("http://no.such.host.invalid/clientlib/", "no connection to no.such.host.invalid"),
    ],
)
def test_host_that_does_not_answer_is_named(server, monkeypatch, address, sentence):
    monkeypatch.setenv("COMET_URL_OVERRIDE", address.format(server.root.partition("//")[2]))
    with pytest.raises(ServiceDownError, match=sentence):
        check_comet()


@pytest.mark.parametrize("address", ["garbage", "127.0.0.1:9", "htp://host/", "http://"])
def test_address_that_is_none_is_the_users_mistake(server, monkeypatch, address):
    monkeypatch.setenv("COMET_URL_OVERRIDE", address)
    with pytest.raises(RefusedError, match="COMET_URL_OVERRIDE is no address; set it to https:// and a host"):
        check_comet()


def test_silent_host_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr("search.comet.client.CHECK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("COMET_URL_OVERRIDE", f"http://127.0.0.1:{silent.getsockname()[1]}/clientlib/")
        with pytest.raises(ServiceDownError, match="no answer in time"):
            check_comet()


@pytest.mark.parametrize("what", [None, 429])
def test_comet_that_takes_the_key_has_no_fault(server, what):
    if what:
        server.break_down("/account-details", what)
    check_comet()


def test_error_without_words_of_ours_is_named_by_its_kind():
    assert describe_fault(requests.TooManyRedirects(f"after {API_KEY}")) == "TooManyRedirects"


@pytest.mark.parametrize(
    ("wanted", "what", "mode", "note"),
    [
        ("auto", None, "online", ""),
        ("auto", 401, "offline", "note: Comet refuses the API key (HTTP 401); set COMET_API_KEY to one that is valid;"),
        ("auto", 500, "offline", "note: Comet does not answer (HTTP 500);"),
        ("online", 500, "offline", "note: Comet does not answer (HTTP 500);"),
        ("offline", 401, "offline", ""),
        ("off", 401, "off", ""),
    ],
)
def test_plan_says_before_the_first_trial_what_is_done_instead(server, wanted, what, mode, note):
    if what:
        server.break_down("/account-details", what)
    num_requests, said = len(server.requests), []
    assert _tracking(Namespace(tracking=wanted, dry_run=False), "optuna", said.append) == mode
    assert said == ([f"{note} this run archives its trials, and the same command sends them later"] if note else [])
    assert len(server.requests) - num_requests == (wanted in ("auto", "online"))


def test_refused_key_is_the_users_mistake_where_online_is_asked_for(server):
    server.break_down("/account-details", 403)
    with pytest.raises(ValueError, match=r"\(HTTP 403\); set COMET_API_KEY .* or use --tracking offline"):
        _tracking(Namespace(tracking="online", dry_run=False), "optuna", print)
    with pytest.raises(ValueError, match=r"\(HTTP 403\); set COMET_API_KEY .* or use --engine optuna"):
        _tracking(Namespace(tracking="auto", dry_run=False), "comet", print)


def test_dry_run_asks_nothing(server):
    num_requests = len(server.requests)
    assert _tracking(Namespace(tracking="auto", dry_run=True), "optuna", print) == "online"
    assert len(server.requests) == num_requests
