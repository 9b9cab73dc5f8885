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

#include "device_lock.h"
#include "endpoint.h"
#include "gpa.h"
#include "storvsp.h"

/* While more requests are there, small answers wait for each other, for the fence and the client's look at the ring
 * cost as much as they do; large ones don't, for the client is to work on one while we work on the next. */
#define BLOCK_SERVER_PUBLISH_ANSWERS 4u
#define BLOCK_SERVER_PUBLISH_BYTES 16384u
#define BLOCK_SERVER_BATCH 256u       /* requests between two looks at the clock */

struct block_server_statistics {
    uint64_t reads, writes, bytes_read, bytes_written;
};

/* One channel's server. One thread runs it; the statistics may be read by any, torn by none (aligned u64). */
struct block_server {
    struct endpoint *endpoint;
    const struct gpa_table *table; /* not changed while block_server_run() runs */
    int fd;
    uint32_t block_bytes;
    uint64_t blocks;
    uint32_t max_transfer_bytes; /* at most STORVSP_MAX_TRANSFER_BYTES */
    bool writable;
    struct device_lock *lock;
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

/* Serve until something for Python comes, or until deadline_ns. On return all answers are published, and all that was
 * answered is released. */
enum block_server_result block_server_run(struct block_server *server, uint64_t deadline_ns);

#endif
