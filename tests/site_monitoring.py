"""A site's monitoring for tests: a real Prometheus, and an exporter of known watts under known exporters' names."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from processes import bound

SCRAPE_S = 0.4  # a busy machine may miss two of them, which is no gap yet
PUE = 1.2  # that the site's rules put into what CEEMS records

Joules = Callable[[float], float]  # from unix time, s


@dataclass(frozen=True)
class Board:
    """A GPU of the site: its watts at a unix time, and their integral from some time on."""

    uuid: str
    node: str
    power_w: Callable[[float], float]
    energy_j: Joules


def metrics(boards: list[Board], now_s: float) -> str:
    """What the exporters of all nodes say now, by the names, labels and units of the real ones."""
    lines = []
    for i, board in enumerate(boards):
        watts, joules = board.power_w(now_s), board.energy_j(now_s)
        dcgm = f'gpu="{i}",UUID="{board.uuid}",device="nvidia{i}",modelName="NVIDIA H100",Hostname="{board.node}"'
        jobstats = f'ordinal="{i}",minor_number="{i}",uuid="{board.uuid}",name="H100",GPU_I_ID="",jobid="17",userid="0"'
        ceems = (
            f'gpuuuid="{board.uuid}",gpuiid="",hostname="{board.node}",uuid="17",manager="slurm"'
        )
        lines += [
            f"DCGM_FI_DEV_POWER_USAGE{{{dcgm}}} {watts:.3f}",
            f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{dcgm}}} {126_000_000_000 + joules * 1e3:.0f}",
            # a slice of a board is no board
            f'DCGM_FI_DEV_POWER_USAGE{{{dcgm},GPU_I_ID="3"}} 9999',
            f"nvidia_gpu_power_usage_milliwatts{{{jobstats}}} {watts * 1e3:.0f}",
            f"uuid:ceems_gpu_power_watts:pue{{{ceems}}} {watts * PUE:.3f}",
        ]
    return "".join(f"{line}\n" for line in lines)


@contextlib.contextmanager
def served(
    answer: Callable[[BaseHTTPRequestHandler], tuple[int, dict[str, str], bytes]],
) -> Iterator[str]:
    """An HTTP server on 127.0.0.1 that answers each GET so; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, headers, body = answer(self)
            with contextlib.suppress(ConnectionError):
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def prometheus(folder: Path, boards: list[Board]) -> Iterator[str]:
    """A real Prometheus that scrapes such an exporter each 0.4 s; its URL once it has scraped."""
    program = shutil.which("prometheus")
    if program is None:
        if "prometheus" in os.environ.get("WATTFLOW_REQUIRE", "").split(","):
            pytest.fail("WATTFLOW_REQUIRE names prometheus, and none is on the PATH")
        pytest.skip("no prometheus on the PATH (slurm/testcluster/install.sh adds it)")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    scraped = threading.Event()

    def answer(_: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        scraped.set()
        return 200, {"Content-Type": "text/plain"}, metrics(boards, time.time()).encode()

    with served(answer) as exporter:
        config = folder / "prometheus.yml"
        config.write_text(
            f"global: {{scrape_interval: {SCRAPE_S * 1e3:.0f}ms, scrape_timeout: {SCRAPE_S * 1e3:.0f}ms}}\n"
            f"scrape_configs: [{{job_name: site, static_configs: [{{targets: ['{exporter[7:]}']}}]}}]\n"
        )
        with (folder / "prometheus.log").open("w") as log:
            server = subprocess.Popen(
                bound(
                    program,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--log.level=warn",
                ),
                stdout=log,
                stderr=log,
                env={**os.environ, "GOMAXPROCS": "1"},
            )
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_ready(server, url, folder / "prometheus.log")
            assert scraped.wait(60.0), "prometheus did not scrape"  # it begins after 5 s
            yield url
        finally:
            server.terminate()
            server.wait()


def _wait_ready(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline_s = time.monotonic() + 60.0
    while time.monotonic() < deadline_s:
        assert server.poll() is None, log.read_text()
        with (
            contextlib.suppress(URLError, ConnectionError, TimeoutError),
            urlopen(f"{url}/-/ready", timeout=1.0) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.05)
    pytest.fail(f"prometheus was not ready within 60 s: {log.read_text()}")


def promtool() -> str:
    """The path of promtool, which comes with Prometheus."""
    program = shutil.which("promtool")
    if program is None:
        if "prometheus" in os.environ.get("WATTFLOW_REQUIRE", "").split(","):
            pytest.fail("WATTFLOW_REQUIRE names prometheus, and no promtool is on the PATH")
        pytest.skip("no promtool on the PATH (slurm/testcluster/install.sh adds it)")
    return program
