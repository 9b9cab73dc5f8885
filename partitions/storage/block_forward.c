#include "block_forward.h"

bool block_forward_move(struct block_forward *forward, const struct block_geometry *disk,
                        const struct block_transfer *transfer, const struct iovec *vectors, size_t count)
{
    struct message_calls *calls = forward->calls;
    struct storvsp_packet packet;
    struct message_reply reply;
    if (calls->count != 0 || transfer->bytes > MESSAGE_DATA_BYTES_MAX)
        return false; /* Python's own, after a mistake of ours; Python splits */
    block_request_build(&packet, transfer->write, transfer->offset_bytes / disk->block_bytes,
                        transfer->bytes / disk->block_bytes, transfer->bytes);
    struct message_call *call = message_calls_add(calls, &packet, sizeof packet, ++forward->sequence << 16 | BLOCK_FORWARD_SLOT,
                                                  transfer->bytes, transfer->write);
    call->data = vectors;
    call->data_count = count;
    for (;;) {
        const enum calls_result result = message_calls_receive(calls, MESSAGE_CALLS_FOREVER, &reply);
        if (result == CALLS_REPLY)
            return block_request_went_well(&reply.packet, transfer->bytes);
        if (result == CALLS_INTERRUPTED || result == CALLS_NOTHING)
            continue;
        if (!forward->recover(forward->context, result == CALLS_BROKEN)) {
            calls->count = 0; /* the guest's pages may go: nothing may name them */
            return false;
        }
    }
}
