#include "block_relay.h"

#include <string.h>

#include "clock.h"

#define SRB_STATUS_ERROR 0x04u
#define SRB_STATUS_SENSE_VALID 0x80u
#define SCSI_CHECK_CONDITION 0x02u
#define SENSE_FIXED_BYTES 18u

/* HARDWARE ERROR, INTERNAL TARGET FAILURE: what sense.py calls INTERNAL_FAILURE. */
static const uint8_t internal_failure[SENSE_FIXED_BYTES] = {0x70, 0, 0x04, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x44};

static void copy_between(const struct block_relayed *relayed, uint8_t *slot)
{
    for (size_t i = 0; i < relayed->vectors; i++) {
        const struct iovec *part = &relayed->vector[i];
        if (relayed->transfer.write)
            memcpy(slot, part->iov_base, part->iov_len);
        else
            memcpy(part->iov_base, slot, part->iov_len);
        slot += part->iov_len;
    }
}

static uint32_t free_slot(const struct block_relay *relay)
{
    for (uint32_t slot = 0; slot < relay->queue.slots; slot++)
        if (relay->queue.slot[slot].transaction_id == 0)
            return slot;
    return relay->queue.slots;
}

enum taken { TAKEN, FOR_PYTHON, NOT_NOW };

/* Make a request of ours out of a peeked one of the guest's, and stage it. Only TAKEN has changed anything. */
static enum taken take_request(struct block_server *server, const struct ring_packet *found, uint32_t under_way)
{
    struct block_relay *relay = server->relay;
    const uint32_t slot = free_slot(relay);
    if (slot == relay->queue.slots)
        return NOT_NOW;
    struct block_relayed *relayed = &relay->relayed[slot];
    if (!block_server_parse(server, found, &relayed->packet, &relayed->transfer, &relayed->vectors)
        || relayed->transfer.bytes > relay->queue.slot_bytes)
        return FOR_PYTHON;
    if (!block_server_has_room(server, under_way))
        return under_way ? NOT_NOW : FOR_PYTHON;
    memcpy(relayed->vector, server->vectors, relayed->vectors * sizeof *relayed->vector);
    uint8_t *const bytes = relay->memory + (size_t)slot * relay->queue.slot_bytes;
    if (relayed->transfer.write)
        copy_between(relayed, bytes);
    switch (block_queue_stage(&relay->queue, slot, relayed->transfer.write, relayed->transfer.offset_bytes / server->disk.block_bytes,
                              relayed->transfer.bytes / server->disk.block_bytes)) {
    case RING_OK:
        break;
    case RING_FULL:
        return under_way ? NOT_NOW : FOR_PYTHON; /* Python waits until the server has released something */
    case RING_CORRUPT:
        relay->gone = true;
        return FOR_PYTHON;
    default:
        return FOR_PYTHON;
    }
    endpoint_stamp(server->endpoint, TRACE_TAKE, found->transaction_id);
    relayed->server = server;
    relayed->transaction_id = found->transaction_id;
    return TAKEN;
}

/* Stage the guest's answer, from ours; `reply` NULL: there will be none. */
static void answer(struct block_server *server, uint32_t slot, bool good, const struct storvsp_packet *reply)
{
    struct block_relay *relay = server->relay;
    struct block_relayed *relayed = &relay->relayed[slot];
    struct storvsp_packet *packet = &relayed->packet;
    const uint8_t sense_room = packet->sense_length < SRB_SENSE_AREA_BYTES ? packet->sense_length : SRB_SENSE_AREA_BYTES;
    if (!good && reply && reply->status == 0 && (reply->srb_status & 0x3Fu) == SRB_STATUS_SUCCESS && reply->scsi_status == 0)
        reply = NULL; /* well, but short: we asked for whole blocks of a disk that has them */
    if (good && !relayed->transfer.write)
        copy_between(relayed, relay->memory + (size_t)slot * relay->queue.slot_bytes);
    block_request_make_answer(packet, &relayed->transfer);
    if (!good) {
        const uint8_t *sense = reply ? reply->cdb_or_sense : internal_failure;
        const uint8_t sense_bytes = reply ? reply->sense_length : SENSE_FIXED_BYTES;
        packet->status = reply ? reply->status : 0;
        packet->srb_status = reply ? reply->srb_status : SRB_STATUS_ERROR | SRB_STATUS_SENSE_VALID;
        packet->scsi_status = reply ? reply->scsi_status : SCSI_CHECK_CONDITION;
        packet->transfer_bytes = 0; /* whatever came, the guest's pages have none of it */
        packet->sense_length = sense_bytes < sense_room ? sense_bytes : sense_room;
        memcpy(packet->cdb_or_sense, sense, packet->sense_length);
    }
    (void)block_server_answer(server, relayed->transaction_id, packet, &relayed->transfer);
    relayed->server = NULL;
}

/* Take in every answer that is there; returns how many were to requests of this server. server NULL: of nobody's. */
static uint32_t take_answers(struct block_relay *relay, struct block_server *server)
{
    struct endpoint *endpoint = relay->queue.endpoint;
    struct ring_packet found;
    struct storvsp_packet reply;
    enum ring_status status;
    uint32_t slot, answered = 0;
    while ((status = ring_peek(&endpoint->reader, &found)) == RING_OK) {
        const enum block_completion completion = block_queue_take(&relay->queue, &found, &slot, &reply);
        if (completion != BLOCK_FOREIGN && server && relay->relayed[slot].server == server) {
            answer(server, slot, completion == BLOCK_DONE, &reply);
            answered++;
        }
        ring_hold(&endpoint->reader, &found);
    }
    relay->gone |= status == RING_CORRUPT;
    if (ring_release(&endpoint->reader))
        endpoint_signal(endpoint);
    return answered;
}

/* Until something came from our server, or it is time to look around. */
static void wait_for_answers(struct block_relay *relay)
{
    struct endpoint *endpoint = relay->queue.endpoint;
    if (ring_poll(&endpoint->reader) != RING_EMPTY)
        return;
    struct wait_progress progress = {.spun_ns = endpoint_spin_limit_ns(endpoint, WAIT_FOR_DATA)};
    enum wait_result result = endpoint_spin(endpoint, WAIT_FOR_DATA, 0, progress.spun_ns);
    if (result == WAIT_NOT_YET)
        result = endpoint_wait(endpoint, WAIT_FOR_DATA, 0, clock_now_ns() + BLOCK_RELAY_LOOK_NS, &progress);
    relay->gone |= result == WAIT_CLOSED || result == WAIT_CORRUPT;
}

/* Every request of the guest's that waits, as far as there is room. Returns how many; *status: what stopped it. */
static uint32_t take_requests(struct block_server *server, uint32_t under_way, uint32_t at_most, bool *for_python,
                              enum ring_status *status)
{
    struct endpoint *endpoint = server->endpoint;
    struct ring_packet found;
    uint32_t count = 0;
    while (count < at_most && !*for_python && (*status = ring_peek(&endpoint->reader, &found)) == RING_OK) {
        const enum taken taken = take_request(server, &found, under_way + count);
        *for_python = taken == FOR_PYTHON;
        if (taken != TAKEN)
            break;
        ring_hold(&endpoint->reader, &found);
        count++;
    }
    if (block_queue_flush(&server->relay->queue))
        endpoint_signal(server->relay->queue.endpoint);
    return count;
}

/* The guest is not to wait for ever: what cannot be answered any more has failed. */
static void fail_all(struct block_server *server)
{
    for (uint32_t slot = 0; slot < server->relay->queue.slots; slot++)
        if (server->relay->relayed[slot].server == server)
            answer(server, slot, false, NULL);
}

/* The guest's channel is closed on our side: its pages may go at any moment. */
static void abandon_all(struct block_server *server)
{
    for (uint32_t slot = 0; slot < server->relay->queue.slots; slot++)
        if (server->relay->relayed[slot].server == server)
            server->relay->relayed[slot].server = NULL;
}

enum ring_status block_relay_batch(struct block_server *server, bool *for_python)
{
    struct block_relay *relay = server->relay;
    struct endpoint *endpoint = server->endpoint;
    struct ring_packet found;
    enum ring_status status = ring_peek(&endpoint->reader, &found);
    *for_python = status == RING_OK && relay->gone;
    if (status != RING_OK || *for_python)
        return status;
    device_lock_acquire(server->lock);
    uint32_t taken = 0, under_way = 0;
    for (;;) {
        const uint32_t fresh = take_requests(server, under_way, BLOCK_RELAY_BATCH - taken, for_python, &status);
        taken += fresh;
        under_way += fresh;
        if (under_way == 0) {
            if (taken > 0 || *for_python || status != RING_OK)
                break;
            wait_for_answers(relay); /* every slot is still under way for a channel that was closed */
            (void)take_answers(relay, NULL);
            if (relay->gone || atomic_load_explicit(&endpoint->closed, memory_order_relaxed))
                break;
            continue;
        }
        wait_for_answers(relay);
        under_way -= take_answers(relay, server);
        if (atomic_load_explicit(&endpoint->closed, memory_order_relaxed)) {
            abandon_all(server);
            break;
        }
        if (relay->gone && under_way > 0) {
            fail_all(server);
            under_way = 0;
        }
        if (endpoint->writer.staged_in != endpoint->writer.published_in && endpoint_publish(endpoint))
            endpoint_signal(endpoint);
        if (relay->gone)
            break;
    }
    if (endpoint_release(endpoint))
        endpoint_signal(endpoint);
    device_lock_release(server->lock);
    return *for_python ? RING_OK : status;
}

void block_relay_settle(struct block_relay *relay)
{
    while (relay->queue.in_flight > 0 && !relay->gone) {
        wait_for_answers(relay);
        (void)take_answers(relay, NULL);
    }
}
