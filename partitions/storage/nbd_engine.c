/* The loop of nbd_engine.h, how it waits, and its life. */
#include "nbd_engine.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"
#include "synic.h"

#define EVENTS_MAX (NBD_CONNECTIONS_MAX + 3u)
#define YIELD_NS 20000u /* while requests are with the server: so long we give the processor away before we sleep */
#define ROUNDS_A_CLOCK 256u

/* What an epoll event is about: a connection's number, or one of these. */
#define EVENT_DOORBELL UINT32_MAX
#define EVENT_CLOSED (UINT32_MAX - 1)
#define EVENT_WAKE (UINT32_MAX - 2)

/* -- waiting */

static int watch(struct nbd_engine *engine, int operation, int fd, uint32_t events, uint32_t what)
{
    struct epoll_event event = {.events = events, .data.u32 = what};
    return epoll_ctl(engine->epoll_fd, operation, fd, &event) < 0 ? errno : 0;
}

/* Note what is ready; `timeout_ms` as of epoll_wait(). An errno: EINTR. */
static int poll_events(struct nbd_engine *engine, uint64_t deadline_ns, bool sleeps)
{
    struct epoll_event events[EVENTS_MAX];
    int count;
    if (!sleeps) {
        count = epoll_wait(engine->epoll_fd, events, EVENTS_MAX, 0);
    } else if (deadline_ns == ENDPOINT_FOREVER) {
        count = epoll_wait(engine->epoll_fd, events, EVENTS_MAX, -1);
    } else {
        const uint64_t now_ns = clock_now_ns(), left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
        const struct timespec left = {.tv_sec = (time_t)(left_ns / 1000000000u),
                                      .tv_nsec = (long)(left_ns % 1000000000u)};
        count = epoll_pwait2(engine->epoll_fd, events, EVENTS_MAX, &left, NULL);
    }
    if (count < 0)
        return errno;
    for (int i = 0; i < count; i++) {
        const uint32_t what = events[i].data.u32, ready = events[i].events;
        if (what == EVENT_WAKE) {
            uint64_t woken;
            engine->is_woken |= read(engine->wake_fd, &woken, sizeof woken) == sizeof woken;
        } else if (what < NBD_CONNECTIONS_MAX) {
            struct nbd_connection *connection = &engine->connection[what];
            connection->hung_up |= (ready & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
            connection->readable |= (ready & EPOLLIN) || connection->hung_up;
            connection->writable |= (ready & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
            engine->has_news = true;
        }
    }
    return 0;
}

/* The last look before sleeping: from here on the server signals. As endpoint.c does it. */
static enum wait_result look_last(struct nbd_engine *engine)
{
    struct endpoint *endpoint = engine->queue.endpoint;
    void *const flag_page = atomic_load(&endpoint->flag_page);
    if (flag_page)
        synic_flag_take(flag_page, endpoint->flag);
    const enum ring_status data = ring_unmask(&endpoint->reader);
    const enum ring_status space =
        engine->stalled ? ring_want_space(&endpoint->writer, engine->largest_packet_bytes) : RING_FULL;
    if (data == RING_CORRUPT || space == RING_CORRUPT)
        return WAIT_CORRUPT;
    if (atomic_load(&endpoint->closed))
        return WAIT_CLOSED;
    return data == RING_OK || space == RING_OK ? WAIT_READY : WAIT_NOT_YET;
}

/* While requests are with the server we give the processor to whoever wants it, which may be the server: an answer that
 * comes then costs neither side a system call more. */
static enum wait_result wait_awake(struct nbd_engine *engine)
{
    struct endpoint *endpoint = engine->queue.endpoint;
    if (engine->queue.in_flight == 0 || endpoint->policy.mode == WAIT_BLOCK)
        return WAIT_NOT_YET;
    enum wait_result result =
        endpoint_spin(endpoint, WAIT_FOR_DATA, 0, endpoint_spin_limit_ns(endpoint, WAIT_FOR_DATA));
    const uint64_t until_ns = clock_now_ns() + YIELD_NS;
    while (result == WAIT_NOT_YET && clock_now_ns() < until_ns) {
        sched_yield();
        const enum ring_status status = ring_poll(&endpoint->reader);
        result = status == RING_OK ? WAIT_READY : status == RING_EMPTY ? WAIT_NOT_YET : WAIT_CORRUPT;
    }
    return result;
}

static enum wait_result sleep_for_news(struct nbd_engine *engine, uint64_t deadline_ns)
{
    enum wait_result result = look_last(engine);
    if (result == WAIT_NOT_YET) {
        engine->statistics.sleeps++;
        result = poll_events(engine, deadline_ns, true) == EINTR ? WAIT_INTERRUPTED : WAIT_READY;
        endpoint_stamp(engine->queue.endpoint, TRACE_WAKE, 0);
    }
    ring_mask(&engine->queue.endpoint->reader); /* awake: we look for ourselves until we sleep again */
    return result;
}

/* -- the loop */

static bool receive_all(struct nbd_engine *engine)
{
    bool moved = false;
    engine->has_news = false;
    for (uint32_t i = 0; i < NBD_CONNECTIONS_MAX; i++) {
        struct nbd_connection *connection = &engine->connection[i];
        if (connection->state == NBD_CONNECTION_OPEN)
            moved |= nbd_receive(engine, connection);
        nbd_retire(engine, connection);
    }
    return moved;
}

/* held_bytes: a client that is owed less waits. */
static bool send_all(struct nbd_engine *engine, uint64_t held_bytes)
{
    bool moved = false;
    for (uint32_t i = 0; i < NBD_CONNECTIONS_MAX; i++) {
        struct nbd_connection *connection = &engine->connection[i];
        if (connection->replies.first && connection->writable && connection->owed_bytes >= held_bytes) {
            moved |= nbd_send(engine, connection);
            nbd_retire(engine, connection);
        }
    }
    return moved;
}

/* A batch has begun to come in: wait for more of it as long as one request follows another at a client's pace. Clients
 * with one request under way never have a second one, and pay for it once in a while only. */
static void gather(struct nbd_engine *engine, uint64_t requests_before)
{
    if (engine->queue.endpoint->policy.mode == WAIT_BLOCK)
        return;
    if (engine->gathers++ % NBD_GATHER_PROBE == 0)
        engine->gather_ns = NBD_GATHER_NS;
    const uint64_t begun_ns = clock_now_ns(), first = engine->statistics.requests;
    uint64_t now_ns = begun_ns, last_ns = begun_ns, seen = first;
    while (now_ns - last_ns < engine->gather_ns && now_ns - begun_ns < NBD_GATHER_WHOLE_NS
           && seen - requests_before < NBD_GATHER_REQUESTS) {
        sched_yield();
        poll_events(engine, 0, false);
        if (engine->has_news)
            receive_all(engine);
        now_ns = clock_now_ns();
        if (engine->statistics.requests != seen) {
            seen = engine->statistics.requests;
            last_ns = now_ns;
        }
    }
    engine->gather_ns = seen != first ? NBD_GATHER_NS : engine->gather_ns / 2;
}

enum nbd_result nbd_engine_run(struct nbd_engine *engine, uint64_t deadline_ns)
{
    struct endpoint *endpoint = engine->queue.endpoint;
    for (uint32_t round = 0;; round++) {
        const uint64_t sequence = engine->queue.sequence, requests = engine->statistics.requests;
        bool moved = false;
        if (atomic_load_explicit(&endpoint->closed, memory_order_relaxed))
            return NBD_CLOSED;
        if (!nbd_take_completions(engine, &moved))
            return NBD_CORRUPT;
        moved |= send_all(engine, engine->queue.in_flight ? NBD_HELD_REPLY_BYTES : 0); /* first: it frees pages */
        moved |= receive_all(engine);
        if (engine->statistics.requests != requests && engine->queue.in_flight == 0)
            gather(engine, requests);
        if (!nbd_issue_all(engine))
            return NBD_CORRUPT;
        moved |= engine->queue.sequence != sequence;
        if (block_queue_flush(&engine->queue))
            endpoint_signal(endpoint);
        if (engine->failed_count || engine->ended_count || engine->is_woken) {
            engine->is_woken = false;
            return NBD_FOR_PYTHON;
        }
        if (round % ROUNDS_A_CLOCK == 0 && deadline_ns != ENDPOINT_FOREVER && clock_now_ns() >= deadline_ns)
            return NBD_TIMEOUT;
        if (moved) {
            if (poll_events(engine, 0, false) == EINTR)
                return NBD_INTERRUPTED;
            continue;
        }
        enum wait_result result = wait_awake(engine);
        if (result == WAIT_NOT_YET && !send_all(engine, 0) && engine->ended_count == 0)
            result = sleep_for_news(engine, deadline_ns);
        switch (result) {
        case WAIT_INTERRUPTED:
            return NBD_INTERRUPTED;
        case WAIT_CLOSED:
            return NBD_CLOSED;
        case WAIT_CORRUPT:
            return NBD_CORRUPT;
        default:
            break;
        }
    }
}

/* -- its life */

int nbd_engine_open(struct nbd_engine *engine, uint8_t *data, uint32_t pool_pages, uint64_t first_pfn)
{
    const uint32_t works = NBD_CONNECTIONS_MAX * NBD_REQUESTS_MAX;
    engine->epoll_fd = engine->wake_fd = -1;
    engine->data = data;
    engine->pool_pages = pool_pages;
    engine->pages_each = (pool_pages - 1) / NBD_CONNECTIONS_MAX;
    engine->disk.max_payload_bytes = NBD_PAYLOAD_BYTES_MAX; /* one that did not fit would wait for ever */
    while (engine->disk.max_payload_bytes > engine->pages_each * RING_PAGE_BYTES)
        engine->disk.max_payload_bytes /= 2;
    engine->queue.first_pfn = first_pfn;
    engine->queue.slots = NBD_FRAGMENTS_MAX;
    engine->queue.block_bytes = engine->disk.block_bytes;
    const uint64_t pages = (engine->max_fragment_bytes + RING_PAGE_BYTES - 1) / RING_PAGE_BYTES;
    engine->largest_packet_bytes =
        (uint32_t)ring_packet_bytes(sizeof(struct gpa_direct_head) + pages * PFN_BYTES, STORVSP_PACKET_BYTES);
    engine->queue.slot = calloc(NBD_FRAGMENTS_MAX, sizeof *engine->queue.slot);
    engine->next_page = calloc(pool_pages, sizeof *engine->next_page);
    engine->work = calloc(works, sizeof *engine->work);
    if (!engine->queue.slot || !engine->next_page || !engine->work)
        return ENOMEM;
    engine->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    engine->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->epoll_fd < 0 || engine->wake_fd < 0)
        return errno;
    memset(data, 0, RING_PAGE_BYTES); /* page 0: zeros, for good */
    engine->free_page = 1;
    engine->free_pages = pool_pages - 1;
    for (uint32_t page = 1; page < pool_pages; page++)
        engine->next_page[page] = page + 1 < pool_pages ? page + 1 : NBD_NO_PAGE;
    for (uint32_t i = 0; i < NBD_FRAGMENTS_MAX; i++)
        engine->free_fragments[engine->free_fragment_count++] = (uint16_t)(NBD_FRAGMENTS_MAX - 1 - i);
    for (uint32_t i = 0; i < works; i++) {
        engine->work[i].next = engine->free_work;
        engine->free_work = &engine->work[i];
    }
    return watch(engine, EPOLL_CTL_ADD, engine->wake_fd, EPOLLIN, EVENT_WAKE);
}

int nbd_engine_watch_channel(struct nbd_engine *engine, const struct endpoint *endpoint)
{
    /* Every ring of the doorbell is an edge. endpoint_close() speaks to the endpoint's own epoll alone: that is watched too. */
    const int error = watch(engine, EPOLL_CTL_ADD, endpoint->wait_fd, EPOLLIN | EPOLLET, EVENT_DOORBELL);
    return error ? error : watch(engine, EPOLL_CTL_ADD, endpoint->wait_epoll_fd, EPOLLIN | EPOLLET, EVENT_CLOSED);
}

void nbd_engine_destroy(struct nbd_engine *engine)
{
    for (uint32_t i = 0; i < NBD_CONNECTIONS_MAX; i++)
        if (engine->connection[i].state != NBD_CONNECTION_FREE)
            close(engine->connection[i].fd);
    if (engine->epoll_fd >= 0)
        close(engine->epoll_fd);
    if (engine->wake_fd >= 0)
        close(engine->wake_fd);
    free(engine->queue.slot);
    free(engine->next_page);
    free(engine->work);
}

int nbd_engine_attach(struct nbd_engine *engine, int fd)
{
    for (uint32_t i = 0; i < NBD_CONNECTIONS_MAX; i++) {
        struct nbd_connection *connection = &engine->connection[i];
        if (connection->state != NBD_CONNECTION_FREE)
            continue;
        if (watch(engine, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, i))
            return -1;
        *connection = (struct nbd_connection){
            .fd = fd, .state = NBD_CONNECTION_OPEN, .readable = true, .writable = true, .fill_page = NBD_NO_PAGE};
        engine->open_connections++;
        return (int)i;
    }
    return -1;
}

void nbd_engine_leave(struct nbd_engine *engine)
{
    for (uint32_t i = 0; i < NBD_CONNECTIONS_MAX; i++)
        if (engine->connection[i].state == NBD_CONNECTION_OPEN) {
            engine->connection[i].state = NBD_CONNECTION_LEAVING;
            nbd_retire(engine, &engine->connection[i]);
        }
}

void nbd_engine_wake(struct nbd_engine *engine)
{
    const uint64_t one = 1;
    while (write(engine->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}
