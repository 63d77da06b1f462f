"""Debian's real adbd: on this processor, and as ARM64 code under qemu with the runtimes' ARM64 builds."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import debian
import namespaces
import pytest
from namespaces import PORT, Boxed
from phones import QUICK, put

from edgedistill.errors import InfrastructureError
from edgedistill.runners import How, Job, adb, ssh
from edgedistill.runners._adb import Adb
from edgedistill.runners._program.runtimes import Llama
from edgedistill.runners._session import opened
from edgedistill.specs import Provenance

Cli = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [pytest.mark.device, pytest.mark.timeout(900)]
# Debian's newest needs its own C library, and looks for its backends in one place.
LLAMA = """#!/bin/sh
d=/llama/usr/lib/aarch64-linux-gnu
export GGML_BACKEND_PATH=$d/ggml/backends0/libggml-cpu-armv8.0_1.so
exec $d/ld-linux-aarch64.so.1 --library-path $d:$d/llama /llama/usr/bin/{name} "$@"
"""
# Asks llama.cpp's own server for the whole distribution behind a prompt of ids, and for what it chooses.
ASK = """
import json, subprocess, sys, time, urllib.request
model, request, answer = sys.argv[1:]
log = open(model + ".log", "wb")
server = subprocess.Popen(["llama-server", "-m", model, "--host", "127.0.0.1", "--port", "18081", "-t", "1", "-c", "96",
                           "--no-webui"], stdout=log, stderr=log)
try:
    for _ in range(120):
        try:
            asked = urllib.request.Request("http://127.0.0.1:18081/completion", open(request, "rb").read(),
                                           {"Content-Type": "application/json"})
            open(answer, "wb").write(urllib.request.urlopen(asked, timeout=60).read())
            break
        except OSError:
            time.sleep(1)
finally:
    server.kill()
    server.wait()
"""
DECODER = Path(__file__).parents[1] / "runners"
SERIAL = f"127.0.0.1:{PORT}"


def boxed(tmp: Path, monkeypatch: pytest.MonkeyPatch, client: str, command: list[str], **how: object) -> Boxed:
    """A daemon, and $ADB as the client inside its network, whose server runs there as well."""
    made = namespaces.start(tmp, command, **how)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    path = made.client(client, {"HOME": str(tmp), "TMPDIR": str(tmp), "ANDROID_ADB_SERVER_PORT": port})
    monkeypatch.setenv("ADB", str(path))
    # adb would start its server from /proc/self/exe, which is the loader when the tree's own is used
    command = [str(path), "-L", f"tcp:{port}", "nodaemon", "server"]
    made.also.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    deadline = time.monotonic() + 20
    while not namespaces.listens(made.inner, int(port)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return made


def own(tree: Path, program: str) -> list[str]:
    """A program of the tree with the tree's own loader and libraries, whatever this machine's are."""
    folders = [tree / name / "x86_64-linux-gnu" for name in ("lib", "usr/lib")]
    folders.append(folders[1] / "android")
    found = tree / "usr/lib/android-sdk/platform-tools" / program
    loader = folders[0] / "ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", ":".join(map(str, folders)), str(found)]


def google_adb() -> str:
    return str(pytest.importorskip("adbutils", reason="needs the extra `android`").adb_path())


@pytest.fixture(params=["Google's adb", "Debian's adb"])
def device(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxed]:
    """adbd on this processor, with either client."""
    try:
        tree = debian.folder_of(debian.ADBD_X86)
        client = google_adb() if request.param.startswith("Google") else " ".join(own(tree, "adb"))
        daemon = ["env", f"ADBD_PORT={PORT}", f"TMPDIR={tmp_path}", *own(tree, "adbd")]
        made = boxed(tmp_path, monkeypatch, client, daemon)
    except debian.NotHere as reason:
        pytest.skip(str(reason))
    yield made
    made.close()


def test_a_real_adbd(device: Boxed, job: Job) -> None:
    how = How(where=SERIAL, python=sys.executable)
    seen = adb.measure_many({"m": job}, launches=2, timing=QUICK, how=how)["m"]
    assert seen.outputs is not None
    assert (seen.outputs.labels_agree, seen.outputs.max_abs_difference) == (16, 0.0)
    assert len(seen.launch_counts) == 2
    device.close()
    with pytest.raises(InfrastructureError):
        adb.measure_many({"m": job}, launches=1, timing=QUICK, how=how)


def test_a_real_adbd_that_goes_in_the_middle_of_a_command(device: Boxed, job: Job, tmp_path: Path) -> None:
    """Debian's adb ends 0 with half of the output then, Google's 255: both are a lost device, and no measurement."""
    started = tmp_path / "started"
    put(tmp_path / "slow", f'case "$*" in *_program*) touch {started}; sleep 60;; *) exec {sys.executable} "$@";; esac')

    def cut() -> None:
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        device.process.kill()

    threading.Thread(target=cut, daemon=True).start()
    how = How(where=SERIAL, python=str(tmp_path / "slow"), reconnect_s=1.0)
    with pytest.raises(InfrastructureError, match=r"lost in the middle|offline|not connected") as caught:
        adb.measure_many({"m": job}, launches=1, timing=QUICK, how=how)
    assert caught.value.exit_code == 5
    assert "It was not back after 1 s" in str(caught.value)


def arm_tree() -> tuple[Path, str]:
    """The ARM64 tree, ready to be run, and the emulator.

    Raises:
        NotHere: it cannot be fetched.
    """
    tree, qemu = debian.folder_of(debian.PHONE), debian.folder_of(debian.QEMU) / "qemu-aarch64"
    packages = tree / "usr/local/lib/python3.11/dist-packages"
    packages.mkdir(parents=True, exist_ok=True)
    (packages / "site.pth").write_text("/site\n")
    if not (tree / "bin/sh").exists():
        (tree / "bin/sh").symlink_to("dash")
    return tree, str(qemu)


@pytest.fixture
def arm_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxed]:
    """An ARM64 tree in which everything runs under qemu: adbd, the shell, Python, the runtimes."""
    try:
        tree, qemu = arm_tree()
        (tree / "usr/local/bin").mkdir(parents=True, exist_ok=True)
        for name in ("llama-bench", "llama-server"):
            (tree / "usr/local/bin" / name).write_text(LLAMA.replace("{name}", name))
            (tree / "usr/local/bin" / name).chmod(0o755)
        told = {"ADBD_PORT": str(PORT), "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/",
                "LD_LIBRARY_PATH": "/usr/lib/aarch64-linux-gnu/android",
                "ED_BINDS": f"{debian.folder_of(debian.LLAMA)}:llama"}  # fmt: skip
        daemon = ["/usr/lib/android-sdk/platform-tools/adbd"]
        made = boxed(tmp_path, monkeypatch, google_adb(), daemon, root=tree, qemu=qemu, environment=told)
    except debian.NotHere as reason:
        pytest.skip(str(reason))
    yield made
    made.close()


def test_arm64_answers_the_same_bits_and_is_no_figure_of_speed(arm_phone: Boxed, job: Job) -> None:
    how = How(where=SERIAL, python="/usr/bin/python3.11")
    seen = adb.measure_many({"m": job}, launches=1, timing=replace(QUICK, timeout_s=120.0), how=how)["m"]
    assert seen.fingerprint is not None
    assert seen.fingerprint.machine == "aarch64"
    assert "qemu" in seen.fingerprint.emulator
    assert seen.provenance is Provenance.EMULATED
    assert seen.outputs is not None
    assert (seen.outputs.labels_agree, seen.outputs.max_abs_difference) == (16, 0.0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Callable[[str, str], Path]:
    """`exported("static_int8", "tflite")`: the bundle of a real build; builds share what they can."""
    folder = tmp_path_factory.mktemp("exported")
    text = (Path(__file__).parents[2] / "profiles" / "tiny.toml").read_text()

    def build(activations: str, formats: str) -> Path:
        (folder / f"{activations}.toml").write_text(f'{text}\n[export.scheme]\nactivations = "{activations}"\n')
        done = cli("build", "--target", "pixel8", "--profile", folder / f"{activations}.toml", "--format", formats,
                   "--store", folder / "store", "--out", folder / activations)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return folder / activations

    return build


def test_an_exported_file_answers_the_same_bits_on_arm64(
    arm_phone: Boxed, exported: Callable[[str, str], Path], cli: Cli, tmp_path: Path
) -> None:
    bundle, out = exported("static_int8", "tflite"), tmp_path / "arm.json"
    done = cli("bench", bundle, "--on", f"adb:{SERIAL}", "--python", "/usr/bin/python3.11", "--launches", "1",
               "--tolerance", "0", "--out", out, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text()) == json.loads(done.stdout)
    for seen in json.loads(done.stdout).values():
        outputs = seen["measurement"]["outputs"]
        assert outputs["max_abs_difference"] <= 5e-7  # golden.json keeps six decimals
        assert outputs["labels_agree"] == outputs["samples"]
        assert seen["measurement"]["provenance"] == "emulated"
    judged = cli("gate", bundle, "--measured", out)
    assert judged.returncode == 4
    assert "emulated on adb: " in judged.stdout + judged.stderr
    assert "only a measurement counts" in " ".join((judged.stdout + judged.stderr).split())


def test_an_exported_gguf_runs_on_arm64(arm_phone: Boxed, exported: Callable[[str, str], Path], cli: Cli) -> None:
    bundle = exported("dynamic_int8", "tflite,gguf")
    done = cli("bench", bundle, "--format", "gguf", "--on", f"adb:{SERIAL}", "--python", "/none",
               "--tool", "device:/usr/local/bin/llama-bench", "--launches", "1", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for seen in json.loads(done.stdout).values():
        assert seen["measurement"]["provenance"] == "emulated"
        assert seen["measurement"]["tokens_per_s"]["prefill"] > 0
        assert "llama-bench" in seen["measurement"]["runtime"]


def test_a_gguf_decoder_answers_on_arm64_what_it_answers_here(arm_phone: Boxed, tmp_path: Path) -> None:
    """The whole distribution behind a prompt, from llama.cpp's ARM64 code; llama-cpp-python has no ARM64 build."""
    golden = json.loads((DECODER / "tiny_decoder.json").read_text())
    (tmp_path / "ask.py").write_text(ASK)
    request = {"prompt": golden["prompt"], "n_predict": 6, "n_probs": 150, "cache_prompt": False,
               "samplers": ["top_k"], "top_k": 1}  # fmt: skip
    (tmp_path / "request.json").write_text(json.dumps(request))
    with opened(Adb(SERIAL)) as session:
        model, ask, asked = (
            session.push(path)
            for path in (DECODER / "tiny_decoder.gguf", tmp_path / "ask.py", tmp_path / "request.json")
        )
        answer = f"{session.folder}/answer.json"
        ended = session.run(["/usr/bin/python3.11", ask, model, asked, answer], environment={}, timeout_s=200)
        assert ended.status == 0, ended.stderr
        session.pull(answer, tmp_path / "answer.json")
    told = json.loads((tmp_path / "answer.json").read_text())["completion_probabilities"]
    found = {item["id"]: item["logprob"] for item in told[0]["top_logprobs"]}
    here = _here(golden["prompt"])
    assert len(found) == len(here) == 150
    difference = max(abs(found[token] - here[token]) for token in found)
    assert difference < 0.01, difference
    assert max(abs(found[n] - exact) for n, exact in enumerate(_log_softmax(golden["logits"]))) < 0.15
    assert [item["id"] for item in told[:5]] == golden["answer"][:5]


def _here(prompt: list[int]) -> list[float]:
    """The same from llama.cpp on this processor."""
    import numpy as np

    asked = {"model": str(DECODER / "tiny_decoder.gguf"), "threads": 1, "inputs": {}, "decode_tokens": 1,
             "prompt_tokens": len(prompt)}  # fmt: skip
    bound = Llama(asked)
    bound.feed({"input_ids": np.array([prompt])})
    bound.invoke()
    return _log_softmax(bound.read()["logits"].tolist())


def _log_softmax(logits: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in logits))
    return [value - total for value in logits]


@pytest.fixture
def arm_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxed]:
    """The same tree behind its own ARM64 sshd, and `ssh` and `scp` that run in its network."""
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name], check=True, timeout=20)
    (keys / "sshd_config").write_text(
        "HostKey /keys/host\nAuthorizedKeysFile /keys/client.pub\nUsePAM no\nStrictModes no\nPidFile none\n"
        "PasswordAuthentication no\nPermitRootLogin prohibit-password\nListenAddress 127.0.0.1\n"
        "Subsystem sftp internal-sftp\nSetEnv PATH=/usr/local/bin:/usr/bin:/bin\n"
    )
    (tmp_path / "ssh_config").write_text(
        f"Host *\n  IdentityFile {keys}/client\n  IdentitiesOnly yes\n  UserKnownHostsFile {tmp_path}/known\n"
        f"  StrictHostKeyChecking accept-new\n"
    )
    try:
        tree, qemu = arm_tree()
        (tree / "etc").mkdir(exist_ok=True)
        for folder in ("run/sshd", "root"):
            (tree / folder).mkdir(parents=True, exist_ok=True)
        (tree / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
        )
        (tree / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", "/keys/sshd_config", "-p", str(PORT)]
        made = namespaces.start(
            tmp_path, command, root=tree, qemu=qemu, users=True,
            environment={"HOME": "/", "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "ED_BINDS": f"{keys}:keys"},
        )  # fmt: skip
    except debian.NotHere as reason:
        pytest.skip(str(reason))
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("ssh", "scp"):
        found = shutil.which(name)
        assert found
        made.client(found, {}).rename(programs / name)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("EDGEDISTILL_SSH_CONFIG", str(tmp_path / "ssh_config"))
    yield made
    made.close()


@pytest.mark.skipif(not shutil.which("ssh"), reason="needs an ssh client: apt install openssh-client")
def test_arm64_behind_its_own_sshd_answers_the_same_bits(arm_board: Boxed, job: Job) -> None:
    how = How(where=f"root@127.0.0.1:{PORT}", python="/usr/bin/python3.11")
    seen = ssh.measure_many({"m": job}, launches=1, timing=replace(QUICK, timeout_s=120.0), how=how)["m"]
    assert seen.fingerprint is not None
    assert (seen.fingerprint.runner, seen.fingerprint.machine) == ("ssh", "aarch64")
    assert "qemu" in seen.fingerprint.emulator
    assert seen.provenance is Provenance.EMULATED
    assert seen.outputs is not None
    assert (seen.outputs.labels_agree, seen.outputs.max_abs_difference) == (16, 0.0)
