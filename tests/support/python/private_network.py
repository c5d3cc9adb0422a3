"""A network and name resolution of a test's own.

Within it every address of 127.0.0.0/8 and ::1 is free, and names are looked up
at 127.0.0.1, port 53, where a name_server.NameServer can answer. The machine
outside is neither seen nor touched.
"""

import ctypes
import fcntl
import os
import pathlib
import socket
import struct
import tempfile

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1

_RESOLV_CONF = """nameserver 127.0.0.1
options timeout:1 attempts:1
"""


def _call(function, *arguments):
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")


def _raise_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", b"lo", 0)
        request = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("16sh", request)[1] | _IFF_UP
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS,
                    struct.pack("16sh22x", b"lo", flags))


def enter():
    """Moves the calling thread, and what it starts from now on, there.

    To be called before anything starts threads. Returns why it is not
    possible, or None when it is done. Tests that need no names work either way.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        _call(libc.unshare, _CLONE_NEWNS | _CLONE_NEWNET)
        _raise_loopback()
        _call(libc.mount, b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        with tempfile.NamedTemporaryFile("w", delete=False) as file:
            file.write(_RESOLV_CONF)
        target = os.path.realpath("/etc/resolv.conf")
        if not pathlib.Path(target).exists():
            return f"{target} does not exist"
        os.chmod(file.name, 0o644)
        _call(libc.mount, file.name.encode(), target.encode(), None, _MS_BIND,
              None)
        os.unlink(file.name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 53))
    except OSError as error:
        return f"no private network is possible here: {error}"
    return None


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False
