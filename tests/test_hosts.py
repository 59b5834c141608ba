"""Two processes on one machine train together, are killed and continue, and have the losses of one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.system
COMMAND = (
    "pretrain --model cpu-1m --optimizer racs --rate 0.02 --steps 12 --batch 8 --length 32 "
    "--checkpoint-every 4 --evaluate-every 4"
)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(out, text, hosts, devices):
    """Start the command on several hosts, each with several simulated devices."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    words = [*COMMAND.split(), "--text", str(text), "--out", str(out), "--mesh", f"data=2,fsdp={hosts * devices // 2}"]
    together = ["--coordinator", f"127.0.0.1:{free_port()}", "--hosts", str(hosts)] if hosts > 1 else []
    return [
        subprocess.Popen(
            [sys.executable, "-m", "fimlens.cli.app", *words, *together, *(["--host", str(k)] if hosts > 1 else [])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in range(hosts)
    ]


def finished(processes):
    outputs = [process.communicate(timeout=280)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)


def losses(out):
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: (line["loss"], line["held_out"]) for line in lines}


def test_two_hosts_train_like_one_and_continue_after_a_kill(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for k in range(20):
        (text / f"{k:02}.txt").write_text(f"file {k} says that {k * k} is the square of {k}. " * 60)
    finished(start(tmp_path / "one", text, hosts=1, devices=4))
    finished(start(tmp_path / "two", text, hosts=2, devices=2))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    for step, (loss, held_out) in one.items():
        assert two[step][0] == pytest.approx(loss, rel=1e-4)
        assert held_out is None or two[step][1] == pytest.approx(held_out, rel=1e-4)
    processes = start(tmp_path / "killed", text, hosts=2, devices=2)
    deadline = time.time() + 200
    while time.time() < deadline and not (tmp_path / "killed" / "checkpoints" / "4").exists():
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished(start(tmp_path / "killed", text, hosts=2, devices=2))
    assert losses(tmp_path / "killed") == two
