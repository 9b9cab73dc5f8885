/* A disk server's third backend: its bytes are on the disk of a message server, to which this process is a client.
 *
 * The sibling of block_relay.h where there is no ring on the other side: a server that is called takes one request at a
 * time, so requests of a guest are passed on one after the other, in ring order, and answered in that order. Their bytes go
 * between the guest's pages and the socket, through no memory of ours. A reply that is not good is for Python, which asks
 * again and says what is wrong.
 *
 * Who holds the device's lock uses the client, and nobody else does, not even Python. Somebody takes over from such a
 * server: to its ring it is a server like any other, and marks, publishes and releases as one. */
#ifndef PARTVISOR_BLOCK_FORWARD_H
#define PARTVISOR_BLOCK_FORWARD_H

#include "block_request.h"
#include "message_calls.h"

/* In the low bits of our transaction ids, where a queue has its slot, and requests of Python have 0xFFFF. */
#define BLOCK_FORWARD_SLOT 0xFFFEu

struct block_forward {
    struct message_calls *calls;
    /* Get another socket, after the server has left, or was left. False: there will be none any more. Called without the
     * GIL; takes it. */
    bool (*recover)(void *context, bool broken);
    void *context;
    uint64_t sequence; /* of the last request */
};

/* Pass an ordinary request on, and wait for the reply. True: it is done, as a whole. False: it may be done or not, no
 * reply to it is owed any more, and its memory will not be touched. */
bool block_forward_move(struct block_forward *forward, const struct block_geometry *disk,
                        const struct block_transfer *transfer, const struct iovec *vectors, size_t count);

#endif
