#include "message_server.h"

#include <errno.h>
#include <sys/socket.h>

/* ORDER record: a successor reads it once this process is over, so no processor can see these stores in another order;
 * the releases keep the compiler from moving what they bracket. They pair with the end of the process, which comes before
 * the reads in MessageService of its successor. */
static void enter(struct message_server *server, enum message_phase phase)
{
    atomic_store_explicit(&server->record->phase, (uint64_t)phase, memory_order_release);
    atomic_signal_fence(memory_order_seq_cst);
}

static void count(struct message_server *server, const struct block_transfer *transfer)
{
    _Atomic uint64_t *requests = transfer->write ? &server->writes : &server->reads;
    _Atomic uint64_t *bytes = transfer->write ? &server->bytes_written : &server->bytes_read;
    /* One writer: no need to lock the bus. */
    atomic_store_explicit(requests, atomic_load_explicit(requests, memory_order_relaxed) + 1, memory_order_relaxed);
    atomic_store_explicit(bytes, atomic_load_explicit(bytes, memory_order_relaxed) + transfer->bytes, memory_order_relaxed);
}

/* Whether the message is an ordinary request, new, with all of its data. */
static bool is_plain(const struct message_server *server, struct block_transfer *transfer)
{
    const struct message_head *head = server->head;
    if (server->truncated || server->received_bytes < MESSAGE_BYTES_MIN
        || !message_head_is_valid(head, server->received_bytes) || head->kind != MESSAGE_REQUEST
        || (head->flags & MESSAGE_FIRST) || head->packet_bytes != STORVSP_PACKET_BYTES)
        return false;
    if (server->packet->direction == SRB_DIRECTION_WRITE && head->inline_bytes != head->area_bytes)
        return false;
    if (atomic_load_explicit(&server->record->phase, memory_order_relaxed) != MESSAGE_IDLE)
        return false; /* what a predecessor had begun, or done, may be this one */
    if (message_is_not_after(head->transaction_id, server->record->done))
        return false; /* done for a predecessor of the client's */
    return block_request_parse(&server->disk, server->packet, transfer) && server->packet->transfer_bytes <= head->area_bytes;
}

/* The order of steps is message_service.py's, and so is what each mark says to a successor. False: it failed; the device
 * and the mark BEGUN stay. */
static bool execute(struct message_server *server, const struct block_transfer *transfer)
{
    const struct iovec piece = {.iov_base = server->area, .iov_len = transfer->bytes};
    server->record->transaction_id = server->head->transaction_id;
    atomic_signal_fence(memory_order_seq_cst);
    device_lock_acquire(server->lock);
    enter(server, MESSAGE_BEGUN);
    if (!block_request_move(server->fd, transfer, &piece, 1)) {
        server->holds_device = true;
        return false;
    }
    if (server->head->transaction_id & MESSAGE_TURN)
        server->record->done = server->head->transaction_id;
    enter(server, MESSAGE_DONE);
    device_lock_release(server->lock);
    count(server, transfer);
    seam_pass(server->seam, SEAM_EXECUTE);
    return true;
}

static bool reply(struct message_server *server, int socket, const struct block_transfer *transfer)
{
    struct message_head head = {
        .transaction_id = server->head->transaction_id,
        .area_bytes = server->head->area_bytes,
        .inline_bytes = transfer->write ? 0 : transfer->bytes,
        .kind = MESSAGE_REPLY,
        .packet_bytes = STORVSP_PACKET_BYTES,
    };
    struct iovec parts[3] = {
        {.iov_base = &head, .iov_len = sizeof head},
        {.iov_base = server->packet, .iov_len = STORVSP_PACKET_BYTES},
        {.iov_base = server->area, .iov_len = head.inline_bytes},
    };
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = head.inline_bytes ? 3 : 2};
    ssize_t sent;
    block_request_make_answer(server->packet, transfer);
    do
        sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return false; /* DONE stands: the client will ask again */
    enter(server, MESSAGE_IDLE);
    return true;
}

enum message_server_result message_server_run(struct message_server *server, int socket)
{
    struct block_transfer transfer;
    uint32_t moved_bytes = 0;
    server->holds_device = false;
    for (uint32_t requests = 0; requests < MESSAGE_TURN_REQUESTS && moved_bytes < MESSAGE_TURN_BYTES; requests++) {
        struct iovec parts[3] = {
            {.iov_base = server->head, .iov_len = sizeof *server->head},
            {.iov_base = server->packet, .iov_len = STORVSP_PACKET_BYTES},
            {.iov_base = server->area, .iov_len = MESSAGE_DATA_BYTES_MAX},
        };
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
        const ssize_t received = recvmsg(socket, &message, 0);
        if (received <= 0)
            return received < 0 && errno == EINTR ? MESSAGE_SERVER_PAUSED : MESSAGE_SERVER_GONE;
        server->received_bytes = (size_t)received;
        server->truncated = message.msg_flags & MSG_TRUNC;
        if (__builtin_expect(atomic_load_explicit(server->armed, memory_order_relaxed) != 0, 0) || !is_plain(server, &transfer))
            return MESSAGE_SERVER_LEFT;
        atomic_store_explicit(&server->busy, true, memory_order_relaxed);
        const bool done = execute(server, &transfer);
        atomic_store_explicit(&server->busy, false, memory_order_relaxed);
        if (!done)
            return MESSAGE_SERVER_LEFT;
        if (!reply(server, socket, &transfer))
            return MESSAGE_SERVER_GONE;
        moved_bytes += transfer.bytes; /* neither is more than 2^31, so this does not wrap */
    }
    return MESSAGE_SERVER_PAUSED;
}
