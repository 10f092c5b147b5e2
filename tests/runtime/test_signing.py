"""Who made a bundle: signed by OpenSSH's keys, verified against a list of signers, asked for by a robot file."""

import json
import os
import re
import shutil
import subprocess

import pytest

from runtime.bundle import Bundle, BundleError
from runtime.doctor.trust import trust as looked_at_by_the_doctor
from runtime.robot import RobotError, load_robot
from runtime.signing import NAMESPACE, SignatureError, Trust
from tests.command import harmowam, refusal
from tests.runtime.signers import signer, trusting
from tests.tiny import edit_manifest, tiny_bundle


@pytest.fixture(scope="module")
def ada(tmp_path_factory):
    return signer(tmp_path_factory.mktemp("ada"), "ada@lab")


@pytest.fixture(scope="module")
def bob(tmp_path_factory):
    return signer(tmp_path_factory.mktemp("bob"), "bob@lab")


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path)


@pytest.fixture
def signers(tmp_path, ada):
    file = tmp_path / "signers"
    file.write_text(ada.line)
    return file


@pytest.fixture
def signed(bundle, ada):
    done = harmowam("bundle", "sign", bundle, "--key", ada.key)
    assert done.exit_code == 0, done.output
    return bundle


def fingerprint(who):
    told = subprocess.run(["ssh-keygen", "-l", "-f", who.key], capture_output=True, text=True, check=True).stdout
    return told.split()[1]


def test_a_signed_bundle_is_verified_by_its_signers_name(signed, signers, ada, tmp_path):
    done = harmowam("bundle", "verify", signed, "--signers", signers, "--json", tmp_path / "v.json")
    assert done.exit_code == 0 and "is signed by ada@lab with ED25519 SHA256:" in done.output
    said = json.loads((tmp_path / "v.json").read_text())
    assert said["principal"] == "ada@lab" and said["key"] == f"ED25519 {fingerprint(ada)}"
    assert said["digest"] == json.loads((signed / "manifest.json").read_text())["digest"]


def test_openssh_verifies_what_was_signed_here(signed, signers):
    """And the other way round: the signature is OpenSSH's own, over the manifest's bytes."""
    who = ["-f", signers, "-I", "ada@lab", "-n", "harmowam-bundle", "-s", signed / "signature"]
    data = (signed / "manifest.json").read_bytes()
    subprocess.run(["ssh-keygen", "-Y", "verify", *who], input=data, capture_output=True, check=True)


def test_a_signature_changes_nothing_of_the_bundle(bundle, ada):
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    digest = Bundle.load(bundle).digest
    harmowam("bundle", "sign", bundle, "--key", ada.key)
    assert Bundle.load(bundle).digest == digest
    after = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    assert after.pop(bundle / "signature").startswith(b"-----BEGIN SSH SIGNATURE-----") and after == before


def unsigned(bundle, bob):
    (bundle / "signature").unlink()


def altered(bundle, bob):
    edit_manifest(bundle, lambda m: m["joints"][0].update(upper=1.2))


def with_another_engine(bundle, bob):
    (bundle / "onnx/fast.onnx").write_bytes((bundle / "onnx/decoder.onnx").read_bytes())


def with_another_engine_and_its_hash(bundle, bob):
    with_another_engine(bundle, bob)
    edit_manifest(bundle, lambda m: m["files"].update({"onnx/fast.onnx": m["files"]["onnx/decoder.onnx"]}))


def by_a_foreign_key(bundle, bob):
    harmowam("bundle", "sign", bundle, "--key", bob.key)


def by_a_signature_for_mails(bundle, bob):
    data = (bundle / "manifest.json").read_bytes()
    command = ["ssh-keygen", "-Y", "sign", "-f", bob.key, "-n", "email"]
    (bundle / "signature").write_bytes(subprocess.run(command, input=data, capture_output=True, check=True).stdout)


def half_a_signature(bundle, bob):
    (bundle / "signature").write_bytes((bundle / "signature").read_bytes()[:90])


def no_signature(bundle, bob):
    (bundle / "signature").write_bytes(bytes(100_000))


REFUSED = {
    unsigned: r"is not signed, and only what \S+ lists is trusted here: sign it on the workstation with `harmowam",
    altered: "its signature does not fit its manifest .*: copy it again from the workstation",
    with_another_engine: "does not match its hash: copy it again",
    with_another_engine_and_its_hash: "its signature does not fit its manifest",
    by_a_foreign_key: r"is signed by the key ED25519 SHA256:\S+, which \S+ does not list .*: add its signer's line",
    by_a_signature_for_mails: "its signature does not fit its manifest",
    half_a_signature: "its signature does not fit its manifest",
    no_signature: r"is no signature \(it is larger than 64 KiB\): copy the bundle again",
}
VERBS = {
    "run": lambda bundle, robot: ("run", "--bundle", bundle, "--robot", robot),
    "profile": lambda bundle, robot: ("profile", "--bundle", bundle, "--robot", robot),
    "build": lambda bundle, robot: ("build", bundle, "--robot", robot, "--dry-run"),
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda f: f.__name__)
def test_what_is_not_signed_by_the_robots_signers_is_refused(spoil, signed, signers, bob, tmp_path):
    robot = trusting(tmp_path, 'signers = "signers"')
    spoil(signed, bob)
    for verb in VERBS.values():
        assert re.search(REFUSED[spoil], refusal(*verb(signed, robot)))
    assert re.search(REFUSED[spoil], refusal("bundle", "verify", signed, "--signers", signers))


def test_a_bundle_signed_by_one_of_them_is_taken(signed, signers, bob, tmp_path):
    signers.write_text(bob.line + signers.read_text())
    robot = trusting(tmp_path, 'signers = "signers"')
    for verb in ("run", "profile"):  # further on, the task is looked at
        said = refusal(*VERBS[verb](signed, robot), "--task", "none")
        assert "this bundle does not know the task 'none'" in said
    assert harmowam(*VERBS["build"](signed, robot)).exit_code == 0


def test_without_trust_in_the_robot_file_anything_whole_is_taken(bundle):
    assert "does not know the task" in refusal("run", "--bundle", bundle, "--task", "none")
    assert load_robot("so101").trust is None


def test_a_signer_may_be_bound_to_other_things_than_bundles(signed, signers, ada):
    name, key = ada.line.split(" ", 1)
    signers.write_text(f'{name} namespaces="git" {key}')
    said = refusal("bundle", "verify", signed, "--signers", signers)
    assert f"'ada@lab', who may not sign bundles by {signers}" in said and NAMESPACE in said
    signers.write_text(f'{name} namespaces="git,{NAMESPACE}" {key}')
    assert harmowam("bundle", "verify", signed, "--signers", signers).exit_code == 0


def test_what_cannot_sign_or_verify_is_said(bundle, signed, signers, tmp_path, monkeypatch):
    (tmp_path / "text").write_text("no key")
    assert "is no key: make one with `ssh-keygen" in refusal("bundle", "sign", bundle, "--key", tmp_path / "none")
    assert "cannot sign (" in refusal("bundle", "sign", bundle, "--key", tmp_path / "text")
    assert "signers file" in refusal("bundle", "verify", bundle, "--signers", tmp_path / "none")
    Bundle.load(bundle, Trust(signers))  # neither took the signature away
    monkeypatch.setenv("PATH", str(tmp_path))
    for verb in (("sign", bundle, "--key", signers), ("verify", bundle, "--signers", signers)):
        assert "ssh-keygen is missing, by which" in refusal("bundle", *verb)


def test_a_damaged_bundle_is_not_signed(bundle, ada):
    (bundle / "onnx/fast.onnx").write_bytes(b"x")
    assert "does not match its hash" in refusal("bundle", "sign", bundle, "--key", ada.key)
    assert not (bundle / "signature").exists()


def test_names_with_strange_letters_reach_no_shell(tmp_path, ada):
    """As a signer's, a folder's and a key's."""
    name = "$(touch pwned);`touch pwned` -x'\""
    odd = tmp_path / name
    odd.mkdir()
    key = shutil.copy(ada.key, odd / "-key")
    bundle = shutil.move(tiny_bundle(tmp_path), odd / "b.bundle")
    assert harmowam("bundle", "sign", bundle, "--key", key).exit_code == 0
    signers = odd / "-signers"
    signers.write_text("-x,$(touch${IFS}pwned) " + ada.line.split(" ", 1)[1])
    done = harmowam("bundle", "verify", bundle, "--signers", signers)
    assert done.exit_code == 0 and "is signed by -x with" in done.output
    assert not list(tmp_path.rglob("pwned")) and not os.path.exists("pwned")


def test_show_says_whether_there_is_a_signature(bundle, ada):
    assert "signature     none" in harmowam("bundle", "show", bundle).output
    harmowam("bundle", "sign", bundle, "--key", ada.key)
    assert f"by the key ED25519 {fingerprint(ada)}; whose that is" in harmowam("bundle", "show", bundle).output
    altered(bundle, None)
    assert "signature     BROKEN: " in harmowam("bundle", "show", bundle).output


@pytest.mark.parametrize("text", ['signers = ""', "", 'signers = "a"\nsigner = "b"', "signers = 3"])
def test_a_table_of_trust_that_names_nobody_is_refused(tmp_path, text):
    """A misprint must not read as trust in everybody."""
    with pytest.raises(RobotError, match=r"'trust\.signers?'"):
        load_robot(str(trusting(tmp_path, text)))


def test_the_doctor_says_whether_signatures_are_asked_for(tmp_path, signers, monkeypatch):
    (off,) = looked_at_by_the_doctor(load_robot("so101"))
    assert (off.state, off.found) == ("warn", "off: anybody's bundle is run") and "[trust] signers" in off.mend
    robot = load_robot(str(trusting(tmp_path, 'signers = "signers"')))
    assert [f.state for f in looked_at_by_the_doctor(robot)] == ["ok"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "ssh-keygen is missing" in next(looked_at_by_the_doctor(robot)).found
    monkeypatch.undo()
    signers.unlink()
    assert [f.state for f in looked_at_by_the_doctor(robot)] == ["bad"]


def test_what_is_exchanged_while_its_signature_is_looked_at_is_not_taken(signed, signers, bob, tmp_path, monkeypatch):
    whole = Bundle.load(signed).manifest
    other = shutil.copytree(signed, tmp_path / "other.bundle")
    altered(other, bob)
    exchanging = tmp_path / "bin" / "ssh-keygen"
    exchanging.parent.mkdir()
    exchange = f"cp {other}/manifest.json {signed}/manifest.json"
    exchanging.write_text(f'#!/bin/sh\n{exchange}\nexec {shutil.which("ssh-keygen")} "$@"\n')
    exchanging.chmod(0o755)
    monkeypatch.setenv("PATH", f"{exchanging.parent}:{os.environ['PATH']}")
    assert Bundle.load(signed, Trust(signers)).manifest == whole
    with pytest.raises(SignatureError, match="does not fit"):
        Bundle.load(signed, Trust(signers))


def test_an_engine_that_is_exchanged_after_the_look_at_its_hash_is_not_loaded(signed, signers):
    opened = Bundle.load(signed, Trust(signers))
    with_another_engine(signed, None)
    with pytest.raises(BundleError, match=r"fast\.onnx was exchanged while it was opened"):
        opened.engine("fast")
    assert opened.engine("decoder").inputs


def test_trust_without_a_signature_is_an_error_of_its_own(bundle, signers):
    with pytest.raises(SignatureError, match="is not signed"):
        Bundle.load(bundle, Trust(signers))
