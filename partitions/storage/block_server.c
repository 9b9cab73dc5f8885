#include "block_server.h"

#include <string.h>

#include "block_forward.h"
#include "block_relay.h"
#include "clock.h"
#include "service_budget.h"

/* Find the host memory behind the packet's one range. The number of vectors; 0: not one range of mapped pages. */
static size_t resolve_pages(struct block_server *server, const struct storvsp_packet *packet,
                            const struct block_transfer *transfer, uint32_t extra_bytes)
{
    struct gpa_direct_head head;
    size_t count;
    memcpy(&head, server->extra, sizeof head);
    if (head.range_count != 1 || head.byte_offset >= GPA_PAGE_BYTES || packet->transfer_bytes > head.byte_count)
        return 0;
    const uint64_t listed = ((uint64_t)head.byte_offset + head.byte_count + GPA_PAGE_BYTES - 1) / GPA_PAGE_BYTES;
    if (listed > (extra_bytes - sizeof head) / PFN_BYTES)
        return 0;
    const size_t pages = (head.byte_offset + transfer->bytes + GPA_PAGE_BYTES - 1) / GPA_PAGE_BYTES;
    const uint8_t *pfns = (const uint8_t *)server->extra + sizeof head;
    if (gpa_resolve(server->table, head.byte_offset, transfer->bytes, pfns, pages, !transfer->write, server->spans, &count)
        != GPA_OK)
        return 0;
    for (size_t i = 0; i < count; i++)
        server->vectors[i] = (struct iovec){
            .iov_base = server->spans[i].range->memory + server->spans[i].offset_bytes,
            .iov_len = server->spans[i].bytes,
        };
    return count;
}

/* ORDER turns: the store is before the first message leaves, which is a system call, so a successor that finds the request
 * passed on finds its number, too. It reads once this process is over. */
void block_server_begin_turn(struct block_server *server)
{
    if (!server->forward || !server->turns)
        return;
    const uint32_t position = server->endpoint->reader.released_out;
    uint64_t word = atomic_load_explicit(&server->turns->word, memory_order_relaxed);
    if ((uint32_t)word == 0 || word >> 32 != position) {
        const uint32_t sequence = (uint32_t)word + 1;
        word = (uint64_t)position << 32 | (sequence ? sequence : 1);
        atomic_store_explicit(&server->turns->word, word, memory_order_release);
    }
    server->forward->calls->turn = message_turn(server->turns->opening, (uint32_t)word);
    server->forward->calls->step = 0;
}

void block_server_end_turn(struct block_server *server)
{
    if (server->forward)
        server->forward->calls->turn = 0;
}

static bool move(struct block_server *server, const struct block_transfer *transfer, size_t vectors)
{
    if (server->forward) {
        block_server_begin_turn(server);
        const bool moved = block_forward_move(server->forward, &server->disk, transfer, server->vectors, vectors);
        block_server_end_turn(server);
        return moved;
    }
    return block_request_move(server->fd, transfer, server->vectors, vectors);
}

bool block_server_parse(struct block_server *server, const struct ring_packet *found, struct storvsp_packet *packet,
                        struct block_transfer *transfer, size_t *vectors)
{
    struct endpoint *endpoint = server->endpoint;
    if (found->type != RING_PACKET_GPA_DIRECT || found->flags != RING_FLAG_COMPLETION
        || found->payload_bytes != STORVSP_PACKET_BYTES || found->extra_bytes < sizeof(struct gpa_direct_head)
        || found->extra_bytes > sizeof server->extra)
        return false;
    ring_copy_out(&endpoint->reader, found->payload_at, packet, STORVSP_PACKET_BYTES);
    ring_copy_out(&endpoint->reader, found->extra_at, server->extra, found->extra_bytes);
    /* The copies must be made here, once: read again, the guest's memory may say something else. */
    __asm__ volatile("" : "+m"(*packet), "+m"(server->extra));
    if (!block_request_parse(&server->disk, packet, transfer))
        return false;
    *vectors = resolve_pages(server, packet, transfer, found->extra_bytes);
    return *vectors != 0;
}

bool block_server_has_room(struct block_server *server, uint32_t owed)
{
    struct ring_writer *writer = &server->endpoint->writer;
    const uint32_t wanted = (owed + 1) * BLOCK_ANSWER_RING_BYTES;
    return ring_writable_cached(writer) >= wanted
           || (ring_writer_refresh(writer) == RING_OK && ring_writable_cached(writer) >= wanted);
}

bool block_server_answer(struct block_server *server, uint64_t transaction_id, const struct storvsp_packet *packet,
                         const struct block_transfer *transfer)
{
    struct endpoint *endpoint = server->endpoint;
    endpoint_stamp_write(endpoint, TRACE_ANSWER, transaction_id);
    if (ring_write(&endpoint->writer, RING_PACKET_COMPLETION, 0, transaction_id, NULL, 0, packet, STORVSP_PACKET_BYTES)
        != RING_OK)
        return false; /* cannot happen: there was room, and only we write */
    endpoint->statistics.packets_received++;
    endpoint->statistics.bytes_received += STORVSP_PACKET_BYTES;
    endpoint->statistics.packets_sent++;
    endpoint->statistics.bytes_sent += STORVSP_PACKET_BYTES;
    if (transfer->write) {
        server->statistics.writes++;
        server->statistics.bytes_written += transfer->bytes;
    } else {
        server->statistics.reads++;
        server->statistics.bytes_read += transfer->bytes;
    }
    return true;
}

enum served {
    SERVED,
    NOT_PLAIN, /* for Python; nothing was done, nothing staged */
    BEGUN,     /* for Python, which does it again; some of it may be on the disk; nothing staged, and there is room */
};

/* Execute the peeked packet, stage its answer, add to *moved_bytes. */
static enum served serve_one(struct block_server *server, const struct ring_packet *found, uint32_t *moved_bytes)
{
    struct storvsp_packet packet;
    struct block_transfer transfer;
    size_t vectors;
    if (!block_server_parse(server, found, &packet, &transfer, &vectors))
        return NOT_PLAIN;
    if (!block_server_has_room(server, 0))
        return NOT_PLAIN; /* no room for the answer: Python waits for it, and sees a corrupt ring */
    endpoint_stamp(server->endpoint, TRACE_BACKEND_BEGIN, found->transaction_id);
    if (!move(server, &transfer, vectors))
        return BEGUN; /* Python finds out what the error means */
    endpoint_stamp(server->endpoint, TRACE_BACKEND_END, found->transaction_id);
    seam_pass(server->endpoint->seam, SEAM_EXECUTE);
    block_request_make_answer(&packet, &transfer);
    if (!block_server_answer(server, found->transaction_id, &packet, &transfer))
        return BEGUN;
    *moved_bytes += transfer.bytes;
    return SERVED;
}

/* From here to leave() the device is ours, and a successor will know that we were at it. False: the channel was closed
 * meanwhile. Then whoever had the device may have let it go in the middle of a request, for a successor to do it again:
 * what that did we must not see, and the mark is his. */
static bool enter(struct block_server *server)
{
    device_lock_acquire(server->lock);
    if (atomic_load_explicit(&server->endpoint->closed, memory_order_relaxed)) {
        device_lock_release(server->lock);
        return false;
    }
    if (server->endpoint->journal)
        atomic_store_explicit(&server->endpoint->journal->executing, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release); /* the mark stands before anything is executed */
    return true;
}

/* Publish what was answered, if anything, then let the next one at the device. */
static void leave(struct block_server *server)
{
    struct endpoint *endpoint = server->endpoint;
    const bool owed = endpoint->writer.staged_in != endpoint->writer.published_in && endpoint_publish_and_release(endpoint);
    if (endpoint->journal)
        atomic_store_explicit(&endpoint->journal->executing, 0, memory_order_release);
    device_lock_release(server->lock);
    if (owed)
        endpoint_signal(endpoint);
}

/* The next request was begun and is not done. What it did to the disk nobody may see, or overwrite, before Python has done
 * it again: device and mark stay with us, and the caller takes them over. What was answered before is published. The
 * doorbell has to wait: a guest can make ringing it block, and must not stop the whole device with it. */
static void hand_over(struct block_server *server)
{
    struct endpoint *endpoint = server->endpoint;
    if (endpoint->writer.staged_in != endpoint->writer.published_in)
        server->owes_signal |= endpoint_publish_and_release(endpoint);
    server->holds_device = true;
}

/* Serve all that is there. RING_EMPTY: nothing is left; RING_OK: the next is Python's, or the batch is over.
 * Whatever it returns, all answers are published and all that was answered is released, in that order. */
static enum ring_status serve_batch(struct block_server *server, bool *for_python)
{
    struct endpoint *endpoint = server->endpoint;
    struct ring_packet packet;
    enum ring_status status = RING_OK;
    uint32_t staged = 0, moved_bytes = 0;
    bool inside = false;
    *for_python = false;
    for (unsigned served = 0; served < BLOCK_SERVER_BATCH; served++) {
        status = ring_peek(&endpoint->reader, &packet);
        if (status != RING_OK)
            break;
        seam_pass(endpoint->seam, SEAM_TAKE);
        endpoint_stamp(endpoint, TRACE_TAKE, packet.transaction_id);
        if (!inside) {
            if (!enter(server))
                return RING_OK; /* nothing is staged, nothing held: block_server_run() sees why */
            inside = true;
        }
        const enum served done = serve_one(server, &packet, &moved_bytes);
        if (done != SERVED) {
            *for_python = true;
            if (done == NOT_PLAIN)
                break;
            hand_over(server);
            return status;
        }
        ring_hold(&endpoint->reader, &packet);
        if (++staged == BLOCK_SERVER_PUBLISH_ANSWERS || moved_bytes >= BLOCK_SERVER_PUBLISH_BYTES || server->forward) {
            leave(server);
            inside = false;
            staged = moved_bytes = 0;
        }
    }
    if (inside)
        leave(server);
    return status;
}

enum block_server_result block_server_run(struct block_server *server, uint64_t deadline_ns)
{
    struct endpoint *endpoint = server->endpoint;
    bool for_python;
    server->holds_device = false;
    if (server->owes_signal) {
        server->owes_signal = false;
        endpoint_signal(endpoint);
    }
    for (;;) {
        if (atomic_load_explicit(&endpoint->closed, memory_order_relaxed))
            return BLOCK_SERVER_CLOSED;
        if (!endpoint_pace(endpoint))
            return BLOCK_SERVER_CLOSED;
        switch (server->relay ? block_relay_batch(server, &for_python) : serve_batch(server, &for_python)) {
        case RING_OK:
            if (for_python)
                return BLOCK_SERVER_PACKET;
            if (clock_now_ns() >= deadline_ns)
                return BLOCK_SERVER_IDLE;
            continue;
        case RING_EMPTY:
            break;
        default:
            return BLOCK_SERVER_CORRUPT;
        }
        struct wait_progress progress = {.spun_ns = endpoint_spin_limit_ns(endpoint, WAIT_FOR_DATA)};
        enum wait_result result = endpoint_spin(endpoint, WAIT_FOR_DATA, 0, progress.spun_ns);
        if (result == WAIT_NOT_YET)
            result = endpoint_wait(endpoint, WAIT_FOR_DATA, 0, deadline_ns, &progress);
        switch (result) {
        case WAIT_READY:
            break;
        case WAIT_CLOSED:
            return BLOCK_SERVER_CLOSED;
        case WAIT_CORRUPT:
            return BLOCK_SERVER_CORRUPT;
        default:
            return BLOCK_SERVER_IDLE;
        }
    }
}
