"""A device of requests and replies, whatever they mean: its server, its client, and the two ways between them."""
