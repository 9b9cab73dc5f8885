/* A disk server's other backend: its bytes are on another server's disk, to which this process has a channel as a client.
 *
 * Requests of a guest become requests of ours, many in flight, answers in the order in which ours are answered. Their bytes
 * are copied once, between the guest's pages and ours, so what is above us sees no page of the guest's. An answer that is
 * not good is handed on as it came.
 *
 * Several servers, one a guest, may share a relay: who holds the device's lock uses the channel, and nobody else does, not
 * even Python. Nobody takes over from such a server, so its requests are released as soon as all of a batch are answered. */
#ifndef PARTVISOR_BLOCK_RELAY_H
#define PARTVISOR_BLOCK_RELAY_H

#include "block_queue.h"
#include "block_server.h"

#define BLOCK_RELAY_MAX_SLOTS 256u
#define BLOCK_RELAY_BATCH 64u /* requests of one guest before another one gets the channel */
#define BLOCK_RELAY_LOOK_NS 100000000u /* between two looks whether the guest's channel was closed, while we wait */

/* A guest's request under way, by slot. */
struct block_relayed {
    const struct block_server *server; /* NULL: its channel was closed meanwhile, and its pages are not to be touched */
    uint64_t transaction_id;           /* the guest's */
    struct storvsp_packet packet;
    struct block_transfer transfer;
    size_t vectors;
    struct iovec vector[STORVSP_MAX_PFNS];
};

struct block_relay {
    struct block_queue queue;
    uint8_t *memory; /* the slots' bytes */
    struct block_relayed *relayed; /* `queue.slots` of them */
    bool gone; /* our channel is closed or broken: everything is for Python, which says so */
};

/* As the server's own batch does: RING_EMPTY: nothing is left; RING_OK: the next is Python's, or the batch is over. */
enum ring_status block_relay_batch(struct block_server *server, bool *for_python);

/* Wait until nothing is under way: after a guest's channel was closed, something may be. With the device's lock held. */
void block_relay_settle(struct block_relay *relay);

#endif
