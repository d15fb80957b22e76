"""A PostgreSQL server of Debian's package, on a free port, in a temporary folder."""

import os
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.servers.processes import start, wait_until

BINARIES = os.pathsep.join(
    [*map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), os.environ.get("PATH", "")]
)
SETTINGS = {"fsync": "off", "max_connections": "60", "shared_buffers": "32MB"}


def is_installed():
    return bool(shutil.which("postgres", path=BINARIES) and shutil.which("initdb", path=BINARIES))


@contextmanager
def postgres_server():
    """Run a server in a folder that it can reach: those of pytest are the user's alone, and root's here at times."""
    with TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder))
        try:
            yield server
        finally:
            server.stop()


class PostgresServer:
    def __init__(self, folder):
        self.folder, self.data = folder, folder / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if os.getuid() == 0:  # the server refuses to run as root
            shutil.chown(folder, "postgres")
        self._run(
            "initdb", "--pgdata", self.data, "--username", "sweeper", "--auth", "trust", "--no-sync"
        ).check_returncode()
        self.start()

    @property
    def url(self):
        return f"postgresql://sweeper@127.0.0.1:{self.port}/postgres"

    def start(self):
        options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = [*self._as_owner(), shutil.which("postgres", path=BINARIES), "-D", str(self.data)]
        with (self.folder / "log.txt").open("a") as log:
            self.process = start(
                [*command, "-h", "127.0.0.1", "-p", self.port, "-k", self.folder, *options], stdout=log, stderr=log
            )
        wait_until(lambda: not self._run("pg_isready", "-h", self.folder, "-p", self.port).returncode, self.process)

    def stop(self, signal_number=signal.SIGINT):  # a fast shutdown: sessions are ended
        master = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(master, signal_number)
        self.process.wait()
        Path(self.data / "postmaster.pid").unlink(missing_ok=True)

    def kill_a_session(self):
        """Kill a process of the server (-9), whereupon it ends all sessions and recovers, without starting anew."""
        others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
        os.kill(int(self.ask(f"SELECT min(pid) FROM pg_stat_activity WHERE {others}")), signal.SIGKILL)
        wait_until(lambda: self.ask("SELECT 1") == "1", self.process)

    def ask(self, question):
        """Return what psql prints of the answer."""
        options = ["-h", self.folder, "-p", self.port, "-U", "sweeper", "-d", "postgres", "-AtX", "-c", question]
        return self._run("psql", *options).stdout.strip()

    def _run(self, program, *options):
        program = shutil.which(program, path=BINARIES)
        command = [*self._as_owner(), program, *map(str, options)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def _as_owner(self):
        return ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"] if os.getuid() == 0 else []
