/* The sockets' side of nbd_engine.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nbd_engine.h"

#define DROPPED_AT_ONCE 16384u
#define RECEIVES_A_TURN 8u /* then the next client has its turn */

/* -- receiving */

/* The request whose header is complete, with what it needs. False: it has to wait for pages, or for earlier requests. */
static bool accept_request(struct nbd_engine *engine, struct nbd_connection *connection)
{
    struct nbd_request request;
    uint32_t error = 0, pages = 0;
    struct nbd_work *work = engine->free_work;
    if (connection->requests == NBD_REQUESTS_MAX)
        return false;
    const enum nbd_verdict verdict = nbd_judge(&engine->disk, connection->input + connection->input_start, &request, &error);
    if (verdict == NBD_HANG_UP) {
        nbd_break(engine, connection, NBD_ENDED_BROKEN);
        return true;
    }
    if (verdict == NBD_DISCONNECT) {
        connection->state = NBD_CONNECTION_LEAVING;
        connection->ending = NBD_ENDED_IN_ORDER;
        return true;
    }
    const bool writes = request.command == NBD_COMMAND_WRITE;
    if (verdict == NBD_EXECUTE && request.command <= NBD_COMMAND_WRITE)
        pages = (request.length + RING_PAGE_BYTES - 1) / RING_PAGE_BYTES;
    else if (verdict == NBD_EXECUTE && request.command != NBD_COMMAND_FLUSH)
        pages = 1; /* for the parameters of an UNMAP */
    struct nbd_pages taken;
    if (!nbd_take_pages(engine, connection, pages, &taken))
        return false;
    engine->free_work = work->next;
    *work = (struct nbd_work){.connection = connection, .request = request, .pages = taken, .error = error};
    connection->requests++;
    connection->input_start += NBD_REQUEST_BYTES;
    connection->wrote_last = writes;
    engine->statistics.requests++;
    endpoint_stamp(engine->queue.endpoint, TRACE_CALL, request.cookie);
    work->issue_page = request.command == NBD_COMMAND_WRITE_ZEROES ? 0 : taken.first;
    if (verdict == NBD_REFUSE) {
        connection->dropped_bytes = nbd_payload_bytes(&request);
        nbd_finish(engine, work);
    } else if (writes) {
        connection->receiving = work;
        connection->received_bytes = 0;
        connection->fill_page = taken.first;
    } else {
        nbd_begin(engine, work);
    }
    return true;
}

/* `bytes` more of the WRITE's data are in its pages. */
static void fill(struct nbd_engine *engine, struct nbd_connection *connection, uint32_t bytes)
{
    struct nbd_work *work = connection->receiving;
    const uint32_t pages_before = connection->received_bytes / RING_PAGE_BYTES;
    connection->received_bytes += bytes;
    for (uint32_t i = pages_before; i < connection->received_bytes / RING_PAGE_BYTES; i++)
        connection->fill_page = engine->next_page[connection->fill_page];
    if (connection->received_bytes == work->request.length) {
        connection->receiving = NULL;
        nbd_begin(engine, work);
    }
}

/* The rest of the pages of a WRITE, neighbours in one vector. */
static unsigned vectors_to_fill(struct nbd_engine *engine, const struct nbd_connection *connection, unsigned limit)
{
    uint32_t left = connection->receiving->request.length - connection->received_bytes;
    uint32_t page = connection->fill_page, start = connection->received_bytes % RING_PAGE_BYTES;
    unsigned count = 0;
    while (left > 0) {
        const uint32_t bytes = left < RING_PAGE_BYTES - start ? left : RING_PAGE_BYTES - start;
        uint8_t *const at = nbd_page(engine, page) + start;
        struct iovec *last = count ? &engine->vectors[count - 1] : NULL;
        if (last && (uint8_t *)last->iov_base + last->iov_len == at)
            last->iov_len += bytes;
        else if (count == limit)
            break;
        else
            engine->vectors[count++] = (struct iovec){.iov_base = at, .iov_len = bytes};
        left -= bytes;
        start = 0;
        page = engine->next_page[page];
    }
    return count;
}

/* What came along with headers, into the pages that it belongs to. */
static void fill_from_input(struct nbd_engine *engine, struct nbd_connection *connection)
{
    while (connection->receiving && connection->input_start < connection->input_end) {
        const uint32_t start = connection->received_bytes % RING_PAGE_BYTES;
        uint32_t bytes = connection->receiving->request.length - connection->received_bytes;
        if (bytes > RING_PAGE_BYTES - start)
            bytes = RING_PAGE_BYTES - start;
        if (bytes > connection->input_end - connection->input_start)
            bytes = connection->input_end - connection->input_start;
        memcpy(nbd_page(engine, connection->fill_page) + start, connection->input + connection->input_start, bytes);
        connection->input_start += bytes;
        fill(engine, connection, bytes);
    }
}

static void drop_from_input(struct nbd_connection *connection)
{
    const uint32_t there = connection->input_end - connection->input_start;
    const uint32_t bytes = there < connection->dropped_bytes ? there : connection->dropped_bytes;
    connection->input_start += bytes;
    connection->dropped_bytes -= bytes;
}

/* Take all requests out of the input that are complete and can be taken. False: the first has to wait. */
static bool digest(struct nbd_engine *engine, struct nbd_connection *connection)
{
    for (;;) {
        if (connection->dropped_bytes)
            drop_from_input(connection);
        fill_from_input(engine, connection);
        if (connection->receiving || connection->dropped_bytes
            || connection->input_end - connection->input_start < NBD_REQUEST_BYTES)
            return true;
        if (!accept_request(engine, connection))
            return false;
        if (connection->state != NBD_CONNECTION_OPEN)
            return true;
    }
}

/* One readv: data into the pages, what follows it into the input. Bytes, or as recv(). */
static ssize_t take_in(struct nbd_engine *engine, struct nbd_connection *connection)
{
    static uint8_t nowhere[DROPPED_AT_ONCE]; /* written, never read */
    unsigned count = 0;
    const uint32_t kept = connection->input_end - connection->input_start;
    memmove(connection->input, connection->input + connection->input_start, kept);
    connection->input_start = 0;
    connection->input_end = kept;
    uint64_t data_bytes = 0;
    if (connection->dropped_bytes) {
        data_bytes = connection->dropped_bytes < DROPPED_AT_ONCE ? connection->dropped_bytes : DROPPED_AT_ONCE;
        engine->vectors[count++] = (struct iovec){.iov_base = nowhere, .iov_len = data_bytes};
    } else if (connection->receiving) {
        count = vectors_to_fill(engine, connection, NBD_VECTORS_MAX - 1);
        for (unsigned i = 0; i < count; i++)
            data_bytes += engine->vectors[i].iov_len;
    }
    /* Whoever wrote will write again: then its data shall not come along with the header, for it would have to be copied. */
    const uint32_t wanted = connection->wrote_last ? NBD_REQUEST_BYTES : (uint32_t)sizeof connection->input;
    const bool is_last_of_data = !connection->receiving
                                 || connection->received_bytes + data_bytes == connection->receiving->request.length;
    if (connection->dropped_bytes <= DROPPED_AT_ONCE && is_last_of_data && wanted > kept)
        engine->vectors[count++] = (struct iovec){.iov_base = connection->input + kept, .iov_len = wanted - kept};
    const struct msghdr message = {.msg_iov = engine->vectors, .msg_iovlen = count};
    ssize_t got;
    do
        got = recvmsg(connection->fd, (struct msghdr *)&message, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got <= 0)
        return got;
    uint64_t asked = 0;
    for (unsigned i = 0; i < count; i++)
        asked += engine->vectors[i].iov_len;
    /* A stream that gave less is empty, and epoll tells of more; but of its end it may have told already. */
    connection->readable = (uint64_t)got == asked || connection->hung_up;
    const uint32_t data = (uint64_t)got < data_bytes ? (uint32_t)got : (uint32_t)data_bytes;
    if (connection->dropped_bytes)
        connection->dropped_bytes -= data;
    else if (connection->receiving)
        fill(engine, connection, data);
    connection->input_end += (uint32_t)got - data;
    return got;
}

bool nbd_receive(struct nbd_engine *engine, struct nbd_connection *connection)
{
    const uint64_t requests = engine->statistics.requests;
    bool moved = false;
    for (unsigned i = 0; i < RECEIVES_A_TURN && connection->state == NBD_CONNECTION_OPEN; i++) {
        if (!digest(engine, connection) || connection->state != NBD_CONNECTION_OPEN || !connection->readable)
            break;
        const ssize_t got = take_in(engine, connection);
        if (got > 0) {
            engine->statistics.receives++;
            moved = true;
            continue;
        }
        connection->readable = false; /* until epoll says otherwise */
        if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) {
            const bool is_inside = connection->receiving || connection->dropped_bytes
                                   || connection->input_end != connection->input_start;
            nbd_break(engine, connection, is_inside ? NBD_ENDED_BROKEN : NBD_ENDED_LOST);
        }
    }
    return moved || engine->statistics.requests != requests;
}

/* -- sending */

static unsigned vectors_to_send(struct nbd_engine *engine, const struct nbd_connection *connection)
{
    unsigned count = 0;
    uint32_t skip = connection->sent_bytes;
    for (const struct nbd_work *work = connection->replies.first; work && count < NBD_VECTORS_MAX; work = work->next) {
        uint32_t left = work->reply_bytes - NBD_REPLY_BYTES, page = work->pages.first;
        if (skip < NBD_REPLY_BYTES) {
            engine->vectors[count++] =
                (struct iovec){.iov_base = (uint8_t *)work->reply + skip, .iov_len = NBD_REPLY_BYTES - skip};
            skip = 0;
        } else {
            skip -= NBD_REPLY_BYTES;
        }
        bool is_first = true;
        while (left > 0) {
            uint32_t bytes = left < RING_PAGE_BYTES ? left : RING_PAGE_BYTES;
            left -= bytes;
            uint8_t *at = nbd_page(engine, page);
            page = engine->next_page[page];
            if (skip >= bytes) {
                skip -= bytes;
                continue;
            }
            at += skip;
            bytes -= skip;
            skip = 0;
            struct iovec *last = is_first ? NULL : &engine->vectors[count - 1];
            is_first = false;
            if (last && (uint8_t *)last->iov_base + last->iov_len == at)
                last->iov_len += bytes;
            else if (count == NBD_VECTORS_MAX)
                return count;
            else
                engine->vectors[count++] = (struct iovec){.iov_base = at, .iov_len = bytes};
        }
    }
    return count;
}

static void watch_writable(struct nbd_engine *engine, struct nbd_connection *connection, bool wanted)
{
    if (connection->watches_writable == wanted)
        return;
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLRDHUP | EPOLLET | (wanted ? EPOLLOUT : 0),
        .data.u32 = (uint32_t)(connection - engine->connection),
    };
    connection->watches_writable = wanted;
    epoll_ctl(engine->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event);
}

bool nbd_send(struct nbd_engine *engine, struct nbd_connection *connection)
{
    bool moved = false;
    while (connection->replies.first && connection->writable) {
        struct msghdr message = {.msg_iov = engine->vectors};
        message.msg_iovlen = vectors_to_send(engine, connection);
        ssize_t sent = sendmsg(connection->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0) {
            connection->writable = false;
            if (errno == EAGAIN || errno == EWOULDBLOCK)
                watch_writable(engine, connection, true);
            else
                nbd_break(engine, connection, NBD_ENDED_LOST);
            return moved;
        }
        moved = true;
        engine->statistics.sends++;
        connection->sent_bytes += (uint32_t)sent;
        connection->owed_bytes -= (uint64_t)sent;
        struct nbd_work *work;
        while ((work = connection->replies.first) != NULL && connection->sent_bytes >= work->reply_bytes) {
            connection->sent_bytes -= work->reply_bytes;
            connection->replies.first = work->next;
            if (!work->next)
                connection->replies.last = NULL;
            nbd_free_work(engine, work);
        }
    }
    watch_writable(engine, connection, false);
    return moved;
}

/* -- the end */

void nbd_break(struct nbd_engine *engine, struct nbd_connection *connection, enum nbd_ending ending)
{
    struct nbd_work *work;
    if (connection->state == NBD_CONNECTION_OVER)
        return;
    if (connection->state == NBD_CONNECTION_OPEN) /* one that has taken its leave owes us nothing */
        connection->ending = ending;
    connection->state = NBD_CONNECTION_OVER;
    if (connection->receiving)
        nbd_free_work(engine, connection->receiving);
    connection->receiving = NULL;
    while ((work = connection->replies.first) != NULL) {
        connection->replies.first = work->next;
        nbd_free_work(engine, work);
    }
    connection->replies.last = NULL;
    connection->owed_bytes = 0;
}

void nbd_retire(struct nbd_engine *engine, struct nbd_connection *connection)
{
    if (connection->state == NBD_CONNECTION_LEAVING && connection->receiving) { /* it will never be whole */
        nbd_free_work(engine, connection->receiving);
        connection->receiving = NULL;
    }
    if ((connection->state != NBD_CONNECTION_OVER && connection->state != NBD_CONNECTION_LEAVING) || connection->requests)
        return;
    close(connection->fd); /* which takes it out of the epoll, too: nobody else has this open file */
    connection->state = NBD_CONNECTION_FREE;
    engine->open_connections--;
    engine->ended[engine->ended_count++] = (uint32_t)(connection - engine->connection);
}
