"""A disk exported over NBD: the handshake, and who may come in. Transmission is C: partitions/storage/nbd_engine.h."""
