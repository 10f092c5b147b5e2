"""Who made a bundle: signatures over its manifest by OpenSSH's keys (`ssh-keygen -Y`, PROTOCOL.sshsig).

A manifest holds the hash of every file, so a signature over its bytes covers the bundle. The file `signature` lies
beside it, outside the hashes. Who is trusted stands in a file of OpenSSH's form ALLOWED SIGNERS (ssh-keygen(1)).
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import Mendable
from common.files import write_whole
from common.schema import Malformed, read_bounded, shown

NAMESPACE = "harmowam-bundle"  # a signature made for mails or commits is none for a bundle
SIGNATURE = "signature"
MANIFEST = "manifest.json"
MOST_BYTES = 64 * 1024  # of a signature; that of an RSA key of 16,384 bits has 6 KB
ANSWER_S = 30.0  # ssh-keygen needs 5 ms to verify


class SignatureError(Mendable):
    """A bundle that is not signed as asked for, or that cannot be signed; one sentence and the next step."""


@dataclass(frozen=True)
class Trust:
    """`[trust]` of a robot file. `signers`: whose bundles are run; `engines`: the list of TensorRT engines that are
    (`runtime.engines.listed`), None where there is none."""

    signers: Path
    engines: Path | None = None


@dataclass(frozen=True)
class Signed:
    """`principal`: the signer's name in the signers file, "" where none was looked at; `key`: such as
    "ED25519 SHA256:..."."""

    key: str
    principal: str = ""


def _ssh_keygen(
    args: Sequence[str | Path], data: bytes = b"", seconds: float | None = ANSWER_S
) -> tuple[int, bytes, str]:
    """Exit code, output and last line of the errors of `ssh-keygen` with `data` as its input. Raises SignatureError
    where it is missing or does not end."""
    try:
        done = subprocess.run(
            ["ssh-keygen", *map(str, args)], input=data, capture_output=True, timeout=seconds, check=False
        )
    except FileNotFoundError as e:
        raise SignatureError(
            "ssh-keygen is missing, by which bundles are signed and verified: run `sudo apt-get install "
            "openssh-client`."
        ) from e
    except subprocess.TimeoutExpired as e:
        raise SignatureError(
            f"ssh-keygen has not answered for {ANSWER_S:g} s: try again, or restart this machine."
        ) from e
    said = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    return done.returncode, done.stdout, shown(said[-1]) if said else f"exit code {done.returncode}"


def sign(bundle: Path, key: Path) -> Signed:
    """Sign the manifest of the folder `bundle`, with a private key or with a public one whose other half an agent has.

    The caller has checked the bundle. A key with a passphrase makes ssh-keygen ask for it. Raises SignatureError, and
    leaves an earlier signature as it is.
    """
    if not key.is_file():
        raise SignatureError(f"{key} is no key: make one with `ssh-keygen -t ed25519 -f KEY`, and name it with --key.")
    data = (bundle / MANIFEST).read_bytes()
    code, made, said = _ssh_keygen(["-Y", "sign", "-f", key, "-n", NAMESPACE], data, seconds=None)
    if code or not made:
        raise SignatureError(f"{key} cannot sign ({said}): name another key with --key.")
    try:
        write_whole(bundle / SIGNATURE, made)
    except OSError as e:
        raise SignatureError(f"{bundle / SIGNATURE} cannot be written ({e.strerror}): copy the bundle first.") from e
    found = looked_at(bundle, data)
    assert found is not None
    return found


def looked_at(bundle: Path, manifest: bytes) -> Signed | None:
    """With which key `manifest`, the bytes of `bundle`'s, was signed; None without a signature.

    Raises SignatureError where the signature is damaged or belongs to other bytes. Anybody can sign: whose key it is,
    `verify` says.
    """
    file = bundle / SIGNATURE
    if not file.is_file():
        return None
    with _copy(file) as signature:
        return _intact(bundle, signature, manifest)


def verify(bundle: Path, manifest: bytes, signers: Path) -> Signed:
    """Who of the file `signers` signed `manifest`, the bytes of `bundle`'s. Raises SignatureError for a manifest that
    is not signed, that was altered since, or that somebody else has signed."""
    if not signers.is_file():
        raise SignatureError(
            f"the signers file {signers} is missing: write one with a line `NAME PUBLIC_KEY` for each signer."
        )
    file = bundle / SIGNATURE
    if not file.is_file():
        raise SignatureError(
            f"{bundle} is not signed, and only what {signers} lists is trusted here: sign it on the workstation with "
            "`harmowam bundle sign BUNDLE --key KEY`, and copy it again."
        )
    with _copy(file) as signature:
        found = _intact(bundle, signature, manifest)
        code, names, said = _ssh_keygen(["-Y", "find-principals", "-s", signature, "-f", signers])
        # One a line, or by commas in older releases of OpenSSH; a name holds no comma.
        principals = [name for name in re.split("[,\n]", names.decode(errors="replace").strip()) if name]
        if code or not principals:
            raise SignatureError(
                f"{bundle} is signed by the key {found.key}, which {signers} does not list ({said}): add its signer's "
                "line there, or have the bundle signed by somebody whom it lists."
            )
        for principal in principals:
            who = ("-f", signers, "-I", principal)
            code, _, said = _ssh_keygen(["-Y", "verify", "-n", NAMESPACE, "-s", signature, *who], manifest)
            if code == 0:
                return Signed(found.key, principal)
    raise SignatureError(
        f"{bundle} is signed by '{shown(principals[0])}', who may not sign bundles by {signers} ({said}): correct its "
        f"namespaces (there, {NAMESPACE}) and its times, or have the bundle signed by somebody else."
    )


@contextlib.contextmanager
def _copy(file: Path) -> Iterator[Path]:
    """The bytes of a signature in a file of ours, which nobody exchanges between two looks. Raises SignatureError for
    one that cannot be read."""
    try:
        data = read_bounded(file, MOST_BYTES)
    except (OSError, Malformed) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise SignatureError(f"{file} is no signature ({why}): copy the bundle again from the workstation.") from e
    with tempfile.NamedTemporaryFile(prefix="harmowam-signature-") as copy:
        copy.write(data)
        copy.flush()
        yield Path(copy.name)


def _intact(bundle: Path, signature: Path, manifest: bytes) -> Signed:
    code, said, why = _ssh_keygen(["-Y", "check-novalidate", "-n", NAMESPACE, "-s", signature], manifest)
    key = re.search(r"with (\S+) key (SHA256:\S+)", said.decode(errors="replace"))
    if code or key is None:
        raise SignatureError(
            f"{bundle} is not what was signed: its signature does not fit its manifest ({why}): copy it again from the "
            "workstation, or sign it again there."
        )
    return Signed(f"{key[1]} {key[2]}")
