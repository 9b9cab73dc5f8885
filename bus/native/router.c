#include "router.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "doorbell.h"
#include "synic.h"
#include "trace.h"

#define EVENTS_AT_ONCE 64
#define STOP_TOKEN UINT64_MAX

struct route {
    bool in_use, quiet;
    uint32_t generation; /* counts the uses of this slot: an event fetched before a removal finds another number */
    uint64_t id;
    int kick_fd, doorbell_fd;
    void *sief_page;
    uint32_t flag;
    struct router_statistics statistics;
};

struct router {
    pthread_mutex_t lock; /* guards routes and count */
    struct route *routes;
    uint32_t count; /* slots ever used */
    int epoll_fd, stop_fd;
    pthread_t thread;
    pid_t pid; /* a forked child has the structure, but not the thread */
    const struct trace *trace; /* or NULL: nobody traces */
    struct doorbell_ringer ringer;
};

static uint64_t token_of(uint32_t slot, uint32_t generation)
{
    return (uint64_t)generation << 32 | slot;
}

static void deliver(struct router *router, uint64_t token)
{
    const uint32_t slot = (uint32_t)token;
    if (slot >= router->count)
        return;
    struct route *route = &router->routes[slot];
    if (!route->in_use || route->generation != token >> 32)
        return;
    trace_stamp(router->trace, TRACE_ROUTE | route->id, TRACE_BROKER_WAKE, 0);
    route->statistics.sent++;
    const bool fresh = synic_flag_set(route->sief_page, route->flag);
    trace_stamp(router->trace, TRACE_ROUTE | route->id, TRACE_FLAG_SET, 0);
    if (route->quiet)
        route->statistics.suppressed++;
    else if (!fresh)
        route->statistics.merged++;
    else if (doorbell_ring(&router->ringer, route->doorbell_fd))
        route->statistics.delivered++;
    else
        route->statistics.blocked++;
}

static void *route_until_stopped(void *argument)
{
    struct router *router = argument;
    struct epoll_event events[EVENTS_AT_ONCE];
    for (;;) {
        const int count = epoll_wait(router->epoll_fd, events, EVENTS_AT_ONCE, -1);
        if (count < 0 && errno != EINTR)
            abort(); /* only a closed or foreign descriptor of our own does this: nothing may go on without interrupts */
        pthread_mutex_lock(&router->lock);
        bool stop = false;
        for (int i = 0; i < count; i++) {
            if (events[i].data.u64 == STOP_TOKEN)
                stop = true;
            else
                deliver(router, events[i].data.u64);
        }
        pthread_mutex_unlock(&router->lock);
        if (stop)
            return NULL;
    }
}

static void free_router(struct router *router)
{
    for (uint32_t slot = 0; slot < router->count; slot++) {
        if (!router->routes[slot].in_use)
            continue;
        close(router->routes[slot].kick_fd);
        close(router->routes[slot].doorbell_fd);
    }
    doorbell_ringer_close(&router->ringer);
    if (router->epoll_fd >= 0)
        close(router->epoll_fd);
    if (router->stop_fd >= 0)
        close(router->stop_fd);
    pthread_mutex_destroy(&router->lock);
    free(router->routes);
    free(router);
}

struct router *router_open(void)
{
    struct router *router = calloc(1, sizeof *router);
    if (!router)
        return NULL;
    pthread_mutex_init(&router->lock, NULL);
    router->pid = getpid();
    router->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    router->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    doorbell_ringer_open(&router->ringer);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = STOP_TOKEN};
    int error = 0;
    if (router->epoll_fd < 0 || router->stop_fd < 0
        || epoll_ctl(router->epoll_fd, EPOLL_CTL_ADD, router->stop_fd, &event) < 0)
        error = errno;
    if (!error) {
        sigset_t all, before;
        sigfillset(&all); /* signals are for the threads that run Python */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&router->thread, NULL, route_until_stopped, router);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (error) {
        free_router(router);
        errno = error;
        return NULL;
    }
    return router;
}

void router_close(struct router *router)
{
    if (router->pid == getpid()) {
        const uint64_t one = 1;
        const ssize_t put = write(router->stop_fd, &one, sizeof one);
        (void)put;
        pthread_join(router->thread, NULL);
    }
    free_router(router);
}

static struct route *find(struct router *router, uint64_t route_id)
{
    for (uint32_t slot = 0; slot < router->count; slot++)
        if (router->routes[slot].in_use && router->routes[slot].id == route_id)
            return &router->routes[slot];
    return NULL;
}

static struct route *free_slot(struct router *router)
{
    for (uint32_t slot = 0; slot < router->count; slot++)
        if (!router->routes[slot].in_use)
            return &router->routes[slot];
    if (router->count == ROUTER_MAX_ROUTES)
        return NULL;
    struct route *grown = realloc(router->routes, (router->count + 1) * sizeof *grown);
    if (!grown)
        return NULL;
    router->routes = grown;
    grown[router->count] = (struct route){.in_use = false};
    return &grown[router->count++];
}

int router_add(struct router *router, uint64_t route_id, int kick_fd, void *sief_page, uint32_t flag, int doorbell_fd)
{
    int error = 0;
    const int kick = fcntl(kick_fd, F_DUPFD_CLOEXEC, 0);
    if (kick < 0)
        return errno;
    const int doorbell = fcntl(doorbell_fd, F_DUPFD_CLOEXEC, 0);
    if (doorbell < 0) {
        error = errno;
        close(kick);
        return error;
    }
    pthread_mutex_lock(&router->lock);
    struct route *route = NULL;
    if (find(router, route_id))
        error = EEXIST;
    else if (!(route = free_slot(router)))
        error = ENOSPC;
    if (!error) {
        const uint32_t generation = route->generation + 1;
        *route = (struct route){.in_use = true, .generation = generation, .id = route_id, .kick_fd = kick,
                                .doorbell_fd = doorbell, .sief_page = sief_page, .flag = flag};
        struct epoll_event event = {
            .events = EPOLLIN | EPOLLET,
            .data.u64 = token_of((uint32_t)(route - router->routes), generation),
        };
        if (epoll_ctl(router->epoll_fd, EPOLL_CTL_ADD, kick, &event) < 0) {
            error = errno;
            route->in_use = false;
        }
    }
    pthread_mutex_unlock(&router->lock);
    if (error) {
        close(kick);
        close(doorbell);
    }
    return error;
}

int router_remove(struct router *router, uint64_t route_id)
{
    pthread_mutex_lock(&router->lock);
    struct route *route = find(router, route_id);
    if (route) {
        epoll_ctl(router->epoll_fd, EPOLL_CTL_DEL, route->kick_fd, NULL); /* before close: the open file lives on */
        close(route->kick_fd);
        close(route->doorbell_fd);
        route->in_use = false;
    }
    pthread_mutex_unlock(&router->lock);
    return route ? 0 : ENOENT;
}

/* ORDER move: deliver() sets flags under the lock. Who takes the flag out of the page before, after this returned, finds
 *   all that was ever set there. */
int router_move(struct router *router, uint64_t route_id, void *sief_page, uint32_t flag)
{
    pthread_mutex_lock(&router->lock);
    struct route *route = find(router, route_id);
    if (route) {
        route->sief_page = sief_page;
        route->flag = flag;
    }
    pthread_mutex_unlock(&router->lock);
    return route ? 0 : ENOENT;
}

/* ORDER quiet: deliver() looks at `quiet` and writes the flag under the lock. A flag that was set while the route was
 *   quiet is visible to who looks after router_quiet(false) returned, and rings for it. */
int router_quiet(struct router *router, uint64_t route_id, bool quiet)
{
    pthread_mutex_lock(&router->lock);
    struct route *route = find(router, route_id);
    if (route)
        route->quiet = quiet;
    pthread_mutex_unlock(&router->lock);
    return route ? 0 : ENOENT;
}

int router_ring_at(struct router *router, uint64_t route_id, int doorbell_fd)
{
    const int doorbell = fcntl(doorbell_fd, F_DUPFD_CLOEXEC, 0);
    if (doorbell < 0)
        return errno;
    int unused = doorbell;
    pthread_mutex_lock(&router->lock);
    struct route *route = find(router, route_id);
    if (route) {
        unused = route->doorbell_fd;
        route->doorbell_fd = doorbell;
    }
    pthread_mutex_unlock(&router->lock);
    close(unused);
    return route ? 0 : ENOENT;
}

void router_trace(struct router *router, const struct trace *trace)
{
    pthread_mutex_lock(&router->lock);
    router->trace = trace;
    pthread_mutex_unlock(&router->lock);
}

int router_statistics_of(struct router *router, uint64_t route_id, struct router_statistics *statistics)
{
    pthread_mutex_lock(&router->lock);
    const struct route *route = find(router, route_id);
    if (route)
        *statistics = route->statistics;
    pthread_mutex_unlock(&router->lock);
    return route ? 0 : ENOENT;
}
