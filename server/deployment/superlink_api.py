"""Names in Flower's SuperLink that the server's deployment depends on.

Flower answers Control, Fleet and Runtime requests at one port.
"""

FLEET = "/v1/fleet/"
# Requests of a node with a key of its own. Not among them are register-node and unregister-node, which are for nodes
# without a key.
OPEN_TO_NODES = frozenset(
    FLEET + name
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
# The first request of a node without a key. A 403 would make it wait for ever. With this status and code it prints
# the text of the reply and exits.
KEYLESS = FLEET + "register-node"
KEYLESS_STATUS, KEYLESS_CODE = 412, 2001
PULL_MESSAGES, PULL_OBJECT = FLEET + "pull-messages", FLEET + "pull-object"
PUSH_MESSAGES, PUSH_OBJECT = FLEET + "push-messages", FLEET + "push-object"
# The only requests that carry more than a few lines.
CARRIERS = frozenset({PUSH_MESSAGES, PUSH_OBJECT})
# Requests that a node's quota depends on.
COUNTED = frozenset({PULL_MESSAGES, PULL_OBJECT}) | CARRIERS
# Flower's logger of the server.
LOGGER = "flwr"
# Variables that make Flower's older gRPC servers listen at ports of their own, where no gate stands.
GRPC_VARIABLES = ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API")
# Variable with `reply-megabytes` of the server's settings: megabytes of a reply beyond its share in the message that it
# answers, for counts and statistics.
REPLY_VARIABLE = "BRACT_REPLY_MEGABYTES"
DEFAULT_REPLY_MEGABYTES = 8
