"""The guard that the other tests lean on: tests/offline leaves this machine reachable and nothing else."""

import textwrap
import time

import pytest


def script(run, code):
    return run(["-c", textwrap.dedent(code)], timeout=60).stdout.strip()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_reachable(run, host):
    said = script(
        run,
        f"""
        import socket, threading
        server = socket.create_server(("127.0.0.1", 0))
        def serve():
            conn, _ = server.accept()
            conn.sendall(b"hello")
            conn.close()
        threading.Thread(target=serve, daemon=True).start()
        with socket.create_connection(({host!r}, server.getsockname()[1]), timeout=10) as s:
            print(s.recv(5).decode())
        """,
    )
    assert said == "hello"


def test_unix_sockets_work(run):
    said = script(
        run,
        """
        import os, socket, tempfile
        path = os.path.join(tempfile.mkdtemp(), "s")
        server = socket.socket(socket.AF_UNIX); server.bind(path); server.listen()
        client = socket.socket(socket.AF_UNIX); client.connect(path)
        print("connected")
        """,
    )
    assert said == "connected"


@pytest.mark.parametrize("call", ["s.connect(there)", "socket.create_connection(there)", "s.connect_ex(there)"])
def test_an_address_elsewhere_is_refused_at_once(run, call):
    began = time.monotonic()
    said = script(
        run,
        f"""
        import errno, socket
        s = socket.socket(); s.settimeout(20)
        there = ("203.0.113.1", 80)
        try:
            print("no network" if {call} == errno.ENETUNREACH else "connected")
        except OSError as error:
            print(error)
        """,
    )
    assert "no network" in said
    assert time.monotonic() - began < 15  # a Python start; without the guard this waits for the 20 s above


def test_udp_elsewhere_is_refused(run):
    said = script(
        run,
        """
        import socket
        try:
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("203.0.113.1", 53))
        except OSError as error:
            print(error)
        """,
    )
    assert "no network in the tests" in said


@pytest.mark.parametrize("call", ["getaddrinfo('example.com', 80)", "gethostbyname('example.com')"])
def test_a_name_is_refused(run, call):
    said = script(
        run,
        f"""
        import socket
        try:
            print(socket.{call})
        except socket.gaierror as error:
            print("gaierror:", error)
        """,
    )
    assert said.startswith("gaierror:") and "no network in the tests: looking up 'example.com'" in said


def test_child_processes_inherit_it(run):
    said = script(
        run,
        """
        import subprocess, sys
        code = "import urllib.request; urllib.request.urlopen('https://example.com')"
        print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr)
        """,
    )
    assert "no network in the tests" in said
