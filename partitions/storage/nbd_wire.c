#include "nbd_wire.h"

#include "big_endian.h"

static uint32_t refuse(const struct nbd_export *disk, const struct nbd_request *request)
{
    uint16_t known_flags = NBD_COMMAND_FLAG_FUA;
    bool writes = true;
    switch (request->command) {
    case NBD_COMMAND_READ:
        writes = false;
        break;
    case NBD_COMMAND_FLUSH:
        return request->flags & ~known_flags ? NBD_EINVAL : 0; /* offset and length say nothing */
    case NBD_COMMAND_WRITE:
        break;
    case NBD_COMMAND_TRIM:
        if (!disk->can_discard)
            return NBD_EINVAL;
        break;
    case NBD_COMMAND_WRITE_ZEROES:
        known_flags |= NBD_COMMAND_FLAG_NO_HOLE;
        break;
    default:
        return NBD_EINVAL;
    }
    if (request->flags & ~known_flags)
        return NBD_EINVAL;
    if (writes && disk->read_only)
        return NBD_EPERM;
    if (request->offset > disk->size_bytes || request->length > disk->size_bytes - request->offset)
        return writes && request->command != NBD_COMMAND_TRIM ? NBD_ENOSPC : NBD_EINVAL;
    if (request->length == 0 || request->offset % disk->block_bytes || request->length % disk->block_bytes)
        return NBD_EINVAL;
    if (request->command <= NBD_COMMAND_WRITE && request->length > disk->max_payload_bytes)
        return NBD_EINVAL;
    return 0;
}

enum nbd_verdict nbd_judge(const struct nbd_export *disk, const uint8_t bytes[NBD_REQUEST_BYTES],
                           struct nbd_request *request, uint32_t *error)
{
    *request = (struct nbd_request){
        .flags = (uint16_t)big_endian_number(bytes + 4, 2),
        .command = (uint16_t)big_endian_number(bytes + 6, 2),
        .cookie = big_endian_number(bytes + 8, 8),
        .offset = big_endian_number(bytes + 16, 8),
        .length = (uint32_t)big_endian_number(bytes + 24, 4),
    };
    if (big_endian_number(bytes, 4) != NBD_REQUEST_MAGIC || nbd_payload_bytes(request) > NBD_DROPPED_PAYLOAD_BYTES_MAX)
        return NBD_HANG_UP;
    if (request->command == NBD_COMMAND_DISCONNECT)
        return NBD_DISCONNECT;
    *error = refuse(disk, request);
    return *error ? NBD_REFUSE : NBD_EXECUTE;
}

void nbd_build_reply(uint8_t bytes[NBD_REPLY_BYTES], uint64_t cookie, uint32_t error)
{
    put_big_endian(bytes, 4, NBD_REPLY_MAGIC);
    put_big_endian(bytes + 4, 4, error);
    put_big_endian(bytes + 8, 8, cookie);
}
