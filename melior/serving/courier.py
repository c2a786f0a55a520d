"""takes messages to webhooks: signed, one at a time by one server, again until they arrive

Signed as Standard Webhooks are, so that `client.webhooks.unwrap()` of the official client believes them: the secret and
SHA-256 over `id.timestamp.body`. The id stays the same however often a message is sent.

Follows: github.com/standard-webhooks/standard-webhooks, the specification of version 1.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from melior.errors import ConfigError, OutboundError, StoreError
from melior.outbound import Limits, Outbound
from melior.store import Store
from melior.store.query import now
from melior.store.rows import Delivery, Webhook

POLL_S = 1.0  # between two looks for messages
BATCH, AT_ONCE = 8, 4  # messages that are claimed together, and sent at the same time
LIMITS = Limits(timeout_s=15, attempts=1, max_bytes=1 << 16, connections=AT_ONCE)  # the outbox pauses
GONE = 410  # "do not send me this again"

log = logging.getLogger(__name__)


def signed(hook: Webhook, message_id: str, body: bytes) -> dict[str, str]:
    """The headers that a message goes out with."""
    timestamp = str(int(time.time()))
    secrets = [hook.secret]
    if hook.former and (hook.former_until or "") > now():
        secrets.append(hook.former)
    said = f"{message_id}.{timestamp}.".encode() + body
    signatures = " ".join(f"v1,{_signature(secret, said)}" for secret in secrets)
    return {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": signatures}


def as_sent(body: Mapping[str, Any]) -> bytes:
    """A message's bytes: the same for the same message."""
    return json.dumps(body, separators=(",", ":")).encode()


def _signature(secret: str, said: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return base64.b64encode(hmac.new(key, said, hashlib.sha256).digest()).decode()


@dataclass
class Courier:
    """A thread that sends what waits in the outbox. Every server has one; a message is claimed by one of them."""

    store: Store
    limits: Limits = LIMITS
    poll_s: float = POLL_S
    stopping: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @cached_property
    def client(self) -> Outbound:
        """The connections; where they may lead is what whoever runs the server permits."""
        return Outbound(self.limits)

    def start(self) -> None:
        """Begins to send."""
        self.thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Ends, when what is being sent has arrived or failed."""
        self.stopping.set()
        if self.thread is not None:
            self.thread.join()
            self.client.close()

    def send(self, hook: Webhook, message_id: str, body: bytes) -> int:
        """The status that one message was taken with.

        Raises:
            OutboundError: if it was not taken; says with which status, where there was one.
            ConfigError: if the address cannot be used.
        """
        return self.client.tell(hook.url, body, signed(hook, message_id, body))

    def _work(self) -> None:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="courier") as threads:
            while not self.stopping.is_set():
                try:
                    claimed = self.store.claim_deliveries(BATCH)
                    list(threads.map(lambda both: self._deliver(*both), claimed))
                except StoreError as error:  # a database that is busy or away comes back
                    log.warning("messages to webhooks wait: %s", error)
                    claimed = []
                except Exception:  # what was claimed is due again when its lease is over
                    log.exception("messages to webhooks wait")
                    claimed = []
                if not claimed:
                    self.stopping.wait(self.poll_s)

    def _deliver(self, message: Delivery, hook: Webhook) -> None:
        try:
            self.send(hook, message.id, as_sent(message.body))
        except (OutboundError, ConfigError) as error:
            status = error.status if isinstance(error, OutboundError) else 0
            log.warning("%s did not reach %s: %s", message.id, hook.id, error)
            self.store.not_delivered(message, str(error), final=status == GONE)
            if status == GONE:
                self.store.revoke_webhook(hook.id)
        except Exception:
            log.exception("%s could not be sent to %s", message.id, hook.id)
            self.store.not_delivered(message, "this server failed to send it")
        else:
            self.store.delivered(message)
