#include "block_queue.h"

#include <string.h>

#include "block_request.h"

enum ring_status block_queue_stage(struct block_queue *queue, uint32_t slot, bool write, uint64_t lba, uint32_t blocks)
{
    const uint32_t bytes = blocks * queue->block_bytes;
    const uint32_t pages = (bytes + RING_PAGE_BYTES - 1) / RING_PAGE_BYTES;
    const uint64_t first_pfn = queue->first_pfn + (uint64_t)slot * (queue->slot_bytes / RING_PAGE_BYTES);
    struct storvsp_packet packet;
    block_request_build(&packet, write, lba, blocks, bytes);
    uint64_t *pfns = block_queue_pfns(queue);
    for (uint32_t i = 0; i < pages; i++)
        pfns[i] = first_pfn + i;
    return block_queue_stage_packet(queue, slot, &packet, bytes);
}

uint64_t *block_queue_pfns(struct block_queue *queue)
{
    return queue->extra + sizeof(struct gpa_direct_head) / 8;
}

enum ring_status block_queue_stage_packet(struct block_queue *queue, uint32_t slot, const struct storvsp_packet *packet,
                                          uint32_t bytes)
{
    struct endpoint *endpoint = queue->endpoint;
    const uint32_t pages = (bytes + RING_PAGE_BYTES - 1) / RING_PAGE_BYTES;
    const uint64_t transaction_id = (queue->sequence + 1) << BLOCK_QUEUE_SLOT_BITS | slot;
    const struct gpa_direct_head head = {.range_count = 1, .byte_count = bytes};
    memcpy(queue->extra, &head, sizeof head);
    endpoint_stamp_write(endpoint, TRACE_WRITE, transaction_id);
    const enum ring_status status =
        ring_write(&endpoint->writer, bytes ? RING_PACKET_GPA_DIRECT : RING_PACKET_IN_BAND, RING_FLAG_COMPLETION,
                   transaction_id, queue->extra, bytes ? (uint32_t)sizeof head + pages * PFN_BYTES : 0, packet,
                   STORVSP_PACKET_BYTES);
    if (status != RING_OK)
        return status;
    queue->sequence++;
    queue->slot[slot] = (struct block_slot){.transaction_id = transaction_id, .bytes = bytes};
    queue->in_flight++;
    endpoint->statistics.packets_sent++;
    endpoint->statistics.bytes_sent += STORVSP_PACKET_BYTES;
    return RING_OK;
}

bool block_queue_flush(struct block_queue *queue)
{
    const struct ring_writer *writer = &queue->endpoint->writer;
    return writer->staged_in != writer->published_in && endpoint_publish(queue->endpoint);
}

enum block_completion block_queue_take(struct block_queue *queue, const struct ring_packet *found, uint32_t *slot,
                                       struct storvsp_packet *packet)
{
    struct endpoint *endpoint = queue->endpoint;
    const uint64_t transaction_id = found->transaction_id;
    const uint32_t number = transaction_id & ((1u << BLOCK_QUEUE_SLOT_BITS) - 1);
    if (found->type != RING_PACKET_COMPLETION || found->payload_bytes < STORVSP_PACKET_BYTES
        || number >= queue->slots || transaction_id == 0 || queue->slot[number].transaction_id != transaction_id)
        return BLOCK_FOREIGN;
    ring_copy_out(&endpoint->reader, found->payload_at, packet, STORVSP_PACKET_BYTES);
    __asm__ volatile("" : "+m"(*packet)); /* one copy: see ring_peek() */
    if (packet->operation != STORVSP_COMPLETE_IO)
        return BLOCK_FOREIGN;
    endpoint->statistics.packets_received++;
    endpoint->statistics.bytes_received += found->payload_bytes;
    endpoint_stamp(endpoint, TRACE_RECEIVE, transaction_id);
    queue->slot[number].transaction_id = 0;
    queue->in_flight--;
    *slot = number;
    return block_request_went_well(packet, queue->slot[number].bytes) ? BLOCK_DONE : BLOCK_FAILED;
}
