"""What a bus may be without and run all the same: each weakening that `security_state` can name, and how to end it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Weakening(NamedTuple):
    """In a few words, for who has never seen the product."""

    meaning: str
    remedy: str


WEAKENINGS: Final[Mapping[str, Weakening]] = {
    "constitution_folder": Weakening(
        "the constitution was taken from a folder, which nobody has signed",
        "build a bundle, sign it, and name the key in constitution.trust",
    ),
    "unsigned_constitution": Weakening(
        "the constitution is a bundle that nobody has signed", "sign it, and name the key in constitution.trust"
    ),
    "no_witness": Weakening(
        "no witness elsewhere signs this log's checkpoints: keep one, to prove that nothing was cut off",
        "name one in audit.witnesses",
    ),
    "witness_behind": Weakening(
        "no witness elsewhere has the newest checkpoints yet", "see in `eab status` why none of them answers"
    ),
    "witness_contradicts": Weakening(
        "a witness has a checkpoint that is not of this log",
        "compare the two with `eab audit verify`: the end was cut off, or an older backup restored",
    ),
    "short_retention": Weakening(
        "what stands beside records is kept for a short time only",
        "raise audit.keep_payloads_days and keep_texts_days to 183 or more",
    ),
    "memory_ledger": Weakening("the log is kept in memory and is gone at the end", "open a home on disk"),
    "fixed_clock": Weakening("policies saw a clock that was set by hand", "run without --at"),
    "policy_server_trusted": Weakening(
        "decisions come from a policy server whose word is taken", 'set policy.engine to "embedded"'
    ),
    "policy_server_version": Weakening(
        "the policy server is another version of OPA", "run the version of OPA that `eab doctor` names"
    ),
    "policy_server_data": Weakening(
        "the policy server's data is not that of the active constitution",
        "have it serve the active bundle, and push no data beside it",
    ),
    "policy_server_modules": Weakening(
        "the policy server's rules are not those of the active constitution", "have it serve the active bundle alone"
    ),
    "policy_server_schemas": Weakening(
        "the policy server does not check the constitution's schemas", 'set policy.engine to "embedded"'
    ),
    "nats_sync": Weakening(
        "messages that NATS took may be lost with its disk",
        "set `sync_interval: always` under `jetstream` on each server, and transport.monitor to their ports",
    ),
    "nats_replicas": Weakening(
        "letters between nodes have fewer copies than transport.replicas asks for",
        "raise the replicas of these streams (`nats stream edit`), or lower transport.replicas",
    ),
    "nats_memory_storage": Weakening(
        "letters between nodes are kept in the server's memory alone",
        "remove that stream while no node runs; the first node makes it again on disk",
    ),
    "nats_version": Weakening("the NATS server is older than what was tested", "install nats-server 2.15 or later"),
    "nats_unencrypted": Weakening(
        "letters between nodes cross the network without TLS",
        "set up TLS on the server, and name its CA in transport.tls_ca",
    ),
    "nodes_unpinned": Weakening(
        "every node that the server lists is believed",
        "copy keys/node.vkey of each node's home to the others, and name the copies in transport.nodes",
    ),
}
