"""The launchers: what they would run, and how they start, stop and start again."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "scripts" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
# Stands for the interpreter: notes its environment and arguments, then does what BEHAVIOUR says.
STUB = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 12345; exit 0; fi
echo "$$ ${JAX_PROCESS_ID:-} ${JAX_NUM_PROCESSES:-} ${JAX_COORDINATOR_ADDRESS:-} \
${CUDA_VISIBLE_DEVICES:-} $*" >>"$NOTES"
times=$(wc -l <"$NOTES")
eval "$BEHAVIOUR"
"""


@pytest.fixture
def stub(tmp_path):
    """`stub(name, behaviour)`: environment variables with an executable `name` that is found."""

    def make(name, behaviour):
        path = tmp_path / name
        path.write_text(STUB)
        path.chmod(0o755)
        notes = {"NOTES": str(tmp_path / "notes"), "BEHAVIOUR": behaviour, "PYTHON": str(path)}
        return os.environ | notes | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    return make


def launch(name, *arguments, env=None):
    command = ["bash", LAUNCH / f"{name}.sh", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT, timeout=600)


def without(*names):
    return {name: x for name, x in os.environ.items() if name not in names}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_is_bash_and_explains_itself(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    shown = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, check=True)
    assert "--config=" in shown.stdout and "#SBATCH" not in shown.stdout


def test_dry_run_on_gpus_says_what_each_process_gets():
    env = without("CUDA_VISIBLE_DEVICES", "PYTHON")
    done = launch("gpus", "--dry-run", "--config=a.py", "--config.model.patch=(8, 8)", env=env)
    train = ["python", "-m", "mae_jax.train", "--config=a.py", "--config.model.patch=(8, 8)"]
    assert shlex.split(done.stdout) == train

    env |= {"CUDA_VISIBLE_DEVICES": "3,5"}
    done = launch("gpus", "--processes=2", "--port=77", "--dry-run", "--config=a.py", env=env)
    for index, line in enumerate(done.stdout.splitlines()):
        assert shlex.split(line)[:4] == [
            f"CUDA_VISIBLE_DEVICES={(3, 5)[index]}",
            "JAX_COORDINATOR_ADDRESS=127.0.0.1:77",
            "JAX_NUM_PROCESSES=2",
            f"JAX_PROCESS_ID={index}",
        ]
    for wrong in ("--processes=3", "--processes=many"):
        assert launch("gpus", wrong, "--dry-run", "--config=a.py", env=env).returncode == 2


def test_dry_run_on_a_tpu_slice_quotes_what_the_hosts_run():
    arguments = ["--config=a.py", "--config.model.patch=(8, 8)", "--workdir=gs://b/c d"]
    done = launch("tpu", "--dry-run", "--name=n", "--zone=z", "--project=p", *arguments)
    *gcloud, remote = shlex.split(done.stdout)
    words = "gcloud compute tpus tpu-vm ssh n --zone=z --project=p --worker=all"
    assert gcloud == words.split()
    shell = remote.removeprefix("--command=")
    assert shell.startswith("cd mae_jax && exec env MAE_JAX_DISTRIBUTED=1 .venv/bin/python -m ")
    assert shlex.split(shell)[-3:] == arguments
    refused = launch("tpu", *arguments)
    assert refused.returncode == 2 and "Give --name=NAME" in refused.stderr


def test_dry_run_on_slurm_and_all_gpus_of_a_lone_task():
    env = without("SLURM_NTASKS_PER_NODE", "PYTHON")
    done = launch("slurm", "--dry-run", "--config=a.py", "--config.model.patch=(8, 8)", env=env)
    words = shlex.split(done.stdout)
    assert words[0] == "srun" and words[-2:] == ["--config=a.py", "--config.model.patch=(8, 8)"]
    env |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "4"}
    done = launch("slurm", "--dry-run", "--config=a.py", env=env)
    assert done.stdout.splitlines()[0] == "JAX_LOCAL_DEVICE_IDS=0,1,2,3"


# Stands for srun: runs two processes, and returns the highest status.
SRUN = """while [[ $1 == -* ]]; do shift; done
"$@" & first=$!; "$@" & second=$!
trap : TERM
while kill -0 $first 2>/dev/null || kill -0 $second 2>/dev/null; do sleep 0.1; done
wait $first; one=$?; wait $second; two=$?
exit $((one > two ? one : two))
"""


@pytest.mark.parametrize("status, queued", [(42, True), (1, False), (0, False)])
def test_slurm_queues_a_preempted_job_again(stub, tmp_path, status, queued):
    """And only that. A preempted process looks successful to srun, which would end the others."""
    env = slurm(stub, tmp_path, f"exit {status}")
    done = launch("slurm", "--config=a.py", env=env)
    assert done.returncode == (0 if queued else status)
    assert "srun --kill-on-bad-exit=1 " in done.stdout
    assert ("requeue 77" in (tmp_path / "notes").read_text()) == queued
    assert not list(tmp_path.glob("mae_jax_preempted_*"))


def test_slurm_lets_all_processes_save(stub, tmp_path):
    """Slurm signals the shells around them too."""
    env = slurm(stub, tmp_path, "trap 'sleep 0.5; exit 42' TERM; while true; do sleep 0.1; done")
    command = ["bash", LAUNCH / "slurm.sh", "--config=a.py"]
    process = subprocess.Popen(command, env=env, start_new_session=True)
    wait_for_processes(tmp_path, 2)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert "requeue 77" in (tmp_path / "notes").read_text()


def slurm(stub, folder, behaviour):
    """The environment of a job whose processes behave like that."""
    for name, text in (("srun", SRUN), ("scontrol", 'echo "$*" >>"$NOTES"')):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return stub("python", behaviour) | {"SLURM_JOB_ID": "77", "TMPDIR": str(folder)}


def wait_for_processes(folder, count):
    notes = folder / "notes"
    while not notes.exists() or len(notes.read_text().splitlines()) < count:
        time.sleep(0.05)
    time.sleep(0.3)  # until the traps are set


def test_starts_a_preempted_run_again(stub, tmp_path):
    """All its processes, until they end in another way."""
    env = stub("python", "((times <= 4)) && exit 42; exit 0")
    done = launch("gpus", "--processes=2", "--config=a.py", env=env)
    assert done.returncode == 0 and done.stderr.count("preempted: starting again") == 2
    notes = [line.split(" ", 1)[1] for line in (tmp_path / "notes").read_text().splitlines()]
    one = [f"{i} 2 127.0.0.1:12345 {i} -m mae_jax.train --config=a.py" for i in (0, 1)]
    assert sorted(notes) == sorted(one * 3)


def test_ends_all_when_one_dies(stub, tmp_path):
    env = stub("python", "[[ $JAX_PROCESS_ID == 1 ]] && exit 7; exec sleep 60") | {"GRACE": "1"}
    begin = time.monotonic()
    done = launch("gpus", "--processes=3", "--config=a.py", env=env)
    assert done.returncode == 7 and time.monotonic() - begin < 20
    assert "ending the others" in done.stderr
    assert_gone(tmp_path, 3)


@pytest.mark.parametrize("processes", [1, 2])
def test_passes_sigterm_on_and_does_not_start_again(stub, tmp_path, processes):
    env = stub("python", "trap 'exit 42' TERM; while true; do sleep 0.1; done")
    command = ["bash", LAUNCH / "gpus.sh", f"--processes={processes}", "--config=a.py"]
    process = subprocess.Popen(command, env=env)
    wait_for_processes(tmp_path, processes)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 42
    assert_gone(tmp_path, processes)


def assert_gone(folder, processes):
    lines = (folder / "notes").read_text().splitlines()
    assert len(lines) == processes
    for line in lines:
        with pytest.raises(ProcessLookupError):
            os.kill(int(line.split()[0]), 0)
