"""JSON over HTTP to a service that judges, with an end to every wait. Standard library only; no torch.

    service = Service("http://127.0.0.1:8765", "the scorer", token=read_token("PALATE_SCORER_TOKEN", own_token_file()))
    reply = service.call("POST", "/score", {"ids": [...]})

What may pass by itself (no connection, a timeout, a reset, 408, 425, 429, 5xx, a reply cut off or no JSON) is tried
again with growing pauses, and a line is printed every half minute; after `max_wait` it is `Unavailable`, on which
training saves and leaves with exit code 75. What waiting cannot mend (another 4xx, a redirect, a certificate that does
not fit, a reply that is too large or says something else than was asked) is a `RemoteError` at once.

A token goes into a header, and only to this machine or over https. It is in no message, no recipe and no log. Proxies
of the environment are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

TIMEOUT_S = 120.0  # of one attempt
MAX_WAIT_S = 600.0  # of all attempts of one call together
SAY_EVERY_S = 30.0
MAX_REPLY_BYTES = 64 * 2**20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class RemoteError(RuntimeError):
    """A service refused, or said what cannot be used; one line, with the mend. Waiting does not help."""

    exit_code = 1


class Unavailable(RemoteError):
    """A service could not be reached for as long as was allowed. The same command, later, goes on."""

    exit_code = 75


class _Passing(Exception):
    """What may be gone at the next attempt. after: seconds that the service asked to be left alone, None if it did
    not."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class _Reply:
    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


class Service:
    """One address and how long to wait for it. Calls may come from several threads at once."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        token: str | None = None,
        timeout: float | None = None,
        max_wait: float | None = None,
        max_reply: int = MAX_REPLY_BYTES,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """url: `http://host:port[/path]` or https. name: what it is called in messages. timeout, max_wait: seconds, of
        an attempt and of a call; None for PALATE_REMOTE_TIMEOUT and PALATE_REMOTE_MAX_WAIT, or 120 and 600.

        Raises RemoteError for an address that is none, or a token that would travel in the open.
        """
        self.url, self.name = _address(url, name), name
        self._token = token
        self._timeout = _seconds("PALATE_REMOTE_TIMEOUT", TIMEOUT_S) if timeout is None else timeout
        self._max_wait = _seconds("PALATE_REMOTE_MAX_WAIT", MAX_WAIT_S) if max_wait is None else max_wait
        self._max_reply, self._say = max_reply, say or _to_stderr
        if token is not None and self.url.scheme == "http" and not is_local(self.url.hostname or ""):
            raise RemoteError(
                f"{name} at {self.url.netloc} would be sent its token unencrypted: give an https address, or "
                "bring it to this machine by `ssh -L`"
            )

    def call(self, method: str, path: str, payload: Any = None) -> Any:
        """The JSON that a path replies. Raises Unavailable, within `max_wait`, and RemoteError."""
        body = None if payload is None else json.dumps(payload, allow_nan=False).encode()
        began, tries = time.monotonic(), 0
        said = began
        while True:
            left = began + self._max_wait - time.monotonic()
            try:
                return self._attempt(method, path, body, max(min(self._timeout, left), 0.001))
            except _Passing as passing:
                reason, pause = passing, min(_FIRST_PAUSE_S * 2 ** min(tries, 10), _LONGEST_PAUSE_S)
            tries += 1
            pause = max(pause, reason.after or 0.0)
            left = began + self._max_wait - time.monotonic()
            if pause >= left:
                raise Unavailable(
                    f"{self.name} at {self.url.netloc} did not answer for {self._max_wait:.0f} s, {tries} attempts; "
                    f"the last: {reason}. Start it again, then run the same command again: it goes on"
                )
            said = self._wait(pause, said, began, reason)

    def _wait(self, pause: float, said: float, began: float, reason: Exception) -> float:
        """Sleeps, with a line every half minute. Returns when the last was said."""
        end = time.monotonic() + pause
        while (now := time.monotonic()) < end:
            if now - said >= SAY_EVERY_S:
                said = now
                self._say(
                    f"{self.name} at {self.url.netloc}: no answer for {now - began:.0f} s ({reason}); "
                    f"trying for {began + self._max_wait - now:.0f} s more"
                )
            time.sleep(min(end - now, max(said + SAY_EVERY_S - now, 0.001)))
        return said

    def _attempt(self, method: str, path: str, body: bytes | None, timeout: float) -> Any:
        """One request, over in `timeout` seconds whatever the other side does: a socket's own timeout starts anew with
        every byte that drips, so the whole is run beside and left behind."""
        box: list[_Reply | BaseException] = []
        sockets: list[socket.socket] = []
        line = _connection(self.url, timeout)

        def work() -> None:
            try:
                line.connect()
                sockets.append(line.sock)
                box.append(_exchange(line, method, self.url.path + path, body, self._headers(body), self._max_reply))
            except BaseException as error:
                box.append(error)
            finally:
                line.close()

        worker = threading.Thread(target=work, daemon=True, name="palate-remote")
        worker.start()
        worker.join(timeout)
        if not box:
            for left in sockets:
                with contextlib.suppress(OSError):
                    left.shutdown(socket.SHUT_RDWR)  # wakes the thread, which then ends
            raise _Passing(f"no answer within {timeout:.3g} s")
        if isinstance(box[0], BaseException):
            raise self._explained(box[0])
        return self._read(box[0])

    def _headers(self, body: bytes | None) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "palate", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _explained(self, error: BaseException) -> BaseException:
        """A failure of the line as one of ours; anything else as it is."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return RemoteError(
                f"{self.name} at {self.url.netloc}: its certificate does not fit ({error.verify_message})"
            )
        if isinstance(error, TimeoutError):
            return _Passing("no answer in time")
        if isinstance(error, OSError | http.client.HTTPException):
            return _Passing(str(error) or type(error).__name__)
        return error

    def _read(self, reply: _Reply) -> Any:
        what = f"{reply.status} {reply.reason}".strip()
        if reply.status in _PASSING:
            raise _Passing(what + _told(reply.body), _retry_after(reply.headers.get("retry-after")))
        if 300 <= reply.status < 400:
            raise RemoteError(f"{self.name} at {self.url.netloc} redirects ({what}): give the address it redirects to")
        if reply.status in (401, 403):
            raise RemoteError(
                f"{self.name} at {self.url.netloc} refuses the token ({what}): give the one it was made with"
            )
        if reply.status != 200:
            raise RemoteError(f"{self.name} at {self.url.netloc} refuses: {what}{_told(reply.body)}")
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError):
            raise _Passing("its reply is no JSON") from None

    def __repr__(self) -> str:
        return f"Service({self.url.geturl()!r})"


# --- the line ---------------------------------------------------------------------------------------------------------


def _connection(url: SplitResult, timeout: float) -> http.client.HTTPConnection:
    assert url.hostname is not None
    if url.scheme == "https":
        return http.client.HTTPSConnection(
            url.hostname, url.port, timeout=timeout, context=ssl.create_default_context()
        )
    return http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)


def _exchange(
    line: http.client.HTTPConnection, method: str, path: str, body: bytes | None, headers: Mapping[str, str], most: int
) -> _Reply:
    line.request(method, path or "/", body, dict(headers))
    with line.getresponse() as reply:
        content = reply.read(most + 1)
        if len(content) > most:
            raise RemoteError(f"the reply to {method} {path} has more than {most:,} bytes")
        if reply.length:  # what was promised and did not come; 0 or None where all is there
            raise http.client.IncompleteRead(content, reply.length)
        headers = {name.lower(): value for name, value in reply.headers.items()}
        return _Reply(reply.status, reply.reason, headers, content)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0) if value.strip().replace(".", "", 1).isdigit() else _until(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _until(date: str) -> float:
    return max(parsedate_to_datetime(date).timestamp() - time.time(), 0.0)


def _told(body: bytes) -> str:
    """What an error's body says, short and in one line."""
    try:
        said = json.loads(body)
        said = said.get("error", said.get("detail", "")) if isinstance(said, dict) else ""
        said = said.get("message", "") if isinstance(said, dict) else said
    except (ValueError, RecursionError):
        return ""
    text = "".join(c if c.isprintable() else " " for c in str(said))[:300].strip()
    return f": {text}" if text else ""


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- addresses and tokens ---------------------------------------------------------------------------------------------


def _address(url: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(url.rstrip("/"))
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.username or parts.password or parts.query or parts.fragment or not url.isascii():
        raise RemoteError(
            f"{name}: {_without_user(url)!r} is no address: write http://host:port or https://host, no more"
        )
    return parts


def _without_user(url: str) -> str:
    """An address to show: what stands before an @ may be a secret."""
    return url.rpartition("@")[2]


def host_of(url: str) -> str:
    """The host of an address, "" if there is none in it."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_local(host: str) -> bool:
    """Whether a host is this very machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _seconds(variable: str, default: float) -> float:
    given = os.environ.get(variable)
    try:
        seconds = float(given) if given else default
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RemoteError(f"{variable} is {given!r}: give a number of seconds")
    return seconds


def config_folder() -> Path:
    """Where the user's own settings and tokens are."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "palate"


def read_token(variable: str, file: Path | None = None) -> str | None:
    """A token: of an environment variable, of the file that `<variable>_FILE` names, else of `file`; None if there is
    none. Raises RemoteError for one that cannot be read or could not stand in a header."""
    token, source = os.environ.get(variable), variable
    if not token:
        named = os.environ.get(f"{variable}_FILE")
        place = Path(named) if named else file
        if place is None or not (named or place.is_file()):
            return None
        source = str(place)
        try:
            token = place.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise RemoteError(f"{source} cannot be read: it should hold a token, mode 0600") from None
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise RemoteError(f"{source} does not hold a token: one word of ASCII letters and digits")
    return token
