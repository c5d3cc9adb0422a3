"""A DNS server whose answers a test changes while it runs."""

import ipaddress
import socket
import struct
import threading

_A, _AAAA = 1, 28
_NO_ERROR, _SERVFAIL, _NXDOMAIN = 0, 2, 3


class NameServer:
    """Answers over UDP at 127.0.0.1:53. A context manager."""

    def __init__(self):
        self._lock = threading.Lock()
        self._names = {}
        self._code = _NO_ERROR
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def set(self, name, *addresses):
        """From now on these are all the addresses of `name`; none: it does not
        exist."""
        with self._lock:
            self._code = _NO_ERROR
            self._names[name] = [ipaddress.ip_address(a) for a in addresses]

    def fail(self):
        """Answers SERVFAIL to everything until the next `set`."""
        with self._lock:
            self._code = _SERVFAIL

    def _serve(self):
        while True:
            try:
                query, sender = self._socket.recvfrom(4096)
                if not query:
                    return
                self._socket.sendto(self._answer(query), sender)
            except OSError:
                return

    def _answer(self, query):
        labels, offset = [], 12
        while query[offset]:
            size = query[offset]
            labels.append(query[offset + 1:offset + 1 + size].decode())
            offset += 1 + size
        question = query[12:offset + 5]
        (kind,) = struct.unpack_from("!H", query, offset + 1)
        with self._lock:
            code = self._code
            known = self._names.get(".".join(labels).lower(), [])
        if code == _NO_ERROR and not known:
            code = _NXDOMAIN
        version = {_A: 4, _AAAA: 6}.get(kind)
        found = [a.packed for a in known
                 if a.version == version and code == _NO_ERROR]
        # A response, recursion desired and available.
        header = query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(found),
                                         0, 0)
        records = b"".join(
            # The name of the question, class IN, not to be kept.
            b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 0, len(address)) +
            address for address in found)
        return header + question + records

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # recvfrom does not notice that its socket is closed.
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()
