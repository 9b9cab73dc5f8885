/* NBD's transmission phase as bytes, and the judgement of one request. No Python, no I/O, no memory of its own.
 *
 *   request  @0 u32 magic  u16 flags  u16 command  u64 cookie  u64 offset  u32 length   28 bytes, then a WRITE's data
 *   reply    @0 u32 magic  u32 error  u64 cookie                                        16 bytes, then a READ's data
 *
 * All big-endian. Source: github.com/NetworkBlockDevice/nbd doc/proto.md, "Transmission phase". */
#ifndef PARTVISOR_NBD_WIRE_H
#define PARTVISOR_NBD_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_REPLY_MAGIC 0x67446698u
#define NBD_REQUEST_BYTES 28u
#define NBD_REPLY_BYTES 16u

#define NBD_COMMAND_READ 0u
#define NBD_COMMAND_WRITE 1u
#define NBD_COMMAND_DISCONNECT 2u
#define NBD_COMMAND_FLUSH 3u
#define NBD_COMMAND_TRIM 4u
#define NBD_COMMAND_WRITE_ZEROES 6u

#define NBD_COMMAND_FLAG_FUA 1u     /* on the medium before the reply; allowed with every command */
#define NBD_COMMAND_FLAG_NO_HOLE 2u /* of WRITE_ZEROES: the space stays allocated */

#define NBD_EPERM 1u
#define NBD_EIO 5u
#define NBD_EINVAL 22u
#define NBD_ENOSPC 28u

/* The protocol's own default, for clients that did not ask: a WRITE of more data than this ends the connection; one
 * of less that is still more than the export takes is read, dropped and refused. */
#define NBD_DROPPED_PAYLOAD_BYTES_MAX 33554432u

/* What a connection was told of the disk. */
struct nbd_export {
    uint64_t size_bytes;
    uint32_t block_bytes;
    uint32_t max_payload_bytes; /* of one READ or WRITE */
    bool read_only, can_discard;
};

struct nbd_request {
    uint64_t cookie, offset;
    uint32_t length;
    uint16_t flags, command;
};

enum nbd_verdict {
    NBD_EXECUTE,
    NBD_REFUSE,     /* with *error, once a WRITE's data has been read */
    NBD_DISCONNECT, /* the client takes its leave: answer what is under way, then close */
    NBD_HANG_UP,    /* what follows cannot be understood: close */
};

/* bytes: a private copy. *error is set for NBD_REFUSE alone. */
enum nbd_verdict nbd_judge(const struct nbd_export *disk, const uint8_t bytes[NBD_REQUEST_BYTES],
                           struct nbd_request *request, uint32_t *error);

void nbd_build_reply(uint8_t bytes[NBD_REPLY_BYTES], uint64_t cookie, uint32_t error);

/* Bytes of data that follow the request. */
static inline uint32_t nbd_payload_bytes(const struct nbd_request *request)
{
    return request->command == NBD_COMMAND_WRITE ? request->length : 0;
}

#endif
