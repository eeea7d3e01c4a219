"""Whether a server can be reached, before anything is downloaded."""

import http.server
import socket
import threading

import pytest

from data import DataError
from data.network import check_reachable


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200 if self.path == "/here" else 404)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_server_that_answers_is_reachable(server):
    check_reachable(f"{server}/here")


def test_a_missing_page_is_not(server):
    with pytest.raises(DataError, match=r"/gone: found it unreachable .*expected an answer"):
        check_reachable(f"{server}/gone")


@pytest.mark.parametrize("listening", [False, True], ids=["refuses", "never answers"])
def test_a_server_without_an_answer_is_not(listening):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        if listening:
            sock.listen()
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/here"
        with pytest.raises(DataError, match="unreachable") as error:
            check_reachable(url, timeout=0.2)
    assert "\n" not in str(error.value)
