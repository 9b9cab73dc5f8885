#include "message_calls.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "clock.h"

#define NS_PER_MS 1000000u

struct message_call *message_calls_add(struct message_calls *calls, const struct storvsp_packet *packet,
                                       uint32_t packet_bytes, uint64_t transaction_id, uint32_t area_bytes, bool writes)
{
    if (calls->count == MESSAGE_CALLS_MAX)
        return NULL;
    struct message_call *call = &calls->call[(calls->first + calls->count) % MESSAGE_CALLS_MAX];
    const bool in_turn = calls->turn != 0 && calls->step < MESSAGE_STEPS;
    calls->count++;
    *call = (struct message_call){
        .transaction_id = transaction_id,
        .head =
            {
                .transaction_id =
                    in_turn ? calls->turn | (uint64_t)calls->step++ << MESSAGE_STEP_SHIFT : transaction_id,
                .area_bytes = area_bytes,
                .inline_bytes = writes ? area_bytes : 0,
                .kind = MESSAGE_REQUEST,
                .packet_bytes = (uint16_t)packet_bytes,
                .flags = calls->began ? 0 : MESSAGE_FIRST,
            },
        .packet = *packet,
    };
    calls->began = true;
    return call;
}

void message_calls_connect(struct message_calls *calls, int socket)
{
    calls->socket = socket;
    calls->sent = calls->lost = false;
}

/* Two parts and those of `data`. */
static size_t gather(struct iovec *parts, struct message_head *head, struct storvsp_packet *packet,
                     const struct iovec *data, size_t data_count)
{
    parts[0] = (struct iovec){.iov_base = head, .iov_len = sizeof *head};
    parts[1] = (struct iovec){.iov_base = packet, .iov_len = sizeof *packet};
    if (data_count)
        memcpy(parts + 2, data, data_count * sizeof *data);
    return 2 + data_count;
}

bool message_calls_send(struct message_calls *calls)
{
    if (calls->count == 0 || calls->sent)
        return true;
    if (calls->lost || calls->socket < 0)
        return false;
    struct message_call *call = &calls->call[calls->first];
    struct iovec parts[2 + STORVSP_MAX_PFNS];
    struct msghdr message = {.msg_iov = parts};
    message.msg_iovlen =
        gather(parts, &call->head, &call->packet, call->data, call->head.inline_bytes ? call->data_count : 0);
    ssize_t sent;
    do
        sent = sendmsg(calls->socket, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    calls->sent = sent >= 0;
    calls->lost = sent < 0;
    calls->packets_sent += calls->sent;
    return calls->sent;
}

/* What stands in the socket now, or comes. */
static enum calls_result take(struct message_calls *calls, int flags, struct message_reply *reply)
{
    const struct message_call *call = calls->count && calls->sent ? &calls->call[calls->first] : NULL;
    struct iovec parts[2 + STORVSP_MAX_PFNS];
    struct msghdr message = {.msg_iov = parts};
    const bool reads = call && call->head.inline_bytes == 0;
    message.msg_iovlen =
        gather(parts, &reply->head, &reply->packet, reads ? call->data : NULL, reads ? call->data_count : 0);
    const ssize_t received = recvmsg(calls->socket, &message, flags);
    if (received < 0)
        return errno == EINTR ? CALLS_INTERRUPTED : errno == EAGAIN ? CALLS_NOTHING : CALLS_GONE;
    if (received == 0)
        return CALLS_GONE;
    if (!call || (message.msg_flags & MSG_TRUNC) || (size_t)received < MESSAGE_BYTES_MIN
        || !message_head_is_valid(&reply->head, (size_t)received) || reply->head.kind != MESSAGE_REPLY
        || reply->head.transaction_id != call->head.transaction_id)
        return CALLS_BROKEN;
    return CALLS_REPLY;
}

static enum calls_result wait_for_reply(struct message_calls *calls, uint64_t deadline_ns, struct message_reply *reply)
{
    if (deadline_ns == MESSAGE_CALLS_FOREVER)
        return take(calls, 0, reply);
    for (;;) {
        const enum calls_result result = take(calls, MSG_DONTWAIT, reply);
        const uint64_t now_ns = clock_now_ns();
        if (result != CALLS_NOTHING || now_ns >= deadline_ns)
            return result;
        const uint64_t left_ms = (deadline_ns - now_ns) / NS_PER_MS + 1;
        struct pollfd waited = {.fd = calls->socket, .events = POLLIN};
        if (poll(&waited, 1, left_ms > INT32_MAX ? INT32_MAX : (int)left_ms) < 0)
            return CALLS_INTERRUPTED;
    }
}

enum calls_result message_calls_receive(struct message_calls *calls, uint64_t deadline_ns, struct message_reply *reply)
{
    if (calls->socket < 0 || !message_calls_send(calls))
        return CALLS_GONE;
    const enum calls_result result = wait_for_reply(calls, deadline_ns, reply);
    if (result != CALLS_REPLY)
        return result;
    reply->head.transaction_id = calls->call[calls->first].transaction_id;
    calls->first = (calls->first + 1) % MESSAGE_CALLS_MAX;
    calls->count--;
    calls->sent = false;
    calls->packets_received++;
    (void)message_calls_send(calls); /* lost: the next call says so */
    return CALLS_REPLY;
}
