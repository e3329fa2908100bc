"""`palate demo --human`, with somebody at the keyboard who likes what is dark."""

from __future__ import annotations

import _thread
import http.client
import io
import json
import socket
import threading
import time
import uuid

import numpy as np
import pytest
from PIL import Image

from palate.config import ConfigError
from palate.doors import human
from palate.studio.guard import csrf_of
from palate.studio.joining import TokenFile, cookie_name


def test_another_method_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--human learns by diffusion_dpo; for ddpo, write a recipe"):
        human.run("ddpo", tmp_path / "h")
    assert not (tmp_path / "h").exists()


class Person(threading.Thread):
    """Answers whatever the studio asks until `over`."""

    def __init__(self, project, port):
        super().__init__(daemon=True)
        self.project, self.port, self.votes, self.over = project, port, 0, threading.Event()

    def run(self):
        try:
            self.judge()
        except BaseException:
            _thread.interrupt_main()  # else the studio waits for votes for ever
            raise

    def judge(self):
        while not (mine := [token for _, role, token in TokenFile(self.project).read() if role == "rater"]):
            time.sleep(0.1)
        token = mine[0]
        self.headers = {
            "cookie": f"{cookie_name(self.project)}={token}", "x-csrf": csrf_of(token),
            "origin": f"http://127.0.0.1:{self.port}", "content-type": "application/json",
        }  # fmt: skip
        while not self.over.is_set():
            try:
                given = json.loads(self.call("POST", "/api/lease", {"n": 1}))["leases"]
            except OSError:  # between rounds nobody listens
                given = []
            if not given:
                time.sleep(0.2)
            for lease in given:
                left, right = (self.brightness(medium["id"]) for medium in lease["media"])
                answer = {"lease": lease["id"], "key": uuid.uuid4().hex[:16], "seconds": 1.0}
                self.call("POST", "/api/answer", answer | {"answers": {"overall": "left" if left < right else "right"}})
                self.votes += 1

    def brightness(self, medium):
        return float(np.asarray(Image.open(io.BytesIO(self.call("GET", f"/media/{medium}")))).mean())

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, json.dumps(body) if body is not None else None, self.headers)
        reply = connection.getresponse().read()
        connection.close()
        return reply


@pytest.mark.slow
def test_a_persons_votes_are_learnt_and_judged_by_them(tmp_path, monkeypatch):
    whole = human.recipe

    def short(out, seed, port):
        made = whole(out, seed, port)
        return made | {"training": made["training"] | {"max_steps": 4, "warmup_steps": 0, "checkpoint_every": 2}}

    for name, value in {"recipe": short, "ROUNDS": 2, "PAIRS": 4, "VERDICT": 2}.items():
        monkeypatch.setattr(human, name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    person = Person(tmp_path / "h" / "project", port)
    person.start()
    run = human.run(out=tmp_path / "h", port=port)
    person.over.set()
    person.join(10)
    told = json.loads((run / "result.json").read_text())
    assert person.votes == 2 * 4 + 2 and told["votes"] == 8
    assert (run / "report.html").is_file() and (run / "adapter").is_dir()
    assert run == human.run(out=tmp_path / "h", port=port)  # over: nothing is asked again
