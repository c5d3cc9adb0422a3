"""Certificates for tests, made by openssl."""

import pathlib
import subprocess


class Authority:
    """Signs certificates, in files of a folder."""

    def __init__(self, folder, name="authority"):
        self._folder = pathlib.Path(folder)
        self.certificate = self._folder / f"{name}.pem"
        self._key = self._folder / f"{name}.key"
        self._run("req", "-x509", *self._new_key(self._key), "-out",
                  self.certificate, "-days", 2, "-subj", f"/CN={name}")

    def issue(self, name, names="IP:127.0.0.1,DNS:localhost", days=1):
        """NAME.pem and NAME.key, for these subjectAltNames; replaces them."""
        files = {end: self._folder / f"{name}.{end}"
                 for end in ("pem", "key", "csr", "ext")}
        # A new key first: who reads now finds files that do not match.
        self._run("req", *self._new_key(files["key"]), "-out", files["csr"],
                  "-subj", f"/CN={name}")
        files["ext"].write_text(f"subjectAltName={names}")
        self._run("x509", "-req", "-in", files["csr"], "-CA", self.certificate,
                  "-CAkey", self._key, "-CAcreateserial", "-days", days,
                  "-out", files["pem"], "-extfile", files["ext"])
        return files["pem"], files["key"]

    @staticmethod
    def _new_key(path):
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                "-nodes", "-keyout", path)

    @staticmethod
    def _run(*arguments):
        done = subprocess.run(["openssl", *map(str, arguments)],
                              stdin=subprocess.DEVNULL, capture_output=True,
                              text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)


def flags(prefix, identity, authority=None):
    """PREFIX-cert, PREFIX-key and, with an authority, PREFIX-ca."""
    certificate, key = identity
    found = [f"{prefix}-cert", certificate, f"{prefix}-key", key]
    if authority is not None:
        found += [f"{prefix}-ca", authority.certificate]
    return found
