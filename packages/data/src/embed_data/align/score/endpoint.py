"""A client of one OpenAI-compatible server, by the standard library: requests, retries and clear errors."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from embed_core.errors import EmbedError
from embed_core.utils.messages import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KEY = "OPENAI_API_KEY"
"""Environment variable of the API key; one's own server needs none."""
RETRIES = 5
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
THIS_REQUEST = (400, 413, 422)
"""Statuses by which the server refuses one request that it understood: others may succeed."""


class RefusedError(Exception):
    """The server refuses one request; the text says why."""


class EndpointError(EmbedError):
    """The server cannot be used. Finished work is kept."""


class Endpoint:
    """POSTs JSON to ``base/...``. Safe to call from several threads."""

    def __init__(self, base: str, *, timeout: float = 300.0, pause: Callable[[float], None] = time.sleep) -> None:
        if not base.startswith(("http://", "https://")):
            raise EndpointError(f"{base!r} is no address of a server: it starts with http:// or https://")
        self._base, self._timeout, self._pause = base.rstrip("/"), timeout, pause

    def post(self, path: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object of the answer.

        Raises RefusedError for a request that the server refuses, EndpointError where it cannot be reached after a few
        attempts, denies access, or answers something else.
        """
        reason = ""
        for attempt in range(RETRIES):
            if attempt:
                self._pause(min(30.0, 0.5 * 2**attempt))
            try:
                return self._once(path, payload)
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {_said(error)}"
                if error.code in THIS_REQUEST:
                    raise RefusedError(reason) from None
                if error.code not in AGAIN:
                    hint = f": set {KEY}" if error.code in (401, 403) else ""
                    raise EndpointError(f"{self._base}/{path} answers {reason}{hint}") from None
            except OSError as error:  # URLError, timeouts, broken connections
                reason = str(getattr(error, "reason", error))
        raise EndpointError(
            f"{self._base}/{path} cannot be used after {RETRIES} attempts ({reason}): mend it and repeat the command, "
            "which goes on where it was"
        )

    def _once(self, path: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(f"{self._base}/{path}", json.dumps(payload).encode(), headers)
        with urllib.request.urlopen(request, timeout=self._timeout) as response:
            raw = response.read()
        try:
            value = json.loads(raw)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise EndpointError(f"{self._base}/{path} answers {raw[:80]!r}, no JSON object: is it OpenAI-compatible?")
        return value


def _said(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read(2000).decode("utf-8", "replace")
    except OSError:
        return str(error.reason)
    try:
        said = json.loads(text)
        text = said.get("message") or said["error"]["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return one_line(text, 200)
