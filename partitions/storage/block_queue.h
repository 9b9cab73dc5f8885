/* The disk client's fast path: READs and WRITEs on registered slots of the data area, many in flight. No Python.
 *
 * A slot is a run of pages of the channel's data area. The server is not trusted: a completion counts only where its
 * transaction id is the very one that its slot waits for. */
#ifndef PARTVISOR_BLOCK_QUEUE_H
#define PARTVISOR_BLOCK_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "endpoint.h"
#include "storvsp.h"

#define BLOCK_QUEUE_MAX_SLOTS 4096u
#define BLOCK_QUEUE_SLOT_BITS 16u /* low bits of a transaction id: the slot; above them: a number never used twice */

struct block_slot {
    uint64_t transaction_id; /* of the request in flight; 0: none */
    uint32_t bytes;
};

struct block_queue {
    struct endpoint *endpoint;
    uint64_t first_pfn;
    uint32_t slots, slot_bytes; /* slot_bytes: whole pages, at most STORVSP_MAX_TRANSFER_BYTES */
    uint32_t block_bytes;
    uint32_t in_flight;
    uint64_t sequence; /* of the last request */
    struct block_slot *slot; /* `slots` of them */
    uint64_t extra[STORVSP_MAX_EXTRA_BYTES / 8];
};

enum block_completion {
    BLOCK_DONE,    /* a slot's transfer, whole */
    BLOCK_FAILED,  /* a slot's transfer, with an error or too short: `packet` says which */
    BLOCK_FOREIGN, /* not one of this queue's */
};

/* Stage one request; block_queue_flush() lets the server see it. The slot must be free, blocks * block_bytes fit it.
 * RING_FULL, RING_CORRUPT: nothing was staged. */
enum ring_status block_queue_stage(struct block_queue *queue, uint32_t slot, bool write, uint64_t lba, uint32_t blocks);

/* The same with a packet of the caller's making and `bytes` of data, 0 for none, in the pages whose numbers he has put at
 * block_queue_pfns() before. */
uint64_t *block_queue_pfns(struct block_queue *queue);
enum ring_status block_queue_stage_packet(struct block_queue *queue, uint32_t slot, const struct storvsp_packet *packet,
                                          uint32_t bytes);

/* Publish what is staged; true: endpoint_signal() is owed. */
bool block_queue_flush(struct block_queue *queue);

/* Judge a peeked packet; the caller holds it afterwards. *slot is set for the first two results. A completion for a slot
 * that does not wait for it is foreign, and so is one that is no 64-byte COMPLETE_IO. */
enum block_completion block_queue_take(struct block_queue *queue, const struct ring_packet *found, uint32_t *slot,
                                       struct storvsp_packet *packet);

#endif
