"""With this folder on PYTHONPATH, Python reaches this machine only: the tests prove that nothing needs a network.

Python imports `sitecustomize` at start-up, so child processes and Jupyter kernels are covered as well. What compiled code
does with sockets of its own (gloo, NCCL) goes past it.
"""

import errno
import ipaddress
import socket

_real = {name: getattr(socket, name) for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr")}
_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex
_sendto = socket.socket.sendto


def _text(what):
    return f"no network in the tests: {what} was refused by tests/offline/sitecustomize.py"


def _own_name(host):
    return host in (None, "", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname())


def _own_address(host):
    try:
        ip = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    if ip.is_loopback or ip.is_unspecified:
        return True
    try:
        infos = _real["getaddrinfo"](socket.gethostname(), None)
    except OSError:
        return False
    return str(ip) in {info[4][0] for info in infos}


def _here(host):
    if isinstance(host, (bytes, bytearray)):
        host = bytes(host).decode("ascii", "replace")
    return _own_name(host) or _own_address(host)


def _allowed(sock, address):
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True  # unix sockets and the like
    return not isinstance(address, tuple) or _here(address[0])


def connect(self, address):
    if not _allowed(self, address):
        raise OSError(errno.ENETUNREACH, _text(f"connecting to {address!r}"))
    return _connect(self, address)


def connect_ex(self, address):
    return _connect_ex(self, address) if _allowed(self, address) else errno.ENETUNREACH


def sendto(self, data, *rest):
    if not _allowed(self, rest[-1]):
        raise OSError(errno.ENETUNREACH, _text(f"sending to {rest[-1]!r}"))
    return _sendto(self, data, *rest)


def _guarded(name):
    def lookup(host, *args, **kwargs):
        if not _here(host):
            raise socket.gaierror(socket.EAI_NONAME, _text(f"looking up {host!r}"))
        return _real[name](host, *args, **kwargs)

    return lookup


socket.socket.connect = connect
socket.socket.connect_ex = connect_ex
socket.socket.sendto = sendto
for _name in _real:
    setattr(socket, _name, _guarded(_name))
