#include "block_queue.h"

#include <string.h>

static void build_cdb(struct storvsp_packet *packet, bool write, uint64_t lba, uint32_t blocks)
{
    uint8_t *cdb = packet->cdb_or_sense;
    if (lba <= UINT32_MAX && blocks <= UINT16_MAX) {
        cdb[0] = write ? SCSI_WRITE_10 : SCSI_READ_10;
        cdb_put_number(cdb + 2, 4, lba);
        cdb_put_number(cdb + 7, 2, blocks);
        packet->cdb_length = 10;
    } else {
        cdb[0] = write ? SCSI_WRITE_16 : SCSI_READ_16;
        cdb_put_number(cdb + 2, 8, lba);
        cdb_put_number(cdb + 10, 4, blocks);
        packet->cdb_length = 16;
    }
}

enum ring_status block_queue_stage(struct block_queue *queue, uint32_t slot, bool write, uint64_t lba, uint32_t blocks)
{
    struct endpoint *endpoint = queue->endpoint;
    const uint32_t bytes = blocks * queue->block_bytes;
    const uint32_t pages = (bytes + RING_PAGE_BYTES - 1) / RING_PAGE_BYTES;
    const uint64_t first_pfn = queue->first_pfn + (uint64_t)slot * (queue->slot_bytes / RING_PAGE_BYTES);
    const uint64_t transaction_id = (queue->sequence + 1) << BLOCK_QUEUE_SLOT_BITS | slot;
    struct storvsp_packet packet = {
        .operation = STORVSP_EXECUTE_SRB,
        .flags = STORVSP_COMPLETION_REQUESTED,
        .srb_length = SRB_BYTES,
        .sense_length = SRB_SENSE_AREA_BYTES,
        .direction = write ? SRB_DIRECTION_WRITE : SRB_DIRECTION_READ,
        .transfer_bytes = bytes,
        .srb_flags = write ? SRB_FLAGS_DATA_OUT : SRB_FLAGS_DATA_IN,
    };
    build_cdb(&packet, write, lba, blocks);
    const struct gpa_direct_head head = {.range_count = 1, .byte_count = bytes};
    memcpy(queue->extra, &head, sizeof head);
    for (uint32_t i = 0; i < pages; i++)
        queue->extra[sizeof head / 8 + i] = first_pfn + i;
    endpoint_stamp_write(endpoint, TRACE_WRITE, transaction_id);
    const enum ring_status status =
        ring_write(&endpoint->writer, RING_PACKET_GPA_DIRECT, RING_FLAG_COMPLETION, transaction_id, queue->extra,
                   (uint32_t)sizeof head + pages * PFN_BYTES, &packet, STORVSP_PACKET_BYTES);
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
    const bool good = packet->status == 0 && (packet->srb_status & 0x3Fu) == SRB_STATUS_SUCCESS
                      && packet->scsi_status == 0 && packet->transfer_bytes == queue->slot[number].bytes;
    return good ? BLOCK_DONE : BLOCK_FAILED;
}
