/* The disk server's fast path: plain READs and WRITEs, from ring to file, without Python and without the GIL.
 *
 * It takes what is ordinary and leaves the rest: whatever is unusual, wrong or fails is handed, unexecuted or executed
 * without effect on the answer, to the Python path, which decides anew. So there is one place that knows SCSI.
 * The order is kept: what comes later waits in the ring until the handed-out packet has been answered and released. */
#ifndef PARTVISOR_BLOCK_SERVER_H
#define PARTVISOR_BLOCK_SERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "block_request.h"
#include "device_lock.h"
#include "endpoint.h"
#include "gpa.h"
#include "storvsp.h"

/* While more requests are there, small answers wait for each other, for the fence and the client's look at the ring
 * cost as much as they do; large ones don't, for the client is to work on one while we work on the next. */
#define BLOCK_SERVER_PUBLISH_ANSWERS 4u
#define BLOCK_SERVER_PUBLISH_BYTES 16384u
#define BLOCK_SERVER_BATCH 256u       /* requests between two looks at the clock */
#define BLOCK_ANSWER_RING_BYTES (RING_DESCRIPTOR_BYTES + STORVSP_PACKET_BYTES + RING_TRAILER_BYTES)

struct block_relay;
struct block_forward;

/* Which request of its ring a server with a forward is at, in memory that outlives it: a successor that finds the same
 * request there passes it on by the same numbers, and the server behind it knows what was done. Every request of the ring
 * begins a turn, so two that follow each other are never taken for one. */
struct block_turns {
    uint64_t opening; /* of the channel: a number that no other opening has */
    _Atomic uint64_t word; /* high half: where in the ring; low half: the turn's sequence, 0: none yet */
};

struct block_server_statistics {
    uint64_t reads, writes, bytes_read, bytes_written;
};

/* One channel's server. One thread runs it; the statistics may be read by any, torn by none (aligned u64). */
struct block_server {
    struct endpoint *endpoint;
    const struct gpa_table *table; /* not changed while block_server_run() runs */
    int fd;                        /* where the bytes are; unused with a relay or a forward */
    struct block_relay *relay;     /* or NULL; the server of another disk has the bytes, behind a ring */
    struct block_forward *forward; /* or NULL; the same, reached by messages */
    struct block_turns *turns;     /* with a forward, or NULL: nobody takes over */
    struct block_geometry disk;
    struct device_lock *lock;
    bool holds_device; /* after a run: the next packet was begun; until its answer is published the device is the caller's */
    bool owes_signal;  /* left to the next run */
    struct block_server_statistics statistics;
    uint64_t extra[STORVSP_MAX_EXTRA_BYTES / 8]; /* private copy of the current packet's extra header */
    struct gpa_span spans[STORVSP_MAX_PFNS];
    struct iovec vectors[STORVSP_MAX_PFNS];
};

enum block_server_result {
    BLOCK_SERVER_PACKET,  /* the next packet is for Python: nothing is held, peek finds it */
    BLOCK_SERVER_IDLE,    /* the time is over, or a signal arrived */
    BLOCK_SERVER_CLOSED,
    BLOCK_SERVER_CORRUPT, /* what was answered before is published; the last request is not released */
};

/* Copy a peeked packet out of the ring and decide. True: an ordinary request, its pages in server->vectors (*vectors of
 * them); false: it is for Python. */
bool block_server_parse(struct block_server *server, const struct ring_packet *found, struct storvsp_packet *packet,
                        struct block_transfer *transfer, size_t *vectors);

/* The first request that is not released is next, whoever executes it; and it is done. With the device's lock held. */
void block_server_begin_turn(struct block_server *server);
void block_server_end_turn(struct block_server *server);

/* Stage an answer, and count. There must be room for it. */
bool block_server_answer(struct block_server *server, uint64_t transaction_id, const struct storvsp_packet *packet,
                         const struct block_transfer *transfer);

/* Whether one more answer fits behind `owed` that are not staged yet. */
bool block_server_has_room(struct block_server *server, uint32_t owed);

/* Serve until something for Python comes, or until deadline_ns. On return all answers are published, and all that was
 * answered is released. With holds_device the lock is the caller's to give back; not to be called before that. */
enum block_server_result block_server_run(struct block_server *server, uint64_t deadline_ns);

#endif
