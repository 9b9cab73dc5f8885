/* What an ordinary disk request is: a READ or WRITE of whole blocks inside the disk. No Python, no transport.
 *
 * Whatever is not ordinary is for Python, which decides it anew: so there is one place that knows SCSI. */
#ifndef PARTVISOR_BLOCK_REQUEST_H
#define PARTVISOR_BLOCK_REQUEST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "storvsp.h"

struct block_geometry {
    uint32_t block_bytes;
    uint32_t max_transfer_bytes; /* at most STORVSP_MAX_TRANSFER_BYTES */
    uint64_t blocks;
    bool writable;
};

/* What an ordinary request asks for, from private copies. */
struct block_transfer {
    bool write;
    uint64_t offset_bytes;
    uint32_t bytes;
};

/* True: a plain READ or WRITE of blocks inside the disk, in the right direction. target.py decides the same.
 * packet: a private copy, nobody else writes it. */
bool block_request_parse(const struct block_geometry *disk, const struct storvsp_packet *packet,
                         struct block_transfer *transfer);

/* The request, turned into the answer of one that went well: byte for byte what executor.py builds. */
void block_request_make_answer(struct storvsp_packet *packet, const struct block_transfer *transfer);

/* An ordinary request, as a client builds it: byte for byte what handshake.py builds. */
void block_request_build(struct storvsp_packet *packet, bool write, uint64_t lba, uint32_t blocks, uint32_t bytes);

/* Any other command, whose CDB of so many bytes the caller fills in; direction: SRB_DIRECTION_*. */
void block_request_build_command(struct storvsp_packet *packet, uint8_t cdb_bytes, uint8_t direction, uint32_t bytes);

/* Whether this is the answer of one that went well, as a whole. */
bool block_request_went_well(const struct storvsp_packet *answer, uint32_t bytes);

/* Between memory and a descriptor, all of it: false where it failed, or ended early. */
bool block_request_move(int fd, const struct block_transfer *transfer, const struct iovec *vectors, size_t count);

#endif
