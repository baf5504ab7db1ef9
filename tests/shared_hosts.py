"""Hosts that share a store: processes with roots of their own, and a server of the real S3 protocol."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment_core.manifest import Components, Manifest, ManifestDraft, Producer
from alignment_core.remote import RemoteFolder
from alignment_core.shared_store import SharedStore
from alignment_core.stage import StageSpec
from alignment_core.store import Store

BUCKET = "alignflow"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_started: list[subprocess.Popen[str]] = []


@contextmanager
def s3_server() -> Iterator[str]:
    """Address of an S3 server in this process, with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # thousands of requests would hide why a test failed
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    try:
        boto3.client(
            "s3",
            endpoint_url=address,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        ).create_bucket(Bucket=BUCKET)
        yield address
    finally:
        server.stop()


def shared(url: str, root: Path, **options: Any) -> Store:
    """The store of a root, as the cache of a shared one."""
    root.mkdir(parents=True, exist_ok=True)
    return Store(root, shared=SharedStore(RemoteFolder(url), root, **options))


def components(name: str = "one") -> Components:
    return Components(stage="demo", config={"name": name}, inputs={}, code={}, versions={})


def publish(store: Store, name: str = "one", text: str = "hello", record: str = "", guard: Any = None) -> Any:
    """A small artifact `demo/<key>`: weights in a folder, a result, a record."""
    source = store.root / ".work" / f"made-{name}"
    (source / "record").mkdir(parents=True)
    (source / "model").mkdir()
    (source / "model" / "weights.bin").write_text(text)
    (source / "result.json").write_text(json.dumps(name))
    (source / "record" / "events.jsonl").write_text(record or str(os.urandom(8)))
    made = components(name)
    draft = ManifestDraft(
        stage="demo",
        key=made.key(),
        label=name,
        components=made,
        parents={},
        producer=Producer(started=time.time(), seconds=1.0, host="here"),
    )
    return store.publish(source, draft, guard)


def remote_manifest(remote: RemoteFolder, stage: str, key: str) -> Manifest:
    return Manifest.model_validate_json(remote.read(f"{stage}/{key}/manifest.json"))


def start_host(
    module: str, arguments: list[str], url: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """A Python program of tests/ with the shared store in its environment."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    settings = {**os.environ, **ENVIRONMENT, "PYTHONPATH": paths, "ALIGNFLOW_STORE": url, **(environment or {})}
    host = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    _started.append(host)
    return host


def end_hosts() -> None:
    """Kill the hosts that a failed test left, stopped ones too."""
    while _started:
        host = _started.pop()
        if host.poll() is None:
            kill(host)


def kill(host: subprocess.Popen[str]) -> None:
    host.send_signal(signal.SIGKILL)
    host.communicate()


def write_spec(path: Path, spec: StageSpec) -> str:
    path.write_text(spec.model_dump_json())
    return str(path)
