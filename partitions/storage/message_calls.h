/* A message client's requests: those that wait, in their order, and the one that is with the server. No Python.
 *
 * A server may die at any moment. Then its socket ends, and whoever looks after it gets another one; what was not replied to
 * stays the first of those that wait, and is sent again with the same id (docs/recovery.md). The server is not trusted: a
 * reply counts only with the id of the request that it owes us one to, and moves no byte but into that request's memory. */
#ifndef PARTVISOR_MESSAGE_CALLS_H
#define PARTVISOR_MESSAGE_CALLS_H

#include <stdatomic.h>
#include <sys/uio.h>

#include "message_wire.h"

#define MESSAGE_CALLS_MAX 4096u
#define MESSAGE_CALLS_FOREVER UINT64_MAX

struct message_call {
    uint64_t transaction_id; /* its user's; the message's is another one in a turn */
    struct message_head head;
    struct storvsp_packet packet;
    const struct iovec *data; /* what goes with it, or where the reply's data goes: by head.inline_bytes */
    size_t data_count;        /* at most STORVSP_MAX_PFNS */
    struct iovec one;         /* what `data` points at where it is a single piece */
};

struct message_calls {
    int socket; /* -1: none; owned by whoever connects */
    bool sent;  /* the first is with the server */
    bool lost;  /* it could not be sent: this socket is of no use any more */
    bool began; /* something was added: the session has begun */
    _Atomic bool closed;
    uint32_t first, count;
    uint64_t packets_sent, packets_received;
    uint64_t turn; /* what is added is a step of this one; 0: of none */
    uint32_t step; /* the next */
    struct message_call *call; /* MESSAGE_CALLS_MAX of them, a ring */
};

struct message_reply {
    struct message_head head;
    struct storvsp_packet packet;
};

enum calls_result {
    CALLS_REPLY,
    CALLS_NOTHING, /* until the deadline */
    CALLS_INTERRUPTED, /* by a signal: look at it, and ask again */
    CALLS_GONE,    /* the server is; get another socket, and ask again */
    CALLS_BROKEN,  /* it said what is no reply to what it was asked: leave it, then as GONE */
};

/* Append one; message_calls_send() or _receive() sends it. NULL: MESSAGE_CALLS_MAX wait. The caller fills in the data. */
struct message_call *message_calls_add(struct message_calls *calls, const struct storvsp_packet *packet,
                                       uint32_t packet_bytes, uint64_t transaction_id, uint32_t area_bytes, bool writes);

/* With this socket from now on: the first is to be sent (again). */
void message_calls_connect(struct message_calls *calls, int socket);

/* Send the first, unless it is with the server. False: it is lost. One message fits an empty socket: this never waits. */
bool message_calls_send(struct message_calls *calls);

/* Send as above, take a reply in, send the next. Waits until deadline_ns on clock_now_ns()'s clock. A result but
 * CALLS_REPLY has changed no request; its memory may have changed. */
enum calls_result message_calls_receive(struct message_calls *calls, uint64_t deadline_ns, struct message_reply *reply);

#endif
