/* The interrupt router: one native thread. A kick sets an event flag, and on 0 -> 1 rings a doorbell. No Python.
 *
 * Senders and targets are hostile and hold the eventfds too. The thread never reads a kick (edge-triggered, the counter is
 * left alone), never blocks on a doorbell (doorbell.c), and holds its lock only between system calls that do not wait. */
#ifndef PARTVISOR_ROUTER_H
#define PARTVISOR_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#define ROUTER_MAX_ROUTES 65536u

struct router;
struct trace;

struct router_statistics {
    uint64_t sent;       /* kicks seen; kicks that came together count once */
    uint64_t merged;     /* found the flag set already: the target has been told and has not looked */
    uint64_t suppressed; /* flag written, and no doorbell, because the route was quiet */
    uint64_t delivered;  /* doorbells rung */
    uint64_t blocked;    /* doorbells whose counter was full */
};

/* NULL with errno set. */
struct router *router_open(void);

/* Stops the thread and frees everything. */
void router_close(struct router *router);

/* The descriptors are duplicated; sief_page must stay mapped until router_remove() returns.
 * 0, EEXIST for a known id, ENOSPC beyond ROUTER_MAX_ROUTES, or what the kernel said. */
int router_add(struct router *router, uint64_t route_id, int kick_fd, void *sief_page, uint32_t flag, int doorbell_fd);

/* 0, or ENOENT. The thread does not touch the route any more. */
int router_remove(struct router *router, uint64_t route_id);

/* Kicks set another flag from now on; sief_page as in router_add(). When this returns the thread does not touch the page
 * before any more, so flags that stand in it can be moved. 0, or ENOENT. */
int router_move(struct router *router, uint64_t route_id, void *sief_page, uint32_t flag);

/* A quiet route sets its flag and rings nothing. 0, or ENOENT. */
int router_quiet(struct router *router, uint64_t route_id, bool quiet);

/* Kicks ring this doorbell from now on; the descriptor is duplicated. 0, ENOENT, or what the kernel said. */
int router_ring_at(struct router *router, uint64_t route_id, int doorbell_fd);

/* Stamp every kick from now on, as that of route TRACE_ROUTE | id. The trace stays as long as the router. */
void router_trace(struct router *router, const struct trace *trace);

int router_statistics_of(struct router *router, uint64_t route_id, struct router_statistics *statistics);

#endif
